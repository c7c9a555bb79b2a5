"""Subjects of a number: truth and prediction of images, or their means over each patient."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import ClassVar, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from embedcache.data.predictions import Measurements
from embedcache.files.arrays import Floats
from embedcache.scoring.choices import Level
from embedcache.scoring.jackknife import LOSS
from embedcache.scoring.subject import Score, Subject, check_metric, score_of_sums

_BOUNDS: Final = {
    "mae": LOSS,
    "rmse": LOSS,
    "r2": (-math.inf, 1.0),
    "pearson": (-1.0, 1.0),
}
_NOISE: Final = 1e-6  # share of the squares below which a variance is rounding


class _Sums(NamedTuple):
    """Added-up moments, shape (rows,) each, by truth t, prediction p and their difference."""

    n: Floats
    t: Floats
    p: Floats
    tt: Floats
    pp: Floats
    tp: Floats
    squared: Floats
    absolute: Floats


def _variance(n: Floats, total: Floats, squares: Floats) -> Floats:
    """Return the variance; NaN where what is left of the squares is float32 rounding."""
    variance = squares / n - (total / n) ** 2
    return np.where(variance > _NOISE * squares / n, variance, np.nan)


def _pearson(s: _Sums) -> Floats:
    var_t, var_p = _variance(s.n, s.t, s.tt), _variance(s.n, s.p, s.pp)
    return np.asarray((s.tp / s.n - s.t * s.p / s.n**2) / np.sqrt(var_t * var_p))


_SCORES: Final[Mapping[str, Callable[[_Sums], Floats]]] = MappingProxyType(
    {
        "mae": lambda s: s.absolute / s.n,
        "rmse": lambda s: np.sqrt(s.squared / s.n),
        "r2": lambda s: 1 - s.squared / s.n / _variance(s.n, s.t, s.tt),
        "pearson": _pearson,
    }
)


@dataclass(frozen=True, slots=True)
class NumberUnits(Subject):
    """What is scored of one cohort's measurements.

    Parameters
    ----------
    moments
        Sums of the moments of each patient's units, shape (patients, 8), truth and prediction
        counted from the mean of the cohort's truth: near 0, squares do not swamp their differences.
    n_folds
        Number of folds that repeats draw anew, by which the units are tested; 1 for none.
    """

    moments: Floats = field(repr=False)
    n_folds: int = 1

    task: ClassVar[str] = "regression"
    lower_is_better: ClassVar[frozenset[str]] = frozenset({"mae", "rmse"})

    @property
    def n_patients(self) -> int:
        """Number of patients."""
        return len(self.moments)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Metrics of a number; R2 and r only where the truth varies, r where the answers do."""
        return tuple(score.metric for score in self.scores() if not math.isnan(score.value))

    @property
    def undefined(self) -> Mapping[str, str]:
        """R2 and r where something that they divide by does not vary."""
        return {
            metric: f"{metric} is not defined: truth or prediction does not vary"
            for metric in _SCORES
            if metric not in self.metrics
        }

    def score(self, metric: str) -> Score:
        """Return one score; see `Subject.score`."""
        check_metric(metric, self)
        return self._score(metric)

    def _score(self, metric: str) -> Score:
        of_moments = _SCORES[metric]
        return score_of_sums(
            metric,
            "",
            self.moments,
            lambda sums: of_moments(_Sums(*sums.T)),
            self.n_patients,
            _BOUNDS[metric],
        )

    def scores(self) -> Iterator[Score]:
        """Yield mean absolute error, root mean squared error, R2 and Pearson's r."""
        yield from map(self._score, _SCORES)


def number_units(measurements: Measurements, *, level: Level = "image") -> NumberUnits:
    """Return what is scored of one cohort's measurements.

    Parameters
    ----------
    measurements
        Answers of one cohort.
    level
        'image', or 'patient': truth and prediction are the means over a patient's images.
    """
    truth, predicted = measurements.truth, measurements.value
    patient, n_images = np.unique(measurements.patient_id, return_inverse=True, return_counts=True)[
        1:
    ]
    centre = truth.mean()
    if level == "patient":
        means = [np.bincount(patient, v - centre) / n_images for v in (truth, predicted)]
        return NumberUnits(_moments(*means))
    moments = _moments(truth - centre, predicted - centre)
    return NumberUnits(_by_patient(moments, patient))


def _moments(truth: Floats, predicted: Floats) -> Floats:
    """Return the moments of each unit, in the order of `_Sums`, shape (n, 8)."""
    error = predicted - truth
    squares = truth**2, predicted**2, truth * predicted, error**2
    return np.column_stack([np.ones(len(truth)), truth, predicted, *squares, np.abs(error)])


def _by_patient(moments: Floats, patient: NDArray[np.intp]) -> Floats:
    return np.column_stack([np.bincount(patient, column) for column in moments.T])
