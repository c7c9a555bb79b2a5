"""The objective of each problem, in coordinates in which its Hessian is nearly diagonal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import block_diag, eigh, helmert, svd

from embedcache.files.arrays import AnyFloats, Floats
from embedcache.probes.lbfgs import Point
from embedcache.probes.shared_rows import SharedRows
from embedcache.probes.training_sets import TrainingSets

_CHUNK_ROWS: Final = 2048
_TURN_ROWS: Final = 64
# The gap is relative to the objective f, and to f(prior) - f where that is less, so that a strongly
# penalised probe, whose f hardly differs from the prior's, is solved as exactly as any. Where both
# vanish it is relative to this share of f(prior).
_FLOOR: Final = 1e-7
_LEAST_CURVATURE: Final = 1e-30


class Objective:
    """f = weighted mean log-loss + alpha / 2 ||W||^2, for each training set and any alpha.

    A point is V, shape (k - 1, r + 1), the intercepts last. W = B V F' has the weights of
    standardised features:

    - *B* (k, k - 1) is an orthonormal basis of what sums to zero over the classes, as an optimal W
      does, turned to the axes of diag(p) - p p' at the prior p.
    - *F* (d, r) holds the axes of the features' correlations over all rows of the sweep. It turns
      coordinates and no more, so it carries nothing from one fold to another. With fewer rows than
      features it spans the rows, as an optimal W does, and r is their rank.

    In these coordinates the Hessian is near diag(m_a l_j + alpha), for m_a the mean curvature by
    the logits along axis a, and l_j the variance along axis j.
    """

    def __init__(self, sets: TrainingSets, pool: ThreadPoolExecutor) -> None:
        features, (n_sets, k) = sets.X[:, :-1], sets.prior.shape
        self._turns = n_sets > 1 or len(features) > features.shape[1]
        if self._turns:
            X, self._shift, self._stretch = sets.X, sets.shift, sets.stretch
            self.axes, spread = _correlation_axes(features, sets.weight, pool)
            turn = np.asarray(block_diag(self.axes, 1.0))  # the intercept stays as it is
            self._turn = {np.dtype(kind): turn.astype(kind) for kind in ("float32", "float64")}
        else:
            self.axes, spread = _row_space(features, sets.weight)
            X = np.column_stack([features @ self.axes, np.ones(len(features))])
            self._shift, self._stretch = np.zeros((1, len(spread))), np.ones((1, len(spread)))
        self.dtype, self._spread = X.dtype, np.append(spread, 1.0)
        self.bases = np.stack([_class_basis(prior) for prior in sets.prior])
        self._logits = self.bases[:, :-1] - self.bases[:, -1:]  # (sets, k - 1, k - 1)
        self._prior = sets.prior
        self._null = -(sets.prior * np.log(sets.prior)).sum(axis=1)
        # Two bounds of the loss's curvature by W: diag(p) - p p' is at most 1/2, but rows may weigh
        # more than in `spread`; and no row is longer than the longest.
        share = sets.class_weight / sets.class_weight.min(axis=1, keepdims=True)
        self._steepest = float(spread.max(initial=0.0) * share.max())
        self._longest = max(float(_squares(X[None, rows]).max()) for rows in _chunks(len(X)))
        # scikit-learn gives two classes one vector of weights: of W's two, half the penalty.
        self._penalty = (2.0 if k == 2 else 1.0) / sets.total
        self._rows = SharedRows(X, sets.y, sets.weight, sets.cell, sets.member, sets.class_weight)

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of a point: (k - 1, r + 1)."""
        return self.bases.shape[2], len(self._spread)

    def at_prior(self, sets: NDArray[np.intp]) -> AnyFloats:
        """Return the points without weights, whose intercepts give the classes' shares."""
        V = np.zeros((len(sets), *self.shape), self.dtype)
        log_prior = np.log(self._prior[sets])
        V[..., -1] = (log_prior[:, None] @ self.bases[sets])[:, 0]
        return V

    def evaluator(
        self, sets: NDArray[np.intp], C: Floats, pool: ThreadPoolExecutor
    ) -> Callable[[AnyFloats, NDArray[np.intp]], Point]:
        """Return the function to minimise, given training set and C of each problem."""
        alpha = self._penalty[sets] / C

        def evaluate(flat: AnyFloats, problem: NDArray[np.intp]) -> Point:
            V, set_of, a = flat.reshape(-1, *self.shape), sets[problem], alpha[problem]
            sums = self._rows(self._outward(V, set_of, pool), set_of, pool)
            g = self._inward(sums.gradient, set_of, pool)
            g[..., :-1] += a[:, None, None].astype(g.dtype) * V[..., :-1]
            logits = self._logits[set_of]
            bent = logits.transpose(0, 2, 1) @ sums.curvature @ logits  # (P', k - 1, k - 1)
            steepness = np.maximum(np.einsum("paa->pa", bent), _LEAST_CURVATURE)
            value = sums.loss + a / 2 * _squares(V[..., :-1]).sum(axis=1)
            null = self._null[set_of]
            reference = np.maximum(np.minimum(value, null - value), _FLOOR * null)
            steepest = np.minimum(self._steepest, self._longest * steepness.sum(axis=1))
            slope, settled, rest = _squares(g[..., :-1]).sum(axis=1), *_settle(g[..., -1], bent)
            diagonal = steepness[..., None] * self._spread
            diagonal[..., :-1] += a[:, None, None]
            settle = np.zeros_like(V)
            settle[..., -1] = settled
            return Point(
                value=value,
                gradient=g.reshape(flat.shape),
                bound=(rest + (np.sqrt(slope) + np.sqrt(steepest * rest)) ** 2 / (2 * a))
                / reference,
                nearly=(rest + slope / (2 * a)) / reference,
                settle=settle.reshape(flat.shape),
                diagonal=diagonal.reshape(flat.shape).astype(flat.dtype),
            )

        return evaluate

    def _outward(self, V: AnyFloats, sets: NDArray[np.intp], pool: ThreadPoolExecutor) -> AnyFloats:
        """Return the weights of the columns of the shared rows."""
        logits, stretch = self._logits[sets].astype(V.dtype), self._stretch[sets].astype(V.dtype)
        weights: AnyFloats = logits @ V
        if self._turns:
            weights = _turned(weights, self._turn[V.dtype].T, pool)
        weights[..., :-1] *= stretch[:, None]
        moved = weights[..., :-1] @ self._shift[sets, :, None].astype(V.dtype)
        weights[..., -1:] -= moved
        return weights

    def _inward(
        self, gradient: AnyFloats, sets: NDArray[np.intp], pool: ThreadPoolExecutor
    ) -> AnyFloats:
        """Return the gradient by V, given that by the weights of the columns; overwrites it."""
        dtype = gradient.dtype
        logits, stretch = self._logits[sets].astype(dtype), self._stretch[sets].astype(dtype)
        gradient[..., :-1] -= gradient[..., -1:] * self._shift[sets, None].astype(dtype)
        gradient[..., :-1] *= stretch[:, None]
        if self._turns:
            gradient = _turned(gradient, self._turn[dtype], pool)
        return np.asarray(logits.transpose(0, 2, 1) @ gradient)


