"""Subjects of several labels: each label of the images is a question of yes or no."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from embedcache.data.predictions import LabelSets
from embedcache.files.arrays import Floats
from embedcache.scoring.ranking import Ranking, auroc, average_precision
from embedcache.scoring.resampling import (
    Weights,
    mean_of_defined,
    ratio,
    sums_by_patient,
    weighted_sums,
)
from embedcache.scoring.subject import ScoreDraws, Subject, check_metric

# Score of one label, and its mean over labels.
_MEANS: Final[Mapping[str, str]] = MappingProxyType(
    {"auroc": "macro_auroc", "f1": "macro_f1", "average_precision": "mean_average_precision"}
)
_ORDERED: Final[Mapping[str, Callable[[Ranking, Weights], Floats]]] = MappingProxyType(
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
    """

    labels: tuple[str, ...]
    patient: NDArray[np.intp] = field(repr=False)
    truth: NDArray[np.bool_] = field(repr=False)
    called: NDArray[np.bool_] = field(repr=False)
    probability: Floats = field(repr=False)
    fold: NDArray[np.int64] = field(repr=False)

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

    def score(self, metric: str, weights: Weights) -> Floats:
        """Return one score of each resample; see `Subject.score`."""
        check_metric(metric, self)
        name, _, label = metric.partition(":")
        if label:
            return self._of_label(name, self.labels.index(label), weights)
        base = next(of_label for of_label, mean in _MEANS.items() if mean == name)
        values = [self._of_label(base, number, weights) for number in range(len(self.labels))]
        return mean_of_defined(np.column_stack(values))

    def _of_label(self, metric: str, number: int, weights: Weights) -> Floats:
        if metric == "f1":
            return _f1(weighted_sums(weights, self._tables(number)))
        return _ORDERED[metric](self._ranking(number), weights)

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

    def patient_sums(self, metric: str) -> Floats | None:
        """Return the tables of all labels by patient, shape (patients, 4 m); None but for F1."""
        if metric.partition(":")[0] not in {"f1", "macro_f1"}:
            return None
        return np.hstack([self._tables(number) for number in range(len(self.labels))])

    def score_of_sums(self, metric: str, sums: Floats) -> Floats:
        """Return F1 of a label, or its mean over labels, for each row of added-up tables."""
        tables = sums.reshape(len(sums), len(self.labels), _N_CELLS)
        values = [_f1(tables[:, number]) for number in range(len(self.labels))]
        _, _, label = metric.partition(":")
        if label:
            return values[self.labels.index(label)]
        return mean_of_defined(np.column_stack(values))

    def scores(self, weights: Weights) -> Iterator[ScoreDraws]:
        """Yield each metric's mean over labels, and its value for each."""
        for metric, mean in _MEANS.items() if self.labels else ():
            values = [self._of_label(metric, number, weights) for number in range(len(self.labels))]
            yield ScoreDraws(mean, "", mean_of_defined(np.column_stack(values)))
            for name, draws in zip(self.labels, values, strict=True):
                yield ScoreDraws(metric, name, draws)


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
