"""Which value of a setting to fit with: chosen on inner patients, or as others choose it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from embedcache.errors import RunError
from embedcache.files.arrays import Floats
from embedcache.probes.selection import PAST, TIE, Rule, close_values, past_best, pick
from embedcache.protocol.protocols import PROTOCOLS, Protocol
from embedcache.protocol.search import REFINEMENTS, ROUGH_TOL, Search
from embedcache.protocol.task import Task
from embedcache.runs.methods import ProbeMethod

_TENTH: Final = 0.1
# Images of the rarest class that may be right or wrong by chance, before a score counts as worse.
_CHANCE: Final = 5


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
    skipped
        Values of the grid that had no part in it, since they could not win any more.
    """

    value: float
    score: float
    temperature: float | None = None
    skipped: tuple[float, ...] = ()


def choice_constants(method: ProbeMethod) -> dict[str, Any]:
    """Return the numbers that decide a choice beside its grid, as a record keeps them.

    They are `tol` (gaps to the optimum, one after the other), `tie`, and of a search of C `close`
    (images, by refinement), `past` (values) and `chance` (images); see docs/format.md.
    """
    if PROTOCOLS[method.protocol].choice != "nested":
        return {"tol": [ROUGH_TOL]}
    if method.probe != "logistic":
        return {"tie": TIE}
    tols, close = zip(*REFINEMENTS, strict=True)
    stop = {"past": PAST, "chance": _CHANCE}
    return {"tol": [ROUGH_TOL, *tols], "close": list(close), "tie": TIE, **stop}


# Number of a training set, and the images that its probes are asked about.
Asked = list[tuple[int, NDArray[np.intp]]]


def inner_folds(fold: NDArray[np.int64]) -> tuple[list[NDArray[np.intp]], list[Asked]]:
    """Return the training sets of a nested choice, and who predicts whom for each outer fold.

    What is fitted without folds i and j serves outer fold i and outer fold j, so K (K - 1) / 2
    training sets do the whole selection. Every row outside an outer fold is predicted once, by the
    probe that saw neither its fold nor the outer one.

    Parameters
    ----------
    fold
        Fold of each row, shape (n,).
    """
    numbers = np.unique(fold).tolist()
    pairs = list(combinations(numbers, 2))
    sets = [np.flatnonzero((fold != i) & (fold != j)) for i, j in pairs]
    asked: dict[int, Asked] = {number: [] for number in numbers}
    for place, (i, j) in enumerate(pairs):
        asked[i].append((place, np.flatnonzero(fold == j)))
        asked[j].append((place, np.flatnonzero(fold == i)))
    return sets, list(asked.values())


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
    sets, asked = inner_folds(fold)
    return _search(task, sets, [_Held(task, part, rule) for part in asked], grid)


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
    sets = [rows[fold[rows] != number] for number in numbers]
    asked = [(place, rows[fold[rows] == number]) for place, number in enumerate(numbers)]
    return _search(task, sets, [_Held(task, asked, rule)], grid)[0]


def _search(
    task: Task, sets: Sequence[NDArray[np.intp]], parts: Sequence[_Held], grid: Sequence[float]
) -> list[Chosen]:
    """Fit the grid, a few values at a time, until none of the rest can win for any of the parts.

    Values between which a choice is close are then solved further: else it might depend on rounding
    that the embeddings of tested patients have a part in, since all rows are solved together.
    """
    search = task.search(sets, grid)
    for places in search.turns:
        paths = search.fit(places)
        # A part that has seen enough looks at no more, so that no other part can change its choice.
        for part in (part for part in parts if part.is_open):
            part.take(paths)
        if not any(part.is_open for part in parts):
            break
    for tol, n_images in () if search.is_exact else REFINEMENTS:
        _refine(search, parts, len(sets), tol, n_images)
    return [part.chosen(grid) for part in parts]


