"""What is predicted of an image: one class, a number, or several labels; see `Task`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from embedcache.data.embeddings import LabelledEmbeddings
from embedcache.data.labels import label_matrix, separate_labels
from embedcache.data.predictions import (
    CALLED_FROM,
    LabelSets,
    Measurements,
    Predictions,
    Role,
)
from embedcache.errors import RunError
from embedcache.files.arrays import Floats
from embedcache.probes import logistic
from embedcache.probes.calibration import fit_temperature
from embedcache.probes.families import PROBES
from embedcache.probes.multilabel import fit_multilabel
from embedcache.probes.ridge import fit_ridge_regression
from embedcache.probes.seam import Embeddings, FitSweep, Problems
from embedcache.probes.selection import macro_f1
from embedcache.protocol.protocols import PROTOCOLS, Protocol
from embedcache.protocol.search import ROUGH_TOL, LogisticSearch, MultilabelSearch, Search
from embedcache.protocol.task import Task
from embedcache.runs.methods import ProbeMethod

FIT_TOL: Final = 1e-6  # relative gap to the optimum of a probe that predicts
_LEAST: Final = 1e-12  # a class may be given nothing at all
_N_STRATA: Final = 5  # of a number, so that each fold has low and high ones


class Classification(Task):
    """One class an image."""

    name = "classification"
    is_calibrated = True
    setting_for_few = 1e-2

    def __init__(self, train: LabelledEmbeddings, method: ProbeMethod) -> None:
        super().__init__(train, method)
        self.classes = tuple(sorted(set(train.label)))
        self.y = np.searchsorted(self.classes, train.label).astype(np.int64)
        self._protocol = PROTOCOLS[method.protocol]
        self._choose, self._fit = _fitters(method.probe, self._protocol)
        self._sweep = partial(_sweep, train.X, standardize=self._protocol.standardize)

    @staticmethod
    def strata(label: Sequence[str]) -> list[str]:
        """Return the classes themselves."""
        return list(label)

    def check_labels(self, cohort: LabelledEmbeddings) -> None:
        """Raise `RunError` if a class of an external cohort is none of the training cohort."""
        unknown = sorted(set(cohort.label) - set(self.classes))
        if unknown:
            raise RunError(f"external label '{unknown[0]}' is none of {', '.join(self.classes)}")

    def fit_to_choose(self, problems: Problems) -> Sequence[Any]:
        """Return paths of classifiers, to the looser tolerance."""
        return self._choose(self.train.X, self.y, len(self.classes), problems)

    def search(self, sets: Sequence[NDArray[np.intp]], grid: Sequence[float]) -> Search:
        """Return the probes of a grid, fitted a few at a time where it is one of C."""
        if self.method.probe != "logistic":
            return super().search(sets, grid)
        return LogisticSearch(self._sweep(self.y, len(self.classes), sets, grid))

    def fit_to_predict(self, problems: Problems) -> Sequence[Any]:
        """Return paths of classifiers."""
        return self._fit(self.train.X, self.y, len(self.classes), problems)

    def predict(self, path: Any, X: Embeddings) -> Floats:
        """Return the probability of each class."""
        return np.asarray(path.probability(X))

    def score(self, rows: NDArray[np.intp], predicted: Floats) -> Floats:
        """Return the macro F1, or the accuracy in a protocol that chooses by it."""
        truth, calls = self.y[rows], predicted.argmax(axis=2)
        if self._protocol.choice != "nested":
            return np.asarray((calls == truth).mean(axis=1))
        return macro_f1(truth, calls, len(self.classes))

    def loss(self, rows: NDArray[np.intp], predicted: Floats) -> Floats:
        """Return the mean log-loss."""
        return _log_loss(predicted[:, np.arange(len(rows)), self.y[rows]])

    def grain(self, rows: NDArray[np.intp]) -> float:
        """Return what one image is of the F1 of the rarest class that occurs, and that of all."""
        return _grain(np.bincount(self.y[rows]))

    def answers(
        self,
        cohort: LabelledEmbeddings,
        predicted: Floats,
        *,
        role: Role,
        fold: NDArray[np.int64],
    ) -> Predictions:
        """Return the probability of each class."""
        return Predictions(
            role=role,
            classes=self.classes,
            image_id=cohort.image_id,
            patient_id=cohort.patient_id,
            cohort=cohort.cohort,
            label=cohort.label,
            fold=fold,
            probability=predicted,
        )

    def fewest_patients(self, rows: NDArray[np.intp]) -> int:
        """Return the number of patients of the rarest class."""
        shows = np.eye(len(self.classes), dtype=np.bool_)[self.y[rows]]
        return _fewest_patients(self.train.patient_id, rows, shows)

    def temperature(
        self, rows: NDArray[np.intp], predicted: Floats, probe: NDArray[np.int64]
    ) -> float:
        """Return the temperature with the least log-loss; see `fit_temperature`."""
        return fit_temperature(predicted, self.y[rows], probe)


class Regression(Task):
    """A number an image, by ridge regression."""

    name = "regression"
    setting_for_few = 1e3

    def __init__(self, train: LabelledEmbeddings, method: ProbeMethod) -> None:
        super().__init__(train, method)
        self.truth = targets(train.label)
        if np.ptp(self.truth) == 0:
            raise RunError(f"every training label is {train.label[0]}; there is nothing to learn")

    @staticmethod
    def strata(label: Sequence[str]) -> list[str]:
        """Return the fifth of the range of ranks; equal numbers share one."""
        values = targets(label)
        ranks = np.searchsorted(np.sort(values), values)
        return [f"fifth {rank * _N_STRATA // len(label) + 1}" for rank in ranks.tolist()]

    def check_labels(self, cohort: LabelledEmbeddings) -> None:
        """Raise `RunError` if a label is no number."""
        targets(cohort.label)

    def fit_to_choose(self, problems: Problems) -> Sequence[Any]:
        """Return paths of ridge regressions."""
        return fit_ridge_regression(self.train.X, self.truth[:, None], problems)

    def fit_to_predict(self, problems: Problems) -> Sequence[Any]:
        """Return paths of ridge regressions; the fit is exact in either case."""
        return self.fit_to_choose(problems)

    def predict(self, path: Any, X: Embeddings) -> Floats:
        """Return the number, in the unit of the labels."""
        return np.asarray(path.predict(X))

    def score(self, rows: NDArray[np.intp], predicted: Floats) -> Floats:
        """Return R2, by the variance of all training labels: a tie is the same in any unit."""
        errors = predicted[..., 0] - self.truth[rows]
        return np.asarray(1 - (errors**2).mean(axis=1) / self.truth.var())

    def loss(self, rows: NDArray[np.intp], predicted: Floats) -> Floats:
        """Return the mean squared error; it falls where R2 rises."""
        return -self.score(rows, predicted)

    def grain(self, rows: NDArray[np.intp]) -> float:
        """Return 0: errors have no steps."""
        del rows
        return 0.0

    def answers(
        self,
        cohort: LabelledEmbeddings,
        predicted: Floats,
        *,
        role: Role,
        fold: NDArray[np.int64],
    ) -> Measurements:
        """Return truth and prediction."""
        return Measurements(
            role=role,
            image_id=cohort.image_id,
            patient_id=cohort.patient_id,
            cohort=cohort.cohort,
            fold=fold,
            truth=targets(cohort.label),
            value=predicted[:, 0],
        )

    def fewest_patients(self, rows: NDArray[np.intp]) -> int:
        """Return the number of patients: a number has no rarer part."""
        return _fewest_patients(self.train.patient_id, rows, np.ones((len(rows), 1), np.bool_))


class Multilabel(Task):
    """Several labels an image, each by a probe of its own; one setting serves all of them."""

    name = "multilabel"
    setting_for_few = Classification.setting_for_few

    def __init__(self, train: LabelledEmbeddings, method: ProbeMethod) -> None:
        super().__init__(train, method)
        sets = separate_labels(train.label)
        self.names = tuple(sorted(frozenset[str]().union(*sets)))
        if not self.names:
            raise RunError("no training image has a label; every cell is '-'")
        self.truth = label_matrix(sets, self.names)
        self._choose, self._fit = _fitters(method.probe, PROTOCOLS[method.protocol])
        standardize = PROTOCOLS[method.protocol].standardize
        self._sweep = partial(_sweep, train.X, standardize=standardize)

    @staticmethod
    def strata(label: Sequence[str]) -> list[str]:
        """Return the rarest label that each image has, '-' where it has none."""
        sets = separate_labels(label)
        counts = {name: sum(name in labels for labels in sets) for name in set().union(*sets)}
        return [min(labels, key=lambda n: (counts[n], n), default="-") for labels in sets]

    def check_labels(self, cohort: LabelledEmbeddings) -> None:
        """Raise `RunError` if an image has a label that no training image has."""
        unknown = sorted(frozenset[str]().union(*separate_labels(cohort.label)) - {*self.names})
        if unknown:
            raise RunError(f"external label '{unknown[0]}' is none of {', '.join(self.names)}")

    def fit_to_choose(self, problems: Problems) -> Sequence[Any]:
        """Return paths of yes-or-no probes, to the looser tolerance."""
        return fit_multilabel(self._choose, self.train.X, self.truth, problems)

    def search(self, sets: Sequence[NDArray[np.intp]], grid: Sequence[float]) -> Search:
        """Return the probes of a grid, fitted a few at a time where it is one of C."""
        if self.method.probe != "logistic":
            return super().search(sets, grid)
        labels = self.truth.T.astype(np.int64)
        return MultilabelSearch(
            [LogisticSearch(self._sweep(label, 2, sets, grid)) for label in labels]
        )

    def fit_to_predict(self, problems: Problems) -> Sequence[Any]:
        """Return paths of yes-or-no probes."""
        return fit_multilabel(self._fit, self.train.X, self.truth, problems)

    def predict(self, path: Any, X: Embeddings) -> Floats:
        """Return the probability of each label."""
        return np.asarray(path.probability(X))

    def score(self, rows: NDArray[np.intp], predicted: Floats) -> Floats:
        """Return the macro F1 over the labels that occur; NaN where none does."""
        truth, calls = self.truth[rows], predicted >= CALLED_FROM
        of_labels = [
            _f1(truth[:, number], calls[..., number])
            for number in range(len(self.names))
            if truth[:, number].any()
        ]
        return np.mean(of_labels, axis=0) if of_labels else np.full(len(predicted), np.nan)

    def loss(self, rows: NDArray[np.intp], predicted: Floats) -> Floats:
        """Return the mean log-loss over images and labels."""
        return _log_loss(np.where(self.truth[rows], predicted, 1 - predicted))

    def grain(self, rows: NDArray[np.intp]) -> float:
        """Return what one image is of the F1 of the rarest label that occurs, and that of all."""
        return _grain(self.truth[rows].sum(axis=0))

    def answers(
        self,
        cohort: LabelledEmbeddings,
        predicted: Floats,
        *,
        role: Role,
        fold: NDArray[np.int64],
    ) -> LabelSets:
        """Return the probability of each label."""
        return LabelSets(
            role=role,
            names=self.names,
            image_id=cohort.image_id,
            patient_id=cohort.patient_id,
            cohort=cohort.cohort,
            fold=fold,
            truth=label_matrix(separate_labels(cohort.label), self.names),
            probability=predicted,
        )

    def fewest_patients(self, rows: NDArray[np.intp]) -> int:
        """Return the number of patients of the rarest label."""
        return _fewest_patients(self.train.patient_id, rows, self.truth[rows])


TASKS: Final[Mapping[str, type[Task]]] = MappingProxyType(
    {task.name: task for task in (Classification, Regression, Multilabel)}
)


def strata(task: str, label: Sequence[str]) -> list[str]:
    """Return what folds are stratified by, one an image.

    Parameters
    ----------
    task
        'classification': the class; 'regression': the fifth of the range of ranks; 'multilabel':
        the rarest label of the image.
    label
        Label of each image.

    Raises
    ------
    RunError
        A label that is none of the task; names it.
    """
    return TASKS[task].strata(label)


def targets(label: Sequence[str]) -> Floats:
    """Return labels as numbers, shape (n,).

    Raises
    ------
    RunError
        A label that is no finite number; names it.
    """
    values = []
    for text in label:
        try:
            values.append(float(text))
        except ValueError:
            values.append(np.nan)
        if not np.isfinite(values[-1]):
            raise RunError(f"label '{text}' is no number; leave it out with --where")
    return np.array(values)


def _fitters(probe: str, protocol: Protocol) -> tuple[FitSweep, FitSweep]:
    """Return the fit of the probes that help to choose, and that of those that predict."""
    if probe != "logistic":
        return PROBES[probe].fit_sweep, PROBES[probe].fit_sweep
    fit = partial(logistic.fit_sweep, standardize=protocol.standardize)
    return partial(fit, tol=ROUGH_TOL), partial(fit, tol=FIT_TOL)


def _sweep(
    X: Embeddings,
    y: NDArray[np.int64],
    n_classes: int,
    sets: Sequence[NDArray[np.intp]],
    grid: Sequence[float],
    *,
    standardize: bool,
) -> logistic.Sweep:
    """Return the logistic regressions of a grid, ready to be solved."""
    problems = [(rows, grid) for rows in sets]
    return logistic.Sweep(X, y, n_classes, problems, standardize=standardize)


def _log_loss(of_truth: Floats) -> Floats:
    """Return the mean log-loss of each value, given the probability of what is true."""
    losses = -np.log(np.maximum(of_truth, _LEAST))
    return np.asarray(losses.reshape(len(losses), -1).mean(axis=1))


def _grain(counts: NDArray[np.int64]) -> float:
    """Return how much of a mean of F1 scores one image can make, by images of each class."""
    occurring = counts[counts > 0]
    return 1 / (len(occurring) * float(occurring.min())) if occurring.size else 0.0


def _fewest_patients(
    patient_id: Sequence[str], rows: NDArray[np.intp], shows: NDArray[np.bool_]
) -> int:
    """Return the least number of patients over the columns of `shows`, shape (n, columns)."""
    patient = np.unique([patient_id[row] for row in rows], return_inverse=True)[1]
    return min(len(np.unique(patient[column])) for column in shows.T)


def _f1(truth: NDArray[np.bool_], called: NDArray[np.bool_]) -> Floats:
    """Return the F1 of several calls of one label, shape (m,)."""
    return np.asarray(2 * (called & truth).sum(axis=1) / (called.sum(axis=1) + truth.sum()))
