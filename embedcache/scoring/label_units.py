"""Subjects of several labels: each label of the images is a question of yes or no."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from embedcache.data.predictions import LabelSets
from embedcache.files.arrays import Floats
from embedcache.scoring.jackknife import deviations
from embedcache.scoring.ranking import Ranking, auroc, average_precision, fewest_patients
from embedcache.scoring.resampling import ratio, sums_by_patient
from embedcache.scoring.subject import Score, Subject, check_metric, mean_score

# Score of one label, and its mean over labels.
_MEANS: Final[Mapping[str, str]] = MappingProxyType(
    {"auroc": "macro_auroc", "f1": "macro_f1", "average_precision": "mean_average_precision"}
)
_ORDERED: Final[Mapping[str, Callable[[Ranking], tuple[float, Floats]]]] = MappingProxyType(
    {"auroc": auroc, "average_precision": average_precision}
)
_N_CELLS: Final = 4  # of a table of truth and call


@dataclass(frozen=True, slots=True)
class LabelUnits(Subject):
    """What is scored of one cohort's label sets.

    Parameters
    ----------
    labels
        The m labels that at least one image has, in the order of the answers.
    patient
        Number of each image's patient, shape (n,); patients are sorted by name.
    truth
        Whether each image has each label, shape (n, m).
    called
        Whether each label was called, shape (n, m).
    probability
        Probability of each label, shape (n, m).
    fold
        Number of the fold that tested each image, shape (n,); one number where external.
    n_folds
        Number of folds that repeats draw anew, by which the images are tested; 1 for none.
    """

    labels: tuple[str, ...]
    patient: NDArray[np.intp] = field(repr=False)
    truth: NDArray[np.bool_] = field(repr=False)
    called: NDArray[np.bool_] = field(repr=False)
    probability: Floats = field(repr=False)
    fold: NDArray[np.int64] = field(repr=False)
    n_folds: int = 1

    task: ClassVar[str] = "multilabel"
    part: ClassVar[str] = "label"

    @property
    def n_patients(self) -> int:
        """Number of patients."""
        return int(self.patient.max()) + 1

    @property
    def metrics(self) -> tuple[str, ...]:
        """Metrics of these labels; AUROC of those that an image lacks."""
        ranked = [n for n, has in zip(self.labels, self.truth.T, strict=True) if not has.all()]
        names = {"auroc": ranked, "f1": [*self.labels], "average_precision": [*self.labels]}
        return (
            *(mean for metric, mean in _MEANS.items() if names[metric]),
            *(f"{metric}:{name}" for metric in _MEANS for name in names[metric]),
        )

    def score(self, metric: str) -> Score:
        """Return one score; see `Subject.score`."""
        check_metric(metric, self)
        name, _, label = metric.partition(":")
        if label:
            number = self.labels.index(label)
            return self._of_label(name, number, self._left_out(name, number))
        return next(self._scores(next(base for base, mean in _MEANS.items() if mean == name)))

    def scores(self) -> Iterator[Score]:
        """Yield each metric's mean over labels, and its value for each."""
        for metric in _MEANS if self.labels else ():
            yield from self._scores(metric)

    def _scores(self, metric: str) -> Iterator[Score]:
        """Yield the mean of a score over labels, then that of each label."""
        scores = [self._left_out(metric, number) for number in range(len(self.labels))]
        of_labels = [self._of_label(metric, number, score) for number, score in enumerate(scores)]
        defined = [score.n_holders for score in of_labels if not math.isnan(score.value)]
        # The mean over one label is the score of it, and about the same patients.
        n_holders = defined[0] if len(defined) == 1 else self.n_patients
        yield mean_score(_MEANS[metric], scores, n_holders)
        yield from of_labels

    def _of_label(self, metric: str, number: int, score: tuple[float, Floats]) -> Score:
        value, left_out = score
        has = self.truth[:, number]
        n_showing = len(np.unique(self.patient[has]))
        n_holders = fewest_patients(self.patient, has) if metric == "auroc" else n_showing
        return Score(metric, self.labels[number], value, deviations(left_out), n_holders)

    def _left_out(self, metric: str, number: int) -> tuple[float, Floats]:
        """Return the score of a label, and that without each patient, shape (patients,)."""
        if metric != "f1":
            return _ORDERED[metric](self._ranking(number))
        tables = self._tables(number)
        value, *left_out = _f1(np.vstack([tables.sum(axis=0), tables.sum(axis=0) - tables]))
        return float(value), np.array(left_out)

    def _ranking(self, number: int) -> Ranking:
        return Ranking(
            positive=self.truth[:, number],
            probability=self.probability[:, number],
            patient=self.patient,
            n_patients=self.n_patients,
            fold=self.fold,
        )

    def _tables(self, number: int) -> Floats:
        """Return the counts of truth and call of one label by patient, shape (patients, 4)."""
        cells = 2 * self.truth[:, number].astype(np.int64) + self.called[:, number]
        ones = np.ones(len(cells))
        return sums_by_patient(ones, self.patient, self.n_patients, group=cells, n_groups=_N_CELLS)


def _f1(tables: Floats) -> Floats:
    """Return F1 of tables (neither, called, missed, hit), shape (rows,); NaN without truth."""
    called, missed, hits = tables[:, 1], tables[:, 2], tables[:, 3]
    actual = missed + hits
    return ratio(2 * hits, actual + called + hits, actual > 0)


def label_units(answers: LabelSets) -> LabelUnits:
    """Return what is scored of one cohort's label sets; labels that no image has are left out."""
    present = np.flatnonzero(answers.truth.any(axis=0))
    return LabelUnits(
        labels=tuple(answers.names[number] for number in present),
        patient=np.unique(answers.patient_id, return_inverse=True)[1],
        truth=answers.truth[:, present],
        called=answers.called()[:, present],
        probability=answers.probability[:, present],
        fold=answers.fold,
    )
