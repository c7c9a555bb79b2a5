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
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax
from threadpoolctl import ThreadpoolController

from embedcache.errors import RunError
from embedcache.files.arrays import AnyFloats, Floats
from embedcache.files.cores import usable_cores
from embedcache.probes.lbfgs import minimise
from embedcache.probes.objective import Objective
from embedcache.probes.scaling import Scaler
from embedcache.probes.seam import Problems
from embedcache.probes.training_sets import (
    ClassWeight,
    TrainingSets,
    is_small,
    training_sets,
)

# C = 10^-5 ... 10^0.5; on z-scored features larger values no longer change the held-out score.
C_GRID: Final = tuple(float(10.0**e) for e in np.arange(-5.0, 0.75, 0.5))
TOL: Final = 1e-5
_STATE_BYTES: Final = 1 << 25  # one vector over all problems that are solved together
_TOGETHER: Final = 16  # values of C; more go in turns, each started where the last ones lead
_SMALL_TOL: Final = 1e-3
_SINGLE_TOL: Final = 1e-6  # float32 seldom carries further, and needs many passes to find that out
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
    """Return for each training set the path of its probes, one for each C.

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
    """
    sweep = Sweep(
        X,
        y,
        n_classes,
        problems,
        sample_weight=sample_weight,
        class_weight=class_weight,
        standardize=standardize,
        n_threads=n_threads,
    )
    parts = zip(*(sweep.solve_all(places, tol) for places in sweep.turns()), strict=True)
    return [_joined(path_parts) for path_parts in parts]


