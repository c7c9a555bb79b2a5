"""Which value of a setting to fit with: chosen on inner patients, or as others choose it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from embedcache.errors import RunError
from embedcache.files.arrays import Floats
from embedcache.probes.seam import Problems
from embedcache.probes.selection import Rule, pick
from embedcache.protocol.protocols import Protocol
from embedcache.protocol.task import Task

_TENTH: Final = 0.1


@dataclass(frozen=True, slots=True)
class Chosen:
    """What was chosen for one training set.

    Parameters
    ----------
    value
        Value of the setting.
    score
        Its score on what was held out for the choice.
    temperature
        Temperature fitted on the same predictions; None where the task or the protocol has none.
    """

    value: float
    score: float
    temperature: float | None = None


def held_out(
    fit: Callable[[Problems], Sequence[Any]],
    predict: Callable[[Any, NDArray[np.intp]], Floats],
    fold: NDArray[np.int64],
    grid: Sequence[float],
) -> Iterator[tuple[NDArray[np.intp], Floats]]:
    """Yield for each outer fold the rows outside it, and the inner probes' predictions of them.

    What is fitted without folds i and j serves outer fold i and outer fold j, so K (K - 1) / 2
    training sets do the whole selection. Every row outside an outer fold is predicted once, by the
    probe that saw neither its fold nor the outer one.

    Parameters
    ----------
    fit
        Function that returns a path for each problem.
    predict
        Function that returns a path's predictions of rows, shape (len(grid), n, width).
    fold
        Fold of each row, shape (n,).
    grid
        Values to fit.
    """
    numbers = np.unique(fold).tolist()
    pairs = list(combinations(numbers, 2))
    sets = [(np.flatnonzero((fold != i) & (fold != j)), grid) for i, j in pairs]
    paths = dict(zip(map(frozenset, pairs), fit(sets), strict=True))
    for outer in numbers:
        inner = [number for number in numbers if number != outer]
        rows = [np.flatnonzero(fold == number) for number in inner]
        predicted = [
            predict(paths[frozenset({outer, number})], part)
            for number, part in zip(inner, rows, strict=True)
        ]
        yield np.concatenate(rows), np.concatenate(predicted, axis=1)


def choose_nested(
    task: Task, fold: NDArray[np.int64], grid: Sequence[float], rule: Rule = "tie"
) -> list[Chosen]:
    """Choose for each outer fold, by one score of the pooled inner predictions.

    Parameters
    ----------
    task
        Task with its training cohort.
    fold
        Fold of each training image, shape (n,).
    grid
        Values to choose from, the smoothest probe first.
    rule
        Rule of a near tie; see `pick`.
    """
    X = task.train.X
    parts = held_out(task.fit_to_choose, lambda path, rows: task.predict(path, X[rows]), fold, grid)
    return [_best(task, rows, predicted, fold, grid, rule) for rows, predicted in parts]


def choose_by_folds(
    task: Task,
    rows: NDArray[np.intp],
    fold: NDArray[np.int64],
    grid: Sequence[float],
    rule: Rule = "tie",
) -> Chosen:
    """Choose once, each fold held out in turn.

    Parameters
    ----------
    task
        Task with its training cohort.
    rows
        Training images that choose, ascending, shape (m,).
    fold
        Fold of each training image, shape (n,).
    grid
        Values to choose from, the smoothest probe first.
    rule
        Rule of a near tie; see `pick`.
    """
    numbers = np.unique(fold[rows]).tolist()
    paths = task.fit_to_choose([(rows[fold[rows] != number], grid) for number in numbers])
    parts = []
    for number, path in zip(numbers, paths, strict=True):
        parts.append(task.predict(path, task.train.X[rows[fold[rows] == number]]))
    order = np.argsort(fold[rows], kind="stable")  # of the rows, as the parts stand in a line
    predicted = np.empty((len(grid), len(rows), parts[0].shape[2]))
    predicted[:, order] = np.concatenate(parts, axis=1)
    return _best(task, rows, predicted, fold, grid, rule)


def _best(
    task: Task,
    rows: NDArray[np.intp],
    predicted: Floats,
    fold: NDArray[np.int64],
    grid: Sequence[float],
    rule: Rule,
) -> Chosen:
    scores = task.score(rows, predicted)
    fold_scores = _fold_scores(task, rows, predicted, fold[rows]) if rule == "one-se" else None
    best = pick(scores, fold_scores, rule=rule)
    temperature = task.temperature(rows, predicted[best])
    return Chosen(float(grid[best]), float(scores[best]), temperature)


def _fold_scores(
    task: Task, rows: NDArray[np.intp], predicted: Floats, fold: NDArray[np.int64]
) -> Floats:
    """Return the score by value and inner fold; a fold on which it is not defined is left out."""
    by_fold = np.stack(
        [task.score(rows[fold == j], predicted[:, fold == j]) for j in np.unique(fold)], axis=1
    )
    defined = by_fold[:, ~np.isnan(by_fold).any(axis=0)]
    if defined.shape[1] < 2:
        raise RunError(
            f"{defined.shape[1]} inner folds have a {task.headline} to take the standard error "
            "of; pass --rule tie"
        )
    return defined


def choose_as_others(
    protocol: Protocol, task: Task, rows: NDArray[np.intp], grid: Sequence[float], seed: int
) -> Chosen:
    """Choose on a tenth of the training images, drawn at random: frames of a patient on both sides.

    Parameters
    ----------
    protocol
        Protocol that chooses by 'random-tenth' or 'halving'.
    task
        Task with its training cohort.
    rows
        Training images that choose, shape (m,); a draw depends on their order.
    grid
        Values, ascending. 'random-tenth' tries all of them; 'halving' every 16th, then halves its
        step around the best until it has tried neighbours.
    seed
        Seed of the draw of the tenth.
    """
    shuffled = np.random.default_rng(seed).permutation(rows)
    validation = shuffled[: max(1, round(_TENTH * len(rows)))]
    training = np.setdiff1d(rows, validation)
    scores: dict[int, float] = {}

    def try_places(places: Sequence[int]) -> int:
        """Score places of the grid that were not scored yet; return the best so far."""
        new = sorted(set(places) - set(scores))
        if new:
            (path,) = task.fit_to_choose([(training, [grid[place] for place in new])])
            values = task.score(validation, task.predict(path, task.train.X[validation]))
            scores.update(zip(new, values.tolist(), strict=True))
        return max(scores, key=lambda place: (scores[place], -place))

    step = 1 if protocol.choice == "random-tenth" else 16
    best = try_places(range(0, len(grid), step))
    while step > 1:
        step //= 2
        best = try_places([at for at in (best - step, best + step) if 0 <= at < len(grid)])
    return Chosen(float(grid[best]), scores[best])
