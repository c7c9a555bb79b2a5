"""Multinomial logistic regression: all training sets and all strengths of a sweep, together.

The objective is that of scikit-learn's `StandardScaler` and `LogisticRegression`: the weighted sum
of log-losses plus ||W||^2 / (2 C), the intercept free, on features standardised by the training
set's own mean and deviation; of two classes one has weights, of more all do. Divided by the sum of
weights it reads, for alpha = 1 / (C sum of weights),

    f(W, b) = weighted mean log-loss + alpha / 2 ||W||^2.

Every answer carries a certificate. At its best b, f is alpha-strongly convex in W, so it is at most
||dW f||^2 / (2 alpha) above its least value (Boyd and Vandenberghe 2004, section 9.1.2). A Newton
step in b comes before the last look; what it leaves, e, the squared length of the next one, adds e
for the intercepts, twice its second-order expansion, and at most sqrt(L e) to ||dW f||, L being the
largest curvature of the loss by W.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax
from threadpoolctl import threadpool_limits

from embedcache.errors import RunError
from embedcache.files.arrays import AnyFloats, Floats
from embedcache.files.cores import usable_cores
from embedcache.probes.lbfgs import minimise
from embedcache.probes.objective import Objective
from embedcache.probes.scaling import Scaler
from embedcache.probes.seam import Problems
from embedcache.probes.training_sets import ClassWeight, TrainingSets, training_sets

# C = 10^-5 ... 10^0.5; on z-scored features larger values no longer change the held-out score.
C_GRID: Final = tuple(float(10.0**e) for e in np.arange(-5.0, 0.75, 0.5))
TOL: Final = 1e-5
_STATE_BYTES: Final = 1 << 25  # one vector over all problems that are solved together
_TOGETHER: Final = 16  # values of C; more go in turns, each started where the last ones lead
STEP: Final = 3
_SMALL_TOL: Final = 1e-3
_MOST_PASSES: Final = {np.dtype(np.float32): 1000, np.dtype(np.float64): 20_000}


@dataclass(frozen=True, slots=True)
class LogisticPath:
    """The probes of one training set, one for each C.

    Parameters
    ----------
    values
        Values of C, shape (m,).
    scaler
        Mean and deviation of the training set.
    coef
        Weights of standardised features, shape (m, k, d); zero for a class not trained on.
    intercept
        Intercepts, shape (m, k); minus infinity for a class not trained on.
    gap
        Certificate: bound on the objective's relative distance from its optimum, shape (m,).
    n_passes
        Number of readings of the rows that each took, shape (m,).
    """

    values: Floats
    scaler: Scaler = field(repr=False)
    coef: Floats = field(repr=False)
    intercept: Floats = field(repr=False)
    gap: Floats
    n_passes: NDArray[np.int64]

    def logits(self, X: AnyFloats) -> Floats:
        """Return the logits by C, row and class, shape (m, n, k)."""
        m, k, d = self.coef.shape
        # Centred first: a large mean would swamp the digits that tell rows apart.
        flat = (X - self.scaler.mean) @ (self.coef * self.scaler.inverse).reshape(m * k, d).T
        return np.asarray(flat.reshape(len(X), m, k).transpose(1, 0, 2) + self.intercept[:, None])

    def probability(self, X: AnyFloats) -> Floats:
        """Return the probability by C, row and class, shape (m, n, k), float64."""
        return np.asarray(softmax(self.logits(X), axis=2))


def fit_sweep(
    X: AnyFloats,
    y: NDArray[np.int64],
    n_classes: int,
    problems: Problems,
    *,
    tol: float = TOL,
    sample_weight: Floats | None = None,
    class_weight: ClassWeight = None,
    standardize: bool = True,
    n_threads: int | None = None,
) -> list[LogisticPath]:
    """Fit one probe for each training set and each C.

    Parameters
    ----------
    X, y
        Features, finite, shape (n, d), and class of each row, 0 to n_classes - 1, shape (n,).
    n_classes
        Number of classes, whether or not a training set holds all of them.
    problems
        Training rows, and the values of C, ascending, to fit on them.
    tol
        Relative gap to the optimum at which a probe is done. Where not even float64 reaches it,
        `LogisticPath.gap` is larger.
    sample_weight
        Weight of each row, at least 0, shape (n,); a row of weight 2 counts as two, of 0 as none.
    class_weight
        Weight of each class by its number; 'balanced' for n / (k n_c), by training set.
    standardize
        Whether features are divided by their deviation; if not, the objective is scikit-learn's on
        the features as they are: they are centred all the same, which moves the intercept only.
    n_threads
        Number of threads, on which no answer depends; None for one a processor that may be used.

    Returns
    -------
    For each problem its probes, in the order of its C.
    """
    weight = np.ones(len(y)) if sample_weight is None else np.asarray(sample_weight, np.float64)
    settings = _Settings(tol, weight, class_weight, standardize, n_threads)
    turns = _turns(problems, n_classes, X.shape[1])
    parts = zip(*_fit(X, y, n_classes, problems, turns, settings), strict=True)
    return [_joined(list(path_parts)) for path_parts in parts]


def climb(
    X: AnyFloats,
    y: NDArray[np.int64],
    n_classes: int,
    problems: Problems,
    *,
    tol: float = TOL,
    standardize: bool = True,
) -> Iterator[list[LogisticPath]]:
    """Fit as `fit_sweep` does, a few C at a time: who has seen enough asks for no more.

    Parameters
    ----------
    X, y, n_classes, problems, tol, standardize
        See `fit_sweep`.

    Yields
    ------
    For each problem the probes of its next `STEP` values of C.
    """
    settings = _Settings(tol, np.ones(len(y)), None, standardize, None)
    turns = _turns(problems, n_classes, X.shape[1], most=STEP)
    yield from _fit(X, y, n_classes, problems, turns, settings)


@dataclass(frozen=True, slots=True)
class _Settings:
    """Parameters of `fit_sweep` that say what is fitted, and how far; `weight` for each row."""

    tol: float
    weight: Floats
    class_weight: ClassWeight
    standardize: bool
    n_threads: int | None


def _turns(
    problems: Problems, n_classes: int, n_features: int, most: int | None = None
) -> list[NDArray[np.intp]]:
    """Return the places in a grid that are solved together, turn by turn.

    A turn holds as many strengths as memory allows for one vector over its problems. Where `most`
    does not say otherwise, a grid of up to `_TOGETHER` strengths may be one turn; a longer one goes
    in turns of half of that at most, for each later turn starts near its answers and needs few
    passes.
    """
    n_values = max((len(C) for _, C in problems), default=0)
    vector_bytes = max(1, n_classes - 1) * (n_features + 1) * np.dtype(np.float32).itemsize
    fit_in_memory = max(1, _STATE_BYTES // (vector_bytes * max(1, len(problems))))
    preferred = most or (n_values if n_values <= _TOGETHER else _TOGETHER // 2)
    return np.array_split(np.arange(n_values), math.ceil(n_values / min(fit_in_memory, preferred)))


def _fit(
    X: AnyFloats,
    y: NDArray[np.int64],
    n_classes: int,
    problems: Problems,
    turns: Sequence[NDArray[np.intp]],
    settings: _Settings,
) -> Iterator[list[LogisticPath]]:
    """Yield for each problem the probes of the strengths of each turn."""
    training = _training_rows(problems, settings.weight)
    with ThreadPoolExecutor(settings.n_threads or usable_cores()) as pool:
        groups = list(_groups(training, X.shape[1], y))
        solvers = []
        for _, numbers in groups:
            rows = [training[number] for number in numbers]
            values = [np.asarray(problems[number][1], np.float64) for number in numbers]
            with threadpool_limits(1, "blas"):
                sets = training_sets(
                    X,
                    y,
                    settings.weight,
                    rows,
                    settings.class_weight,
                    standardize=settings.standardize,
                )
            is_constant = sets.prior.shape[1] == 1
            solvers.append(
                _constant(sets, values, turns)
                if is_constant
                else _solve(sets, values, turns, settings.tol, pool)
            )
        for _ in turns:
            paths: dict[int, LogisticPath] = {}
            for (classes, numbers), solver in zip(groups, solvers, strict=True):
                with threadpool_limits(1, "blas"):
                    solved = next(solver)
                for number, path in zip(numbers, solved, strict=True):
                    paths[number] = _among_all(path, classes, n_classes)
            yield [paths[number] for number in range(len(problems))]


def _training_rows(problems: Problems, weight: Floats) -> list[NDArray[np.intp]]:
    """Return the rows of each problem whose weight is not 0."""
    training = [rows[weight[rows] > 0] for rows, _ in problems]
    if not all(len(C) and np.all(np.diff(C) > 0) for _, C in problems):
        raise ValueError("the values of C of a problem are none, or do not ascend")
    if not all(map(len, training)):
        raise RunError("no training images to fit on; lower --folds or widen --where")
    return training


def _groups(
    training: Sequence[NDArray[np.intp]], n_features: int, y: NDArray[np.int64]
) -> Iterator[tuple[list[int], list[int]]]:
    """Yield the classes and the numbers of training sets that can be solved together."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for number, rows in enumerate(training):
        # With fewer rows than features the search is made in the rows' own space, set by set.
        alone = number if len(rows) <= n_features else -1
        groups.setdefault((alone, *np.unique(y[rows]).tolist()), []).append(number)
    for (_, *classes), numbers in groups.items():
        yield classes, numbers