class Sweep:
    """Training sets and values of C, made ready once, then solved in turns.

    Parameters
    ----------
    X, y, n_classes, problems, sample_weight, class_weight, standardize, n_threads
        See `fit_sweep`.
    """

    def __init__(
        self,
        X: AnyFloats,
        y: NDArray[np.int64],
        n_classes: int,
        problems: Problems,
        *,
        sample_weight: Floats | None = None,
        class_weight: ClassWeight = None,
        standardize: bool = True,
        n_threads: int | None = None,
    ) -> None:
        weight = np.ones(len(y)) if sample_weight is None else np.asarray(sample_weight, np.float64)
        training = _training_rows(problems, weight)
        self._n_classes, self._n_threads = n_classes, n_threads or usable_cores()
        self._values = [np.asarray(C, np.float64) for _, C in problems]
        self._is_small = is_small(*X.shape)
        self._vector_bytes = max(1, n_classes - 1) * (X.shape[1] + 1) * 4  # of float32
        self._solvers: list[tuple[list[int], list[int], _Solver | _Constant]] = []
        with self._threads() as pool:
            for classes, numbers in _groups(training, X.shape[1], y):
                rows = [training[number] for number in numbers]
                values = [self._values[number] for number in numbers]
                sets = training_sets(X, y, weight, rows, class_weight, standardize=standardize)
                is_constant = sets.prior.shape[1] == 1
                solver = _Constant(sets, values) if is_constant else _Solver(sets, values, pool)
                self._solvers.append((classes, numbers, solver))

    def turns(self, most: int | None = None) -> list[NDArray[np.intp]]:
        """Return the places of the grid that are solved together, turn by turn.

        A turn holds as many strengths as memory allows for one vector over its problems, and
        `most` at most, unless so few rows are solved in no time. Where `most` is None, a grid of up
        to `_TOGETHER` strengths may be one turn; a longer one goes in turns of half of that at
        most, for each later turn starts near its answers and needs few passes.
        """
        n_values, n_sets = max(map(len, self._values)), len(self._values)
        fit_in_memory = max(1, _STATE_BYTES // (self._vector_bytes * n_sets))
        usual = n_values if n_values <= _TOGETHER else _TOGETHER // 2
        preferred = usual if most is None or self._is_small else most
        n_turns = math.ceil(n_values / min(fit_in_memory, preferred))
        return np.array_split(np.arange(n_values), n_turns)

    def solve(self, places: Sequence[NDArray[np.intp]], tol: float) -> list[LogisticPath]:
        """Solve values of each problem, each from where it was left or where the last ones lead.

        Parameters
        ----------
        places
            Places of the values in the grid of each problem, ascending.
        tol
            Relative gap to the optimum; see `fit_sweep`.

        Returns
        -------
        For each problem the probes of these values.
        """
        paths: dict[int, LogisticPath] = {}
        with self._threads() as pool:
            for classes, numbers, solver in self._solvers:
                solved = solver.solve([places[number] for number in numbers], tol, pool)
                for number, path in zip(numbers, solved, strict=True):
                    paths[number] = _among_all(path, classes, self._n_classes)
        return [paths[number] for number in range(len(paths))]

    def solve_all(self, places: NDArray[np.intp], tol: float) -> list[LogisticPath]:
        """Solve the same places of every problem, where its grid has them."""
        return self.solve([places[places < len(C)] for C in self._values], tol)

    @contextmanager
    def _threads(self) -> Iterator[ThreadPoolExecutor]:
        with ThreadPoolExecutor(self._n_threads) as pool, _blas().limit(limits=1, user_api="blas"):
            yield pool


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


@cache
def _blas() -> ThreadpoolController:
    # To find the libraries takes longer than a small fit.
    return ThreadpoolController()


@dataclass(frozen=True, slots=True)
class _Constant:
    """Sets of a single class, where nothing has to be solved."""

    sets: TrainingSets
    values: Sequence[Floats]

    def solve(
        self, places: Sequence[NDArray[np.intp]], tol: float, pool: ThreadPoolExecutor
    ) -> Iterator[LogisticPath]:
        """Yield the probes of each set; see `_Solver.solve`."""
        del tol, pool
        for scaler, strengths, wanted in zip(self.sets.scalers, self.values, places, strict=True):
            m = len(wanted)
            coef, intercept = np.zeros((m, 1, len(scaler.mean))), np.zeros((m, 1))
            gap, n_passes = np.zeros(m), np.zeros(m, np.int64)
            yield LogisticPath(strengths[wanted], scaler, coef, intercept, gap, n_passes)


class _Solver:
    """Sets of the same classes, which are solved together, and the answers so far."""

    def __init__(
        self, sets: TrainingSets, values: Sequence[Floats], pool: ThreadPoolExecutor
    ) -> None:
        self._objective, self._scalers, self._values = Objective(sets, pool), sets.scalers, values
        shape = self._objective.shape
        self._V = [np.zeros((len(C), *shape)) for C in values]
        self._gap = [np.full(len(C), np.inf) for C in values]
        self._n_passes = [np.zeros(len(C), np.int64) for C in values]

    def solve(
        self, places: Sequence[NDArray[np.intp]], tol: float, pool: ThreadPoolExecutor
    ) -> Iterator[LogisticPath]:
        """Yield the probes of each set, at these places of its values."""
        set_of = np.repeat(np.arange(len(places)), list(map(len, places)))
        if set_of.size:
            start = [self._start(number, wanted) for number, wanted in enumerate(places)]
            C = [strengths[wanted] for strengths, wanted in zip(self._values, places, strict=True)]
            V, gap, n_passes = _descend(
                self._objective, set_of, np.concatenate(C), np.concatenate(start), tol, pool
            )
        for number, (wanted, scaler) in enumerate(zip(places, self._scalers, strict=True)):
            if wanted.size:
                members = set_of == number
                self._V[number][wanted], self._gap[number][wanted] = V[members], gap[members]
                self._n_passes[number][wanted] += n_passes[members]
            weights = self._objective.bases[number] @ self._V[number][wanted]
            yield LogisticPath(
                values=self._values[number][wanted],
                scaler=scaler,
                # The search turns features into one another, and leaves traces where none varies.
                coef=(weights[..., :-1] @ self._objective.axes.T) * (scaler.scale > 0),
                intercept=weights[..., -1],
                gap=self._gap[number][wanted],
                n_passes=self._n_passes[number][wanted],
            )

    def _start(self, number: int, wanted: NDArray[np.intp]) -> AnyFloats:
        """Return where to start: where a place was left, or on the line through the last two.

        That line is by log C, through the answers at the two places before those that are new.
        """
        V, log_C, dtype = self._V[number], np.log(self._values[number]), self._objective.dtype
        start = V[wanted].astype(dtype)
        new = np.isinf(self._gap[number][wanted])
        if not new.any():
            return start
        first = int(wanted[new][0])
        if first < 2:
            start[new] = self._objective.at_prior(np.full(np.count_nonzero(new), number))
            return start
        before, last = first - 2, first - 1
        ahead = (log_C[wanted[new]] - log_C[last]) / (log_C[last] - log_C[before])
        start[new] = V[last] + np.minimum(ahead, 2.0)[:, None, None] * (V[last] - V[before])
        return start


def _descend(
    objective: Objective,
    set_of: NDArray[np.intp],
    C: Floats,
    V: AnyFloats,
    tol: float,
    pool: ThreadPoolExecutor,
) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """Return V, gap and passes; in float64 where float32 does not carry far enough."""
    flat = V.reshape(len(V), -1)
    # What is small is solved in float64, where a tighter gap takes milliseconds, and then every
    # prediction is the optimum's, not all but those of a few rows near a tie.
    aim = max(tol, _SINGLE_TOL) if flat.dtype == np.float32 else tol * _SMALL_TOL
    solution = minimise(
        objective.evaluator(set_of, C, pool), flat, tol=aim, max_passes=_MOST_PASSES[flat.dtype]
    )
    x, gap, n_passes = solution.x.astype(np.float64), solution.bound, solution.n_passes
    unsolved = np.flatnonzero(gap > tol)
    if unsolved.size and flat.dtype == np.float32:
        again = minimise(
            objective.evaluator(set_of[unsolved], C[unsolved], pool),
            x[unsolved],
            tol=tol,
            max_passes=_MOST_PASSES[x.dtype],
        )
        x[unsolved], gap[unsolved] = again.x, again.bound
        n_passes[unsolved] += again.n_passes
    return x.reshape(V.shape), gap, n_passes