def _refine(search: Search, parts: Sequence[_Held], n_sets: int, tol: float, n_images: int) -> None:
    """Solve the values between which a choice is close further, and score them again."""
    close = [part.close_places(n_images) for part in parts]
    if not any(wanted.size for wanted in close):
        return
    places = [np.empty(0, np.intp)] * n_sets
    for part, wanted in zip(parts, close, strict=True):
        for number, _ in part.asked:
            places[number] = np.union1d(places[number], wanted).astype(np.intp)
    paths = search.refine(places, tol)
    for part, wanted in zip(parts, close, strict=True):
        if wanted.size:
            part.take_again(paths, places, wanted)


class _Held:
    """Held-out images that one choice is made by, and how each value did on them so far.

    Parameters
    ----------
    task
        Task with its training cohort.
    asked
        Number of a training set, and the images that its probes are asked about, for each part.
    rule
        Rule of a near tie; see `pick`.
    """

    def __init__(self, task: Task, asked: Asked, rule: Rule) -> None:
        self.asked = asked
        self._task, self._rule = task, rule
        self._rows = np.concatenate([rows for _, rows in asked])
        self._predicted: list[Floats] = []  # by value, shape (n, width)
        self._scores, self._losses = np.empty(0), np.empty(0)

    @property
    def is_open(self) -> bool:
        """Whether a larger value may still win."""
        reach = _CHANCE * self._task.grain(self._rows)
        return not past_best(self._scores, self._losses, reach=reach)

    def take(self, paths: Sequence[Any]) -> None:
        """Score the next values, given a path of each training set."""
        predicted = self._predict(paths)
        self._predicted += list(predicted)
        self._scores = np.append(self._scores, self._task.score(self._rows, predicted))
        self._losses = np.append(self._losses, self._task.loss(self._rows, predicted))

    def close_places(self, n_images: int) -> NDArray[np.intp]:
        """Return the places between which the choice is close, to so many images, if it is."""
        reach = n_images * self._task.grain(self._rows)
        return close_values(self._scores, self._fold_scores(), rule=self._rule, reach=reach)

    def take_again(
        self,
        paths: Sequence[Any],
        places: Sequence[NDArray[np.intp]],
        wanted: NDArray[np.intp],
    ) -> None:
        """Score some values again, given a path of these places of each training set."""
        predicted = self._predict(
            paths, [np.searchsorted(places[n], wanted) for n, _ in self.asked]
        )
        for place, values in zip(wanted.tolist(), predicted, strict=True):
            self._predicted[place] = values
        self._scores[wanted] = self._task.score(self._rows, predicted)

    def _predict(
        self, paths: Sequence[Any], values: Sequence[NDArray[np.intp]] | None = None
    ) -> Floats:
        """Return what each value of the paths, or some of them, predict of the images."""
        X = self._task.train.X
        parts = [self._task.predict(paths[number], X[rows]) for number, rows in self.asked]
        if values is not None:
            parts = [part[at] for part, at in zip(parts, values, strict=True)]
        return np.concatenate(parts, axis=1)

    def chosen(self, grid: Sequence[float]) -> Chosen:
        """Choose among the values that were fitted, the first of the grid."""
        best = pick(self._scores, self._fold_scores(), rule=self._rule)
        probe = np.concatenate([np.full(len(rows), number) for number, rows in self.asked])
        return Chosen(
            float(grid[best]),
            float(self._scores[best]),
            self._task.temperature(self._rows, self._predicted[best], probe),
            tuple(grid[len(self._scores) :]),
        )

    def _fold_scores(self) -> Floats | None:
        """Return the score by value and inner fold, which the rule of one standard error needs.

        A fold on which it is not defined is left out.
        """
        if self._rule != "one-se":
            return None
        ends = np.cumsum([len(rows) for _, rows in self.asked])
        parts = np.split(np.stack(self._predicted), ends[:-1], axis=1)
        scored = zip(self.asked, parts, strict=True)
        by_fold = np.stack([self._task.score(rows, part) for (_, rows), part in scored], axis=1)
        defined = by_fold[:, ~np.isnan(by_fold).any(axis=0)]
        if defined.shape[1] < 2:
            raise RunError(
                f"{defined.shape[1]} inner folds have a {self._task.headline} to take the standard "
                "error of; pass --rule tie"
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
