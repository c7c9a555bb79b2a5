"""How many patients a probe needs: its score after training on 1, 2, 4, ... of them.

Patients, not images, are what a study has to find. A draw is one order of all patients; a training
set is the first of them that are not tested, so within a draw the sets are nested, and all encoders
see the same ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from embedcache.data.embeddings import LabelledEmbeddings, check_cohorts
from embedcache.data.folds import FoldTable
from embedcache.errors import RunError
from embedcache.files.arrays import Floats
from embedcache.probes.families import PROBES
from embedcache.protocol.choice import choose_by_folds
from embedcache.protocol.protocols import PROTOCOLS, check_folds, check_method, grid_of
from embedcache.protocol.task import Task
from embedcache.protocol.tasks import TASKS
from embedcache.runs.methods import ProbeMethod

N_DRAWS: Final = 10
# Fewer patients of a class or label leave nothing to choose a setting on.
_TO_CHOOSE: Final = 5


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """The score after training on so many patients.

    Parameters
    ----------
    n_patients
        Number of patients in each training set; for all of them, the median over folds.
    n_images
        Number of their images, mean over draws and folds.
    metric
        Name of the score: the headline of the task.
    scores
        Score of each draw; a class or label that the training patients lack counts as missed.
    """

    n_patients: int
    n_images: float
    metric: str
    scores: tuple[float, ...]


def learning_curve(
    train: LabelledEmbeddings,
    folds: FoldTable,
    sizes: Sequence[int] | None = None,
    *,
    task: str = "classification",
    n_draws: int = N_DRAWS,
    seed: int = 0,
    on_step: Callable[[int, int], None] = lambda *_: None,
) -> list[CurvePoint]:
    """Return the curve of the default probe of a task, in-domain, predictions pooled over folds.

    The setting is chosen by the default rule with the other folds as inner folds where every class
    or label has five patients or more, and always where all patients train; on the first draw of
    each fold and size. Else it is `Task.setting_for_few`.

    Parameters
    ----------
    train
        Training cohort; every row labelled.
    folds
        Fold of each of its patients.
    sizes
        Numbers of training patients; None for 1, 2, 4, ... All of them come last in any case.
    task
        'classification', 'regression' or 'multilabel'.
    n_draws
        Number of orders of the patients.
    seed
        Seed of the random orders in which patients are added.
    on_step
        Function called with the number of steps that are done, and that of all steps.

    Raises
    ------
    RunError
        A size that is no whole number from 1 or is more than a fold leaves, no draws, too few
        folds, or labels that are none of the task.
    """
    if n_draws < 1 or min(sizes or [1]) < 1:
        raise RunError("a learning curve needs one draw and one patient at least")
    check_cohorts(train, ())
    method = check_method(ProbeMethod(), task)
    fold = folds.of(train.patient_id)
    numbers = np.unique(fold).tolist()
    check_folds(len(numbers), PROTOCOLS[method.protocol], PROBES[method.probe].setting)
    patients = _Patients.drawn(train.patient_id, folds, n_draws, seed)
    steps = _sizes(sizes, min(map(patients.n_available, numbers)))
    learner = _Learner(TASKS[task](train, method), grid_of(method), fold)
    return list(_points(learner, patients, numbers, steps, on_step))


@dataclass(frozen=True, slots=True)
class _Patients:
    """The patients of a cohort, p of them, in several random orders.

    Parameters
    ----------
    of_image
        Number of each image's patient, shape (n,).
    fold
        Fold of each patient, shape (p,).
    orders
        Numbers of all patients, shape (p,), as each draw orders them.
    """

    of_image: NDArray[np.intp]
    fold: NDArray[np.int64]
    orders: list[NDArray[np.int64]]

    @classmethod
    def drawn(
        cls, patient_id: Sequence[str], folds: FoldTable, n_draws: int, seed: int
    ) -> _Patients:
        """Return the patients of images in `n_draws` orders."""
        names, of_image = np.unique(patient_id, return_inverse=True)
        # A stream for each draw: more draws leave the orders of the first ones as they were.
        orders = [
            np.random.default_rng([seed, draw]).permutation(len(names)) for draw in range(n_draws)
        ]
        return cls(of_image, folds.of(names.tolist()), orders)

    def n_available(self, outer: int) -> int:
        """Return how many patients can train where an outer fold is tested."""
        return int((self.fold != outer).sum())

    def training_rows(self, draw: int, outer: int, size: int | None) -> NDArray[np.intp]:
        """Return the images of the first `size` patients, or of all, that are not tested."""
        order = self.orders[draw]
        trained = order[self.fold[order] != outer][:size]
        return np.flatnonzero(np.isin(self.of_image, trained))


def _points(
    learner: _Learner,
    patients: _Patients,
    numbers: Sequence[int],
    steps: Sequence[int],
    on_step: Callable[[int, int], None],
) -> Iterator[CurvePoint]:
    """Yield the point of each size, and last that of all patients, who have one order only."""
    n_done = 0
    for size in [*steps, None]:
        n_draws = len(patients.orders) if size else 1
        for outer in numbers:
            for draw in range(n_draws):
                rows = patients.training_rows(draw, outer, size)
                learner.learn(outer, draw, rows, has_all=size is None)
            n_done += 1
            on_step(n_done, (len(steps) + 1) * len(numbers))
        available = [patients.n_available(outer) for outer in numbers]
        yield learner.point(size or int(np.median(available)), n_draws)


def _sizes(sizes: Sequence[int] | None, most: int) -> list[int]:
    """Return the numbers of training patients below all of them, ascending."""
    numbers = sizes or [1 << power for power in range(int(np.log2(most)) + 1)]
    if max(numbers) > most:
        raise RunError(f"{max(numbers)} patients asked for; a fold leaves {most} to train on")
    return [size for size in sorted(set(numbers)) if size < most]


class _Learner:
    """Fits and predicts, fold by fold and draw by draw, for one size."""

    def __init__(self, task: Task, grid: Sequence[float], fold: NDArray[np.int64]) -> None:
        self._task, self._grid, self._fold = task, grid, fold
        self._predicted: dict[int, dict[int, Floats]] = {}  # by draw and outer fold
        self._n_images: list[int] = []
        self._value = task.setting_for_few

    def learn(self, outer: int, draw: int, rows: NDArray[np.intp], *, has_all: bool) -> None:
        """Train on the images of `rows`, predict those of the outer fold."""
        if draw == 0:
            self._value = self._setting(rows, has_all=has_all)
        (path,) = self._task.fit_to_predict([(rows, [self._value])])
        tested = np.flatnonzero(self._fold == outer)
        (predicted,) = self._task.predict(path, self._task.train.X[tested])
        self._predicted.setdefault(draw, {})[outer] = predicted
        self._n_images.append(len(rows))

    def _setting(self, rows: NDArray[np.intp], *, has_all: bool) -> float:
        has_few = self._task.fewest_patients(rows) < _TO_CHOOSE
        if not has_all and (has_few or len(np.unique(self._fold[rows])) < 2):
            return self._task.setting_for_few
        return choose_by_folds(self._task, rows, self._fold, self._grid).value

    def point(self, n_patients: int, n_draws: int) -> CurvePoint:
        """Return the scores of what was learnt since the last point."""
        folds = sorted(self._predicted[0])
        tested = np.concatenate([np.flatnonzero(self._fold == outer) for outer in folds])
        predicted = np.stack(
            [
                np.concatenate([self._predicted[draw][outer] for outer in folds])
                for draw in range(n_draws)
            ]
        )
        scores = self._task.score(tested, predicted)
        n_images = float(np.mean(self._n_images))
        self._n_images.clear()
        return CurvePoint(n_patients, n_images, self._task.headline, tuple(scores.tolist()))
