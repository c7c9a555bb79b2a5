"""Loss and gradient of many logistic regressions in one reading of their shared rows.

Every problem of a sweep is trained on a union of *cells*, groups of rows that no training set tells
apart; for K folds these are the folds. A block of rows is multiplied by the weights of all problems
that hold its cell, turned into residuals while it lies in the processor's cache, and multiplied
back: nothing of size rows x problems is ever stored.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from embedcache.files.arrays import AnyFloats, Floats

_BLOCK_BYTES: Final = 1 << 19  # logits of a block, so that it stays in a core's second cache
# Rows that are summed as one; fixed, so that sums do not depend on the number of threads.
_PART_ROWS: Final = 1024


@dataclass(frozen=True, slots=True)
class _Part:
    """Rows of one cell that one thread works through, and where each class begins in them."""

    cell: int
    start: int
    stop: int
    runs: tuple[tuple[int, int, int], ...]  # (start, stop, class)


@dataclass(frozen=True, slots=True)
class Sums:
    """Sums over the rows, for each problem.

    Parameters
    ----------
    loss
        Weighted mean log-loss, shape (P,).
    gradient
        Gradient by the weights, shape (P, k - 1, d + 1).
    curvature
        Second derivative by the logits, averaged, shape (P, k - 1, k - 1).
    """

    loss: Floats
    gradient: AnyFloats
    curvature: Floats


class SharedRows:
    """The rows that the problems of a sweep share, and passes over them.

    Parameters
    ----------
    X
        Features, the last column 1, shape (n, d + 1); sorted by cell, within it by class.
    y
        Class of each row, 0 to k - 1, shape (n,).
    weight
        Weight of each row, positive, shape (n,).
    cell
        Number of each row's cell, ascending, shape (n,).
    member
        Whether a training set holds a cell, shape (sets, cells).
    class_weight
        Factor of a training set for the weight of a class, shape (sets, k); such that the weights
        of a set sum to 1.
    """

    def __init__(
        self,
        X: AnyFloats,
        y: NDArray[np.int64],
        weight: Floats,
        cell: NDArray[np.int64],
        member: NDArray[np.bool_],
        class_weight: Floats,
    ) -> None:
        self.X, self._weight, self._member = X, weight, member
        self._class_weight = class_weight
        self._parts = list(_parts(y, cell))

    def __call__(
        self, weights: AnyFloats, sets: NDArray[np.intp], pool: ThreadPoolExecutor
    ) -> Sums:
        """Return loss and gradient of each problem, in the precision of its weights.

        Parameters
        ----------
        weights
            Weights and intercepts of the classes but the last, whose logit is 0, shape
            (P, k - 1, d + 1).
        sets
            Number of the training set of each problem, shape (P,).
        pool
            Threads to work with; BLAS should use one each.
        """
        n_problems, n_logits, _ = weights.shape
        holders = [np.flatnonzero(column[sets]) for column in self._member.T]
        by_cell = [weights[rows] for rows in holders]
        scale = self._class_weight[sets].astype(weights.dtype)

        def work(part: _Part) -> Sums:
            return self._pass(part, by_cell[part.cell], scale[holders[part.cell]])

        loss, gradient = np.zeros(n_problems), np.zeros_like(weights)
        curvature = np.zeros((n_problems, n_logits, n_logits))
        for part, sums in zip(self._parts, pool.map(work, self._parts), strict=True):
            rows = holders[part.cell]
            loss[rows] += sums.loss
            gradient[rows] += sums.gradient
            curvature[rows] += sums.curvature
        return Sums(loss, gradient, curvature)

    def _pass(self, part: _Part, weights: AnyFloats, scale: AnyFloats) -> Sums:
        n, n_logits, width = weights.shape
        flat = weights.reshape(-1, width)
        loss, curvature = np.zeros(n), np.zeros((n, n_logits, n_logits))
        gradient, product = np.zeros_like(flat), np.empty_like(flat)
        step = int(np.clip(_BLOCK_BYTES // max(1, flat[:, 0].nbytes), 32, _PART_ROWS))
        for start in range(part.start, part.stop if n else part.start, step):
            stop = min(start + step, part.stop)
            X = self.X[start:stop].astype(weights.dtype, copy=False)
            weight = self._weight[start:stop].astype(weights.dtype)
            runs = [
                (slice(max(first, start) - start, min(last, stop) - start), code)
                for first, last, code in part.runs
                if first < stop and last > start
            ]
            logits = (flat @ X.T).reshape(n, n_logits, -1)
            residuals = _residuals(logits, weight, scale, runs, loss, curvature)
            gradient += np.matmul(residuals.reshape(flat.shape[0], -1), X, out=product)
        return Sums(loss, gradient.reshape(weights.shape), curvature)


def _residuals(
    logits: AnyFloats,
    weight: AnyFloats,
    scale: AnyFloats,
    runs: list[tuple[slice, int]],
    loss: Floats,
    curvature: Floats,
) -> AnyFloats:
    """Turn logits into weighted residuals p - 1{y}, in place; add to loss and curvature."""
    n_logits = logits.shape[1]
    top = np.maximum(logits.max(axis=1), 0)  # of all logits, the last class's 0 among them
    row_loss = top.copy()
    for rows, code in runs:
        if code < n_logits:
            row_loss[:, rows] -= logits[:, code, rows]
    logits -= top[:, None]
    odds = np.exp(logits, out=logits)
    total = odds.sum(axis=1)
    total += np.exp(-top)
    row_loss += np.log(total)
    factor = weight / total
    for rows, code in runs:
        loss += scale[:, code] * (row_loss[:, rows] @ weight[rows])
        factor[:, rows] *= scale[:, code, None]
    p = odds / total[:, None]
    odds *= factor[:, None]
    curvature -= odds @ p.transpose(0, 2, 1)
    curvature[:, range(n_logits), range(n_logits)] += odds.sum(axis=2)
    for rows, code in runs:
        if code < n_logits:
            odds[:, code, rows] -= scale[:, code, None] * weight[rows]
    return odds


def _parts(y: NDArray[np.int64], cell: NDArray[np.int64]) -> Iterator[_Part]:
    """Yield parts of about equal size, none of two cells."""
    for first, last in _runs(cell):
        n_parts = -(-(last - first) // _PART_ROWS)
        edges = np.linspace(first, last, n_parts + 1).astype(int).tolist()
        for start, stop in pairwise(edges):
            runs = tuple((start + a, start + b, int(y[start + a])) for a, b in _runs(y[start:stop]))
            yield _Part(int(cell[start]), start, stop, runs)


def _runs(values: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Return where each run of equal values starts and stops."""
    edges = [0, *(np.flatnonzero(np.diff(values)) + 1).tolist(), len(values)]
    return list(pairwise(edges))