def _turned(V: AnyFloats, axes: AnyFloats, pool: ThreadPoolExecutor) -> AnyFloats:
    # Blocks of rows of all problems, of a fixed size: no sum depends on the number of threads.
    flat = V.reshape(-1, V.shape[-1])
    starts = range(0, len(flat), _TURN_ROWS)
    parts = pool.map(lambda start: flat[start : start + _TURN_ROWS] @ axes, starts)
    return np.concatenate(list(parts)).reshape(V.shape)


def _squares(V: AnyFloats) -> Floats:
    return np.asarray(np.einsum("paj,paj->pa", V, V), np.float64)


def _settle(gradient: AnyFloats, curvature: Floats) -> tuple[Floats, Floats]:
    """Return the intercepts' Newton step, shape (P, k - 1), and its squared length, shape (P,)."""
    n_axes = curvature.shape[1]
    # Where a class is all but certain everywhere the curvature is all but singular.
    ridge = np.maximum(1e-12 * np.einsum("paa->p", curvature), _LEAST_CURVATURE)
    step = np.linalg.solve(
        curvature + ridge[:, None, None] * np.eye(n_axes), -gradient[..., None].astype(np.float64)
    )[..., 0]
    return step, np.abs((step * gradient).sum(axis=1))


def _chunks(n: int) -> Iterator[slice]:
    return (slice(start, start + _CHUNK_ROWS) for start in range(0, n, _CHUNK_ROWS))


def _class_basis(prior: Floats) -> Floats:
    """Return B, shape (k, k - 1)."""
    plain = helmert(len(prior)).T
    _, turn = eigh(plain.T @ (np.diag(prior) - np.outer(prior, prior)) @ plain)
    return np.asarray(plain @ turn)


def _correlation_axes(
    X: AnyFloats, weight: Floats, pool: ThreadPoolExecutor
) -> tuple[Floats, Floats]:
    """Return the axes of the features' correlations, shape (d, d), and the variance along each."""

    def part(rows: slice) -> AnyFloats:
        share = weight[rows, None].astype(X.dtype)
        return np.asarray(X[rows].T @ (X[rows] * share))

    gram = np.zeros((X.shape[1],) * 2)
    for product in pool.map(part, _chunks(len(X))):
        gram += product
    spread, axes = eigh(gram / weight.sum(), driver="evd", overwrite_a=True)
    return axes, np.maximum(spread, 0.0)


def _row_space(X: AnyFloats, weight: Floats) -> tuple[Floats, Floats]:
    """Return an orthonormal basis of the rows, shape (d, r), and the variance along each axis."""
    rows = X.astype(np.float64) * np.sqrt(weight / weight.sum())[:, None]
    _, length, axes = svd(rows, full_matrices=False)
    spanned = length > length[:1] * max(X.shape) * np.finfo(np.float64).eps
    return axes[spanned].T, length[spanned] ** 2
