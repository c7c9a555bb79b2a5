"""How many patients a probe needs: its score after training on 1, 2, 4, ... of them.

Patients, not images, are what a study has to find. A draw is one order of all patients; a training
set is the first of them that are not tested, so within a draw the sets are nested, and all encoders
see the same ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from embedcache.data.embeddings import LabelledEmbeddings
from embedcache.data.folds import FoldTable
from embedcache.errors import RunError
from embedcache.probes.logistic import C_GRID
from embedcache.probes.selection import macro_f1
from embedcache.protocol.choice import choose_by_folds, fitters
from embedcache.protocol.protocols import PROTOCOLS

N_DRAWS: Final = 10
# Fewer patients of a class leave nothing to choose C on.
_TO_CHOOSE: Final = 5
_FEW_C: Final = 1e-2


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """The score after training on so many patients.

    Parameters
    ----------
    n_patients
        In each training set; for all of them, the median over folds.
    n_images
        Their images, mean over draws and folds.
    macro_f1
        Of each draw, over all classes: one that the training patients lack scores 0.
    """

    n_patients: int
    n_images: float
    macro_f1: tuple[float, ...]


def learning_curve(
    train: LabelledEmbeddings,
    folds: FoldTable,
    sizes: Sequence[int] | None = None,
    *,
    n_draws: int = N_DRAWS,
    seed: int = 0,
    on_step: Callable[[int, int], None] = lambda *_: None,
) -> list[CurvePoint]:
    """Return the curve of logistic probes, in-domain, predictions pooled over folds.

    C is chosen by the default rule with the other folds as inner folds where every class has five
    patients or more, and always where all patients train; on the first draw of each fold and size.
    Else it is 0.01.

    Parameters
    ----------
    train
        The training cohort.
    folds
        The fold of each of its patients.
    sizes
        Numbers of patients; None: 1, 2, 4, ... All of them come last in any case.
    n_draws, seed
        Orders of the patients.
    on_step
        Told how many of all steps are done.

    Raises
    ------
    RunError
        A size that is no whole number from 1, or no draws.
    """
    if n_draws < 1 or min(sizes or [1]) < 1:
        raise RunError("a learning curve needs one draw and one patient at least")
    names, patient = np.unique(train.patient_id, return_inverse=True)
    fold = folds.of(train.patient_id)
    fold_of = folds.of(names.tolist())
    numbers = np.unique(fold).tolist()
    available = [int((fold_of != outer).sum()) for outer in numbers]
    wanted = sizes or [1 << power for power in range(int(np.log2(min(available))) + 1)]
    if max(wanted) > min(available):
        raise RunError(
            f"{max(wanted)} patients asked for; a fold leaves {min(available)} to train on"
        )
    steps = [size for size in sorted(set(wanted)) if size < min(available)]
    orders = [
        np.random.default_rng([seed, draw]).permutation(len(names)) for draw in range(n_draws)
    ]
    learner = _Learner(train, patient, fold)
    points, done = [], 0
    for size in [*steps, None]:
        drawn = orders if size else orders[:1]
        for outer in numbers:
            for draw, order in enumerate(drawn):
                chosen = order[fold_of[order] != outer][:size]
                learner.learn(outer, draw, np.isin(patient, chosen), choose=size is None)
            done += 1
            on_step(done, (len(steps) + 1) * len(numbers))
        points.append(learner.point(size or int(np.median(available)), len(drawn)))
    return points


class _Learner:
    """Fits and predicts, fold by fold and draw by draw, for one size."""

    def __init__(
        self, train: LabelledEmbeddings, patient: NDArray[np.intp], fold: NDArray[np.int64]
    ) -> None:
        classes, self._y = np.unique(train.label, return_inverse=True)
        self._X, self._patient, self._fold, self._k = train.X, patient, fold, len(classes)
        self._choose, self._fit = fitters("logistic", PROTOCOLS["default"])
        self._predicted: dict[int, NDArray[np.int64]] = {}
        self._n_images: list[int] = []
        self._C = _FEW_C

    def learn(self, outer: int, draw: int, used: NDArray[np.bool_], *, choose: bool) -> None:
        """Train on some images, predict those of the outer fold."""
        if draw == 0:
            self._C = self._strength(np.flatnonzero(used), choose=choose)
        (path,) = self._fit(self._X, self._y, self._k, [(np.flatnonzero(used), [self._C])])
        tested = np.flatnonzero(self._fold == outer)
        predicted = self._predicted.setdefault(draw, np.zeros(len(self._y), np.int64))
        predicted[tested] = path.probability(self._X[tested])[0].argmax(axis=1)
        self._n_images.append(int(used.sum()))

    def _strength(self, rows: NDArray[np.intp], *, choose: bool) -> float:
        y, fold = self._y[rows], self._fold[rows]
        pairs = np.unique(np.column_stack([y, self._patient[rows]]), axis=0)
        per_class = np.bincount(pairs[:, 0], minlength=self._k)
        if not choose and (per_class.min() < _TO_CHOOSE or len(np.unique(fold)) < 2):
            return _FEW_C
        return choose_by_folds(self._choose, self._X[rows], y, self._k, fold, C_GRID).value

    def point(self, n_patients: int, n_draws: int) -> CurvePoint:
        """Return the scores of what was learnt since the last point."""
        predicted = np.stack([self._predicted[draw] for draw in range(n_draws)])
        scores = macro_f1(self._y, predicted, self._k)
        point = CurvePoint(n_patients, float(np.mean(self._n_images)), tuple(scores.tolist()))
        self._n_images.clear()
        return point
