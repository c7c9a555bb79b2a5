"""What every subject of a score offers, whichever task its answers belong to.

A subject is what is scored of one cohort: images, or means over each patient's images, with their
truth and what a model answered. `evaluate` and `compare` know subjects through this interface only.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import ClassVar, NamedTuple

import numpy as np

from embedcache.errors import RunError
from embedcache.files.arrays import Floats
from embedcache.scoring.jackknife import SHARE, Error, Spread, deviations, error_of, spread_with
from embedcache.scoring.probability_units import ProbabilityUnits
from embedcache.scoring.ranking import Ranking
from embedcache.scoring.resampling import mean_of_defined


class Score(NamedTuple):
    """A score of a cohort, with what each patient does to it.

    Parameters
    ----------
    metric
        Name of the score.
    label
        Class or label that it is of; '' where it is over all of them.
    value
        Score of the cohort as it is; NaN where it is not defined.
    parts
        Each patient's part in the standard error, shape (patients,); see `jackknife.deviations`.
    n_holders
        Number of patients that it is about: of one class, those who show it.
    bounds
        Range of the score.
    """

    metric: str
    label: str
    value: float
    parts: Floats
    n_holders: int
    bounds: tuple[float, float] = SHARE

    @property
    def error(self) -> Error:
        """The error of the score, by the patients tested."""
        return error_of(self.parts, self.n_holders, self.bounds)

    @property
    def spread(self) -> Spread:
        """The score with its interval."""
        return spread_with(self.value, self.error, self.n_holders, self.bounds)


class Subject(ABC):
    """Units of one cohort with truth and answers, each of a patient.

    A metric is named 'NAME', or 'NAME:PART' where it is of one class or label.
    """

    __slots__ = ()

    task: ClassVar[str]
    n_folds: int  # folds that repeats draw anew, by which the units are tested; 1 for none
    part: ClassVar[str] = ""  # word for what a metric may be of: 'class', 'label'
    lower_is_better: ClassVar[frozenset[str]] = frozenset()  # metrics that are errors

    @property
    @abstractmethod
    def n_patients(self) -> int:
        """Number of patients."""

    @property
    @abstractmethod
    def metrics(self) -> tuple[str, ...]:
        """Metrics that are defined on this subject and that models are compared by."""

    @abstractmethod
    def score(self, metric: str) -> Score:
        """Return one score.

        Parameters
        ----------
        metric
            One of `metrics`.

        Raises
        ------
        RunError
            No such metric on this subject.
        """

    @abstractmethod
    def scores(self) -> Iterator[Score]:
        """Yield every score of the answers, in written order."""

    @property
    def undefined(self) -> Mapping[str, str]:
        """Metrics of the task that are not defined on this subject, each with the reason."""
        return {}

    @property
    def rankings(self) -> Mapping[str, Ranking]:
        """Ranking of each class that gets an operating point; none where the task has no such."""
        return {}

    @property
    def calibrations(self) -> Mapping[str, ProbabilityUnits]:
        """Units to score the calibration of, by the suffix of the metric; none likewise."""
        return {}

    def sign(self, metric: str) -> float:
        """Return 1 where a larger score is better, -1 for an error."""
        return -1.0 if metric in self.lower_is_better else 1.0


def check_metric(metric: str, subject: Subject) -> None:
    """Raise `RunError` unless a metric is defined on a subject; the message names what there is."""
    if metric in subject.metrics:
        return
    name, colon, part = metric.partition(":")
    if name in subject.undefined:
        raise RunError(subject.undefined[name])
    parts: dict[str, list[str]] = {}
    for defined in subject.metrics:
        base, _, label = defined.partition(":")
        parts.setdefault(base, []).extend([label] if label else [])
    if colon and parts.get(name):
        raise RunError(f"no {subject.part} '{part}' for {name}; there are {', '.join(parts[name])}")
    choices = [
        *(defined for defined in subject.metrics if ":" not in defined),
        *(f"{base}:{subject.part.upper()}" for base, labels in parts.items() if labels),
    ]
    raise RunError(
        f"no metric '{metric}' of {subject.task} to compare by; it may be {', '.join(choices)}"
    )


def score_of_sums(
    metric: str,
    label: str,
    sums: Floats,
    score: Callable[[Floats], Floats],
    n_holders: int,
    bounds: tuple[float, float] = SHARE,
) -> Score:
    """Return a score that is a function of sums over patients.

    Parameters
    ----------
    metric, label, n_holders, bounds
        See `Score`.
    sums
        Sums over the units of each patient, shape (patients, columns).
    score
        Function of rows of added-up sums, shape (rows, columns), that returns their scores.
    """
    total = sums.sum(axis=0)
    (value,) = score(total[None])
    left_out = score(total - sums) if len(sums) > 1 else np.full(1, math.nan)
    return Score(metric, label, float(value), deviations(left_out), n_holders, bounds)


def mean_score(metric: str, scores: Iterable[tuple[float, Floats]], n_holders: int) -> Score:
    """Return the mean of the scores of classes or labels that are defined.

    Parameters
    ----------
    metric, n_holders
        See `Score`.
    scores
        Score of each class or label, and that without each patient, shape (patients,).
    """
    values, left_out = zip(*scores, strict=True)
    value = mean_of_defined(np.array([values]))[0]
    parts = deviations(mean_of_defined(np.column_stack(left_out)))
    return Score(metric, "", float(value), parts, n_holders)
