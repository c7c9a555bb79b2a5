"""L-BFGS for many smooth convex problems at once, each with its own step, all in one evaluation.

References
----------
Nocedal and Wright 2006, Numerical Optimization, 2nd ed., algorithm 7.4 (two loops), (3.57)
(quadratic interpolation).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Final

import numpy as np
from numpy.typing import NDArray

from embedcache.files.arrays import AnyFloats, Floats

_MEMORY: Final = 8
_ARMIJO: Final = 1e-4
# A problem whose value has not fallen by more than its rounding in so many evaluations has come as
# far as its precision carries.
_PATIENCE: Final = 20


@dataclass(frozen=True, slots=True)
class Point:
    """Value, gradient and bounds of each problem at its point.

    Parameters
    ----------
    value
        Value of each of P problems, shape (P,).
    gradient
        Gradient, shape (P, N).
    bound
        Bound on how far the value is above the optimum's, relative to it, shape (P,).
    nearly
        Approximate bound after the step `settle`, shape (P,).
    settle
        Step that hardly lowers the value and tightens the bound, shape (P, N).
    diagonal
        Approximate diagonal of the Hessian, shape (P, N).
    """

    value: Floats
    gradient: AnyFloats
    bound: Floats
    nearly: Floats
    settle: AnyFloats
    diagonal: AnyFloats

    def take(self, rows: NDArray[np.bool_]) -> Point:
        """Return the points of a subset of the problems, shape (P,)."""
        return Point(*(getattr(self, column.name)[rows] for column in fields(self)))

    def put(self, rows: NDArray[np.bool_], trial: Point) -> None:
        """Replace the points of a subset of the problems by those of another evaluation."""
        for column in fields(self):
            getattr(self, column.name)[rows] = getattr(trial, column.name)[rows]


Evaluate = Callable[[AnyFloats, NDArray[np.intp]], Point]


@dataclass(frozen=True, slots=True)
class Solution:
    """Where the search ended.

    Parameters
    ----------
    x
        Point of each problem with the least bound, shape (P, N).
    bound
        Bound of that point; see `Point`.
    n_passes
        Number of evaluations of each problem, shape (P,).
    """

    x: AnyFloats
    bound: Floats
    n_passes: NDArray[np.int64]


def minimise(evaluate: Evaluate, x: AnyFloats, *, tol: float, max_passes: int) -> Solution:
    """Minimise every problem until its bound is at most `tol`, or its precision is spent.

    Parameters
    ----------
    evaluate
        Function of points, shape (P', N), and of the numbers of their problems, shape (P',).
    x
        Starting points, shape (P, N).
    tol
        Bound at which a problem is done.
    max_passes
        Largest number of evaluations of a problem.
    """
    best = Solution(x.copy(), np.full(len(x), np.inf), np.zeros(len(x), np.int64))
    search = _Search(evaluate, x, tol)
    search.note_best(best)
    for _ in range(1, max_passes):
        if not search.restrict((search.now.bound > tol) & (search.idle < _PATIENCE)):
            break
        search.step()
        search.note_best(best)
    return best


class _Search:
    """The problems still searched, and the recent past of each.

    Every array that `_BY_PROBLEM` names has one row a problem, and loses the rows of the problems
    that are done.
    """

    _BY_PROBLEM: Final = ("_problem", "_x", "_mark", "idle", "_length", "_settles", "_direction")

    def __init__(self, evaluate: Evaluate, x: AnyFloats, tol: float) -> None:
        self._evaluate, self._tol = evaluate, tol
        self._problem, self._x = np.arange(len(x)), x
        self.now = evaluate(x, self._problem)
        self._mark, self.idle = self.now.value.copy(), np.zeros(len(x), np.int64)
        self._length, self._settles = np.ones(len(x)), np.zeros(len(x), np.bool_)
        self._past: list[
            tuple[AnyFloats, AnyFloats, AnyFloats]
        ] = []  # (s, y, 1 / s'y), newest last
        self._direction = self._descend()

    def note_best(self, best: Solution) -> None:
        """Note points that are better than the best so far."""
        better = self.now.bound < best.bound[self._problem]
        best.x[self._problem[better]] = self._x[better]
        best.bound[self._problem[better]] = self.now.bound[better]
        best.n_passes[self._problem] += 1

    def restrict(self, is_open: NDArray[np.bool_]) -> bool:
        """Go on with the open problems only; return whether there are any."""
        if not is_open.all():
            for name in self._BY_PROBLEM:
                setattr(self, name, getattr(self, name)[is_open])
            self.now = self.now.take(is_open)
            self._past = [(s[is_open], y[is_open], rho[is_open]) for s, y, rho in self._past]
        return bool(is_open.any())

    def step(self) -> None:
        """Try each problem's step: take it and turn, or shorten it."""
        now = self.now
        x = self._x + self._length.astype(self._x.dtype)[:, None] * self._direction
        trial = self._evaluate(x, self._problem)
        slope = _dot(now.gradient, self._direction)
        noise = 4 * float(np.finfo(x.dtype).eps) * np.abs(now.value)
        limit = now.value + _ARMIJO * self._length * slope + noise
        taken = np.isfinite(trial.value) & (trial.value <= limit)
        self._remember(x, trial, taken)
        self._shorten(~taken, trial.value, slope)
        self._x[taken] = x[taken]
        now.put(taken, trial)
        fell = now.value < self._mark - noise
        self._mark = np.where(fell, now.value, self._mark)
        self.idle = np.where(fell, 0, self.idle + 1)
        # Not twice in a row: where rounding keeps the bound up, the search has to go on.
        settles = taken & (now.nearly <= self._tol) & ~self._settles
        turned = np.where(settles[:, None], now.settle, self._descend())
        self._direction = np.where(taken[:, None], turned, self._direction)
        self._settles = np.where(taken, settles, self._settles)

    def _remember(self, x: AnyFloats, trial: Point, taken: NDArray[np.bool_]) -> None:
        # A step not taken leaves a pair of zeros, which changes no direction.
        s = np.where(taken[:, None], x - self._x, 0)
        y = np.where(taken[:, None], trial.gradient - self.now.gradient, 0)
        product = _dot(s, y)
        rho = np.divide(1.0, product, out=np.zeros_like(product), where=product > 0)
        self._past = [*self._past, (s, y, rho.astype(s.dtype))][-_MEMORY:]

    def _shorten(self, missed: NDArray[np.bool_], value: Floats, slope: Floats) -> None:
        rise = value - self.now.value - self._length * slope
        ratio = np.divide(-slope * self._length, 2 * rise, out=np.zeros_like(rise), where=rise > 0)
        shorter = np.clip(np.nan_to_num(ratio), 0.1, 0.5)
        self._length = np.where(missed, self._length * shorter, 1.0)

    def _descend(self) -> AnyFloats:
        """Return the direction of each problem: two loops around the diagonal."""
        q, shares = -self.now.gradient, []
        for s, y, rho in reversed(self._past):
            a = rho * _dot(s, q).astype(q.dtype)
            q -= a[:, None] * y
            shares.append(a)
        q /= self.now.diagonal
        if self._past:
            q *= self._newest_scale()[:, None]
        for (s, y, rho), a in zip(self._past, reversed(shares), strict=True):
            b = rho * _dot(y, q).astype(q.dtype)
            q += (a - b)[:, None] * s
        return q

    def _newest_scale(self) -> AnyFloats:
        _, y, rho = self._past[-1]
        below = rho * _dot(y, y / self.now.diagonal)
        return np.divide(1.0, below, out=np.ones_like(below), where=below > 0).astype(y.dtype)


def _dot(a: AnyFloats, b: AnyFloats) -> Floats:
    """Return the inner product of each row."""
    return np.asarray(np.matmul(a[:, None, :], b[:, :, None])[:, 0, 0], np.float64)
