"""The form of every probe: that of its fit, and that of what is fitted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from embedcache.files.arrays import Floats

Embeddings: TypeAlias = NDArray[np.float32]  # (n, dim), finite
# Training rows, and the values of the probe's setting to fit on them, smoothest first.
Problems: TypeAlias = Sequence[tuple[NDArray[np.intp], Sequence[float]]]


class ProbePath(Protocol):
    """The probes of one training set, one for each value of their setting."""

    def probability(self, X: Embeddings, /) -> Floats:
        """Return the probability by value, row and class, shape (n_values, n, n_classes).

        Classes sum to 1; one that the training set lacks has probability 0. No row's probabilities
        depend on the other rows.
        """


class FitSweep(Protocol):
    """A function that fits a probe for each training set and each value of its setting."""

    def __call__(
        self, X: Embeddings, y: NDArray[np.int64], n_classes: int, problems: Problems, /
    ) -> Sequence[ProbePath]:
        """Return for each problem the path of its probes, in the order of its values.

        Parameters
        ----------
        X
            Embeddings, finite, shape (n, dim).
        y
            Class of each row, 0 to n_classes - 1, shape (n,).
        n_classes
            Number of classes, whether or not a training set holds all of them.
        problems
            Training rows and values of each problem; see `Problems`.

        Raises
        ------
        RunError
            A training set without rows.
        """
