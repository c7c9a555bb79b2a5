"""Subjects of one class: images, or each patient's mean over the images of one class."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from embedcache.data.predictions import Predictions
from embedcache.files.arrays import Floats
from embedcache.scoring.choices import Level
from embedcache.scoring.confusion import OF_ALL_CLASSES, OF_ONE_CLASS, table_score
from embedcache.scoring.jackknife import deviations
from embedcache.scoring.ranking import Ranking, auroc
from embedcache.scoring.resampling import sums_by_patient
from embedcache.scoring.subject import (
    Score,
    Subject,
    check_metric,
    mean_score,
    score_of_sums,
)


@dataclass(frozen=True, slots=True)
class ClassUnits(Subject):
    """What is scored of one cohort's predictions.

    Parameters
    ----------
    classes
        The c classes that occur among the labels, sorted.
    patient
        Number of each unit's patient, shape (n,); patients are sorted by name.
    truth
        Number of each unit's class in `classes`, shape (n,).
    predicted
        Number of the most probable class, shape (n,); c where that is none of `classes`.
    probability
        Probability of every class of the model, shape (n, k).
    columns
        Column of `probability` of each of `classes`, shape (c,).
    fold
        Number of the fold that tested each unit, shape (n,); one number where external.
    n_folds
        Number of folds that repeats draw anew, by which the units are tested; 1 for none.
    calibrated
        The same units with calibrated probabilities; None where no temperature was fitted.
    """

    classes: tuple[str, ...]
    patient: NDArray[np.intp] = field(repr=False)
    truth: NDArray[np.int64] = field(repr=False)
    predicted: NDArray[np.int64] = field(repr=False)
    probability: Floats = field(repr=False)
    columns: NDArray[np.int64] = field(repr=False)
    fold: NDArray[np.int64] = field(repr=False)
    n_folds: int = 1
    calibrated: ClassUnits | None = field(default=None, repr=False)

    task: ClassVar[str] = "classification"
    part: ClassVar[str] = "class"

    @property
    def n_patients(self) -> int:
        """Number of patients."""
        return int(self.patient.max()) + 1

    @property
    def metrics(self) -> tuple[str, ...]:
        """Metrics of these classes; AUROC needs two of them."""
        of_class = (*OF_ONE_CLASS, "auroc") if len(self.classes) > 1 else (*OF_ONE_CLASS,)
        return (
            *OF_ALL_CLASSES,
            *(["auroc"] if len(self.classes) > 1 else []),
            *(f"{metric}:{name}" for metric in of_class for name in self.classes),
        )

    @property
    def undefined(self) -> Mapping[str, str]:
        """AUROC of a single class."""
        if len(self.classes) > 1:
            return {}
        return {"auroc": f"auroc needs two classes; there is only {self.classes[0]}"}

    @property
    def rankings(self) -> Mapping[str, Ranking]:
        """Each class against the rest."""
        return {name: self.ranking(number) for number, name in enumerate(self.classes)}

    @property
    def calibrations(self) -> Mapping[str, ClassUnits]:
        """These units, and those with calibrated probabilities where there are some."""
        after = {} if self.calibrated is None else {"_calibrated": self.calibrated}
        return {"": self, **after}

    def ranking(self, number: int) -> Ranking:
        """Return one class against the rest, by the probability of it."""
        return Ranking(
            positive=self.truth == number,
            probability=self.probability[:, self.columns[number]],
            patient=self.patient,
            n_patients=self.n_patients,
            fold=self.fold,
        )

    def patient_tables(self, weight: Floats | None = None) -> Floats:
        """Return confusion tables by patient, shape (patients, c (c + 1)).

        Parameters
        ----------
        weight
            Weight of each unit, shape (n,); None where each counts once.
        """
        c = len(self.classes)
        return sums_by_patient(
            np.ones(len(self.truth)) if weight is None else weight,
            self.patient,
            self.n_patients,
            group=self.truth * (c + 1) + self.predicted,
            n_groups=c * (c + 1),
        )

    def score(self, metric: str) -> Score:
        """Return one score; see `Subject.score`."""
        check_metric(metric, self)
        name, _, label = metric.partition(":")
        if name != "auroc":
            return self._of_tables(name, label, self.patient_tables())
        if not label:
            return next(self._areas())
        ranking = self.ranking(self.classes.index(label))
        return _area(label, ranking, auroc(ranking))

    def _of_tables(self, metric: str, label: str, tables: Floats) -> Score:
        name = f"{metric}:{label}" if label else metric
        n_holders = self._n_holders(label) if label else self.n_patients
        return score_of_sums(
            metric, label, tables, lambda sums: table_score(name, self.classes, sums), n_holders
        )

    def _n_holders(self, label: str) -> int:
        """Return the number of patients of a class."""
        return len(np.unique(self.patient[self.truth == self.classes.index(label)]))

    def _areas(self) -> Iterator[Score]:
        """Yield the mean AUROC, then that of each class."""
        rankings = self.rankings
        areas = {name: auroc(ranking) for name, ranking in rankings.items()}
        # The areas of two classes are one number, so their mean is about no more patients.
        is_binary = len(areas) == 2
        n_holders = rankings[self.classes[0]].n_holders if is_binary else self.n_patients
        yield mean_score("auroc", areas.values(), n_holders)
        for label, area in areas.items():
            yield _area(label, rankings[label], area)

    def scores(self) -> Iterator[Score]:
        """Yield the scores of confusion tables, and AUROC."""
        images = self.patient_tables()
        for metric in OF_ALL_CLASSES:
            yield self._of_tables(metric, "", images)
        equal = 1 / np.bincount(self.patient)[self.patient]  # every patient weighs one
        by_patient = self._of_tables("macro_f1", "", self.patient_tables(equal))
        yield by_patient._replace(metric="macro_f1_by_patient")
        for label in self.classes:
            for metric in OF_ONE_CLASS:
                yield self._of_tables(metric, label, images)
        if len(self.classes) > 1:
            yield from self._areas()


def _area(label: str, ranking: Ranking, area: tuple[float, Floats]) -> Score:
    value, left_out = area
    return Score("auroc", label, value, deviations(left_out), ranking.n_holders)


def class_units(
    predictions: Predictions, *, level: Level = "image", masked: bool = False
) -> ClassUnits:
    """Return what is scored of one cohort's predictions.

    Parameters
    ----------
    predictions
        Answers of one cohort.
    level
        'image', or 'patient': a unit is a patient's mean probability over the images of one class.
        Frames of one examination show several planes, so a patient has one unit for each label.
    masked
        Whether only classes that occur among the labels are considered.
    """
    classes, truth = predictions.classes, predictions.codes()
    probability = predictions.masked_probability(masked=masked)
    patient = np.unique(predictions.patient_id, return_inverse=True)[1]
    fold = predictions.fold
    if level == "patient":
        cells = patient * len(classes) + truth
        cells, first, unit, n_images = np.unique(
            cells, return_index=True, return_inverse=True, return_counts=True
        )
        fold = fold[first]
        sums = np.zeros((len(cells), len(classes)))
        np.add.at(sums, unit, probability)
        probability = sums / n_images[:, None]
        patient, truth = np.divmod(cells, len(classes))
    columns = np.unique(truth)
    place = np.full(len(classes), len(columns))
    place[columns] = np.arange(len(columns))
    calibrated = None
    if predictions.is_calibrated:
        calibrated = class_units(predictions.calibrated(), level=level, masked=masked)
    return ClassUnits(
        classes=tuple(classes[code] for code in columns),
        patient=patient,
        truth=place[truth],
        predicted=place[probability.argmax(axis=1)],
        probability=probability,
        columns=columns,
        fold=fold,
        calibrated=calibrated,
    )
