"""Which value of a setting to fit with: chosen on inner patients, or as others choose it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from embedcache.probes import logistic
from embedcache.probes.calibration import fit_temperature
from embedcache.probes.families import PROBES
from embedcache.probes.multilabel import MultiLabelPath
from embedcache.probes.seam import Embeddings, FitSweep, Floats, Path, Problems
from embedcache.probes.selection import Rule, macro_f1, pick
from embedcache.protocol.protocols import Protocol

# Relative gaps to the optimum. A refit is held to more than a fit that helps to choose C, which
# chose the same from 1e-3 to 1e-5.
CHOICE_TOL: Final = 1e-4
FIT_TOL: Final = 1e-6
_TENTH: Final = 0.1


@dataclass(frozen=True, slots=True)
class Chosen:
    """What was chosen for one training set.

    Parameters
    ----------
    value
        Of the setting.
    score
        Its score on what was held out for the choice.
    temperature
        Fitted on the same; None where the protocol has no inner folds.
    """

    value: float
    score: float
    temperature: float | None = None


def fitters(probe: str, protocol: Protocol) -> tuple[FitSweep, FitSweep]:
    """Return what fits a probe to choose with, and what fits the one that predicts."""
    if probe != "logistic":
        return PROBES[probe].fit_sweep, PROBES[probe].fit_sweep
    fit = partial(logistic.fit_sweep, standardise=protocol.standardise)
    return partial(fit, tol=CHOICE_TOL), partial(fit, tol=FIT_TOL)


def certificates(path: Path | MultiLabelPath) -> Iterator[float]:
    """Yield the certificate of each logistic probe on a path of one value."""
    for one in path.paths if isinstance(path, MultiLabelPath) else (path,):
        if isinstance(one, logistic.LogisticPath):
            yield float(one.gap[0])


def gap_notes(gaps: Sequence[float]) -> Iterator[str]:
    """Say it where a probe that predicts was not certified to `FIT_TOL`."""
    if gaps and max(gaps) > FIT_TOL:
        yield (
            f"a probe is certified to {max(gaps):.1e} of its optimum only, not to {FIT_TOL:g}; "
            "smaller C are easier"
        )


def held_out(
    fit: Callable[[Problems], Sequence[Any]],
    predict: Callable[[Any, NDArray[np.intp]], Floats],
    fold: NDArray[np.int64],
    grid: Sequence[float],
) -> Iterator[tuple[NDArray[np.intp], Floats]]:
    """Yield for each outer fold the rows outside it, and what inner probes say of them.

    What is fitted without folds i and j serves outer fold i and outer fold j, so K (K - 1) / 2
    training sets do the whole selection. Every row outside an outer fold is predicted once, by the
    probe that saw neither its fold nor the outer one.

    Parameters
    ----------
    fit
        Returns a path for each problem.
    predict
        Says what a path makes of some rows, shape (len(grid), n, width).
    fold
        Of each row, shape (n,).
    grid
        Values to fit.
    """
    numbers = np.unique(fold).tolist()
    pairs = list(combinations(numbers, 2))
    sets = [(np.flatnonzero((fold != i) & (fold != j)), grid) for i, j in pairs]
    paths = dict(zip(map(frozenset, pairs), fit(sets), strict=True))
    for outer in numbers:
        others = [number for number in numbers if number != outer]
        rows = [np.flatnonzero(fold == inner) for inner in others]
        said = [
            predict(paths[frozenset({outer, inner})], part)
            for inner, part in zip(others, rows, strict=True)
        ]
        yield np.concatenate(rows), np.concatenate(said, axis=1)


def choose_nested(
    fit: FitSweep,
    X: Embeddings,
    y: NDArray[np.int64],
    n_classes: int,
    fold: NDArray[np.int64],
    grid: Sequence[float],
    rule: Rule = "tie",
) -> list[Chosen]:
    """Choose for each outer fold, by one macro F1 of the pooled inner predictions."""
    parts = held_out(
        lambda problems: fit(X, y, n_classes, problems),
        lambda path, rows: path.probability(X[rows]),
        fold,
        grid,
    )
    return [_best(said, y[rows], fold[rows], grid, rule) for rows, said in parts]


def choose_by_folds(
    fit: FitSweep,
    X: Embeddings,
    y: NDArray[np.int64],
    n_classes: int,
    fold: NDArray[np.int64],
    grid: Sequence[float],
    rule: Rule = "tie",
) -> Chosen:
    """Choose once, each fold held out in turn."""
    probability = np.zeros((len(grid), len(y), n_classes))
    numbers = np.unique(fold).tolist()
    sets = [(np.flatnonzero(fold != number), grid) for number in numbers]
    for number, path in zip(numbers, fit(X, y, n_classes, sets), strict=True):
        rows = np.flatnonzero(fold == number)
        probability[:, rows] = path.probability(X[rows])
    return _best(probability, y, fold, grid, rule)


def _best(
    probability: Floats,
    y: NDArray[np.int64],
    fold: NDArray[np.int64],
    grid: Sequence[float],
    rule: Rule,
) -> Chosen:
    predicted, n_classes = probability.argmax(axis=2), probability.shape[2]
    scores = macro_f1(y, predicted, n_classes)
    by_fold = np.stack(
        [macro_f1(y[fold == j], predicted[:, fold == j], n_classes) for j in np.unique(fold)],
        axis=1,
    )
    best = pick(scores, by_fold, rule=rule)
    temperature = fit_temperature(probability[best], y)
    return Chosen(float(grid[best]), float(scores[best]), temperature)


def choose_as_others(
    protocol: Protocol,
    fit: FitSweep,
    X: Embeddings,
    y: NDArray[np.int64],
    n_classes: int,
    rows: NDArray[np.intp],
    grid: Sequence[float],
    seed: int,
) -> Chosen:
    """Choose on a tenth of the training images, drawn at random: frames of a patient on both sides.

    Parameters
    ----------
    rows
        The training images.
    grid
        Ascending. 'random-tenth' tries all of it; 'halving' every 16th, then halves its step around
        the best until it has tried neighbours.
    seed
        Of the draw.
    """
    held = np.random.default_rng(seed).permutation(rows)[: max(1, round(_TENTH * len(rows)))]
    kept = np.setdiff1d(rows, held)
    accuracy: dict[int, float] = {}

    def score(places: Sequence[int]) -> None:
        new = sorted(set(places) - set(accuracy))
        if new:
            (path,) = fit(X, y, n_classes, [(kept, [grid[place] for place in new])])
            right = (path.probability(X[held]).argmax(axis=2) == y[held]).mean(axis=1)
            accuracy.update(zip(new, right.tolist(), strict=True))

    step = 1 if protocol.choice == "random-tenth" else 16
    score(range(0, len(grid), step))
    while step > 1:
        step //= 2
        best = max(accuracy, key=lambda place: (accuracy[place], -place))
        score([place for place in (best - step, best + step) if 0 <= place < len(grid)])
    best = max(accuracy, key=lambda place: (accuracy[place], -place))
    return Chosen(float(grid[best]), accuracy[best])
