"""Standardisation by a training set's own mean and deviation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from embedcache.errors import RunError

# Embeddings are float32: what varies by less than this share of its mean is their rounding.
_NOISE: Final = float(np.finfo(np.float32).eps)


@dataclass(frozen=True, slots=True)
class Scaler:
    """Mean and deviation of each feature.

    Parameters
    ----------
    mean, scale
        Shape (dim,); scale is 0 for a feature that does not vary beyond float32 rounding.
    """

    mean: NDArray[np.float64] = field(repr=False)
    scale: NDArray[np.float64] = field(repr=False)

    @classmethod
    def of(cls, X: NDArray[np.float32], weights: NDArray[np.float64] | None = None) -> Scaler:
        """Measure a training set.

        Parameters
        ----------
        X
            Shape (n, dim).
        weights
            Of each row, not negative, shape (n,); None where all rows weigh the same.

        Raises
        ------
        RunError
            No rows, or none that weighs anything.
        """
        weights = np.ones(len(X)) if weights is None else weights
        if not weights.any():
            raise RunError("no training images to fit on; lower --folds or widen --where")
        share = weights / weights.sum()
        mean = share @ X
        # Two passes: at an offset, the mean of squares less the square of the mean is noise.
        scale = np.sqrt(share @ np.square(X - mean))
        scale[scale <= _NOISE * np.abs(mean)] = 0.0
        return cls(mean, scale)

    def apply(self, X: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return X standardised, shape (n, dim); 0 where scale is 0."""
        return np.asarray((X - self.mean) * self.inverse)

    @property
    def inverse(self) -> NDArray[np.float64]:
        """1 / scale, shape (dim,); 0 where scale is 0."""
        return np.divide(1.0, self.scale, out=np.zeros_like(self.scale), where=self.scale > 0)