def _among_all(path: LogisticPath, classes: Sequence[int], n_classes: int) -> LogisticPath:
    """Give the classes that the training set lacks their place."""
    m, _, d = path.coef.shape
    coef, intercept = np.zeros((m, n_classes, d)), np.full((m, n_classes), -np.inf)
    coef[:, classes], intercept[:, classes] = path.coef, path.intercept
    return replace(path, coef=coef, intercept=intercept)


def _joined(parts: Sequence[LogisticPath]) -> LogisticPath:
    """Return the probes of all turns as one path."""
    values, coef, intercept, gap, n_passes = (
        np.concatenate([getattr(part, name) for part in parts])
        for name in ("values", "coef", "intercept", "gap", "n_passes")
    )
    return LogisticPath(values, parts[0].scaler, coef, intercept, gap, n_passes)


def _constant(
    sets: TrainingSets, values: Sequence[Floats], turns: Sequence[NDArray[np.intp]]
) -> Iterator[list[LogisticPath]]:
    """Yield the probes of sets of a single class, where nothing has to be solved."""
    for places in turns:
        paths = []
        for scaler, strengths in zip(sets.scalers, values, strict=True):
            C = strengths[places[places < len(strengths)]]
            coef, intercept = np.zeros((len(C), 1, len(scaler.mean))), np.zeros((len(C), 1))
            gap, n_passes = np.zeros(len(C)), np.zeros(len(C), np.int64)
            paths.append(LogisticPath(C, scaler, coef, intercept, gap, n_passes))
        yield paths


