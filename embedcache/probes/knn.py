"""Nearest neighbours by cosine, each with a vote of exp(cosine / 0.07).

The k of a sweep share one pass over the cosines.

References
----------
Wu et al. 2018, arXiv 1805.01978, section 3.4: the vote and its temperature. Caron et al. 2021,
arXiv 2104.14294: both, as a probe; k = 10, 20, 100 and 200 in their `eval_knn.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from embedcache.files.arrays import Floats
from embedcache.probes.scaling import Scaler
from embedcache.probes.seam import Embeddings, Problems

# More neighbours vote more smoothly, so the largest k comes first and wins a tie.
K_GRID: Final = (200.0, 100.0, 50.0, 20.0, 10.0, 5.0)
TEMPERATURE: Final = 0.07
# Cosines of equal rows differ by float32 rounding, which must not decide who is a neighbour.
_SLACK: Final = 1e-6
_BLOCK_CELLS: Final = 1 << 22  # cosines at a time


@dataclass(frozen=True, slots=True)
class KnnPath:
    """A training set, and the votes of its nearest rows for each k.

    Parameters
    ----------
    X, y
        Embeddings, shape (m, dim), and classes, shape (m,), training rows among them; no copy is
        made, for the sets of a sweep overlap.
    rows
        Numbers of the training rows, shape (n,).
    n_classes
        Number of classes.
    ks
        Numbers of neighbours, 1 to n, shape (n_values,).
    scaler
        Mean and deviation of the training set.
    """

    X: Embeddings = field(repr=False)
    y: NDArray[np.int64] = field(repr=False)
    rows: NDArray[np.intp] = field(repr=False)
    n_classes: int
    ks: NDArray[np.int64]
    scaler: Scaler

    def probability(self, X: Embeddings) -> Floats:
        """Return each class's share of the votes by k, row and class."""
        training = self._direction(self.X[self.rows])
        shares = np.empty((len(self.ks), len(X), self.n_classes))
        step = max(1, _BLOCK_CELLS // len(training))
        for first in range(0, len(X), step):
            block = slice(first, first + step)
            shares[:, block] = self._poll(self._direction(X[block]) @ training.T)
        return shares

    def _direction(self, X: Embeddings) -> Embeddings:
        """Return unit length rows, or zeros where a row is the mean."""
        Z = self.scaler.apply(X)
        length = np.linalg.norm(Z, axis=1, keepdims=True)
        unit = np.divide(Z, length, out=np.zeros_like(Z), where=length > 0)
        return np.asarray(unit, np.float32)

    def _poll(self, cosine: Embeddings) -> Floats:
        """Return the shares of the votes, given cosines of shape (rows, training rows).

        Rows as near as the k-th vote too, so that no order of the training rows plays a part.
        """
        rows, n = cosine.shape
        most = int(self.ks.max())
        top = np.sort(np.partition(cosine, n - most, axis=1)[:, n - most :], axis=1)
        reach = top[:, most - self.ks].T - np.float32(_SLACK)  # (number of k, rows)
        row, neighbour = np.nonzero(cosine >= reach.min(axis=0)[:, None])
        near = cosine[row, neighbour]
        vote = np.exp((near - top[row, -1]) / TEMPERATURE)
        cell = row * self.n_classes + self.y[self.rows][neighbour]
        cells = rows * self.n_classes
        counted = [np.bincount(cell, vote * (near >= least[row]), cells) for least in reach]
        polled = np.stack(counted).reshape(-1, rows, self.n_classes)
        return np.asarray(polled / polled.sum(axis=2, keepdims=True))


def fit_sweep(
    X: Embeddings, y: NDArray[np.int64], n_classes: int, problems: Problems
) -> list[KnnPath]:
    """Keep each training set with its k, whole numbers from 1; see `seam.FitSweep`.

    A k above the number of training rows is all of them.
    """
    fitted = []
    for rows, values in problems:
        scaler = Scaler.of(X[rows])
        ks = np.clip(np.rint(values), 1, len(rows)).astype(np.int64)
        fitted.append(KnnPath(X, y, rows, n_classes, ks, scaler))
    return fitted