def _solve(
    sets: TrainingSets,
    values: Sequence[Floats],
    turns: Sequence[NDArray[np.intp]],
    tol: float,
    pool: ThreadPoolExecutor,
) -> Iterator[list[LogisticPath]]:
    """Yield the probes of each set, turn by turn."""
    objective = Objective(sets, pool)
    set_of = np.repeat(np.arange(len(values)), [len(C) for C in values])
    place = np.concatenate([np.arange(len(C)) for C in values])
    C = np.concatenate(values)
    V = np.empty((len(C), *objective.shape))
    gap, n_passes = np.empty(len(C)), np.empty(len(C), np.int64)
    for places in turns:
        chunk = np.flatnonzero(np.isin(place, places))
        if chunk.size:
            start = _start(objective, set_of, C, V, place, chunk)
            V[chunk], gap[chunk], n_passes[chunk] = _descend(
                objective, set_of[chunk], C[chunk], start, tol
            )
        paths = []
        for number, scaler in enumerate(sets.scalers):
            members = chunk[set_of[chunk] == number]
            weights = objective.bases[number] @ V[members]
            paths.append(
                LogisticPath(
                    values=C[members],
                    scaler=scaler,
                    # The search turns features into one another, and leaves traces where nothing
                    # varies.
                    coef=(weights[..., :-1] @ objective.axes.T) * (scaler.scale > 0),
                    intercept=weights[..., -1],
                    gap=gap[members],
                    n_passes=n_passes[members],
                )
            )
        yield paths


def _start(
    objective: Objective,
    set_of: NDArray[np.intp],
    C: Floats,
    V: Floats,
    place: NDArray[np.intp],
    chunk: NDArray[np.intp],
) -> AnyFloats:
    """Return where to start: on the line through the last two strengths' answers, by log C."""
    first = int(place[chunk].min())
    if first < 2:
        return objective.at_prior(set_of[chunk])
    start = np.empty((len(chunk), *objective.shape), objective.dtype)
    for number in np.unique(set_of[chunk]):
        members = np.flatnonzero(set_of == number)
        before, last = members[first - 2], members[first - 1]
        rows = set_of[chunk] == number
        ahead = np.log(C[chunk[rows]] / C[last]) / np.log(C[last] / C[before])
        start[rows] = V[last] + np.minimum(ahead, 2.0)[:, None, None] * (V[last] - V[before])
    return start


def _descend(
    objective: Objective, set_of: NDArray[np.intp], C: Floats, V: AnyFloats, tol: float
) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """Return V, gap and passes; in float64 where float32 does not carry far enough."""
    flat = V.reshape(len(V), -1)
    # What is small is solved in float64, where a tighter gap takes milliseconds, and then every
    # prediction is the optimum's, not all but those of a few rows near a tie.
    aim = tol if flat.dtype == np.float32 else tol * _SMALL_TOL
    solution = minimise(
        objective.evaluator(set_of, C), flat, tol=aim, max_passes=_MOST_PASSES[flat.dtype]
    )
    x, gap, n_passes = solution.x.astype(np.float64), solution.bound, solution.n_passes
    unsolved = np.flatnonzero(gap > tol)
    if unsolved.size and flat.dtype == np.float32:
        again = minimise(
            objective.evaluator(set_of[unsolved], C[unsolved]),
            x[unsolved],
            tol=tol,
            max_passes=_MOST_PASSES[x.dtype],
        )
        x[unsolved], gap[unsolved] = again.x, again.bound
        n_passes[unsolved] += again.n_passes
    return x.reshape(V.shape), gap, n_passes
