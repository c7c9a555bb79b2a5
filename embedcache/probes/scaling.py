"""Standardisation by a training set's own mean and deviation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from embedcache.errors import RunError

# What varies by less than this share of its mean is the rounding of the values themselves, or, of
# float64, that of their mean.
_NOISE: Final = {"float32": 2.0**-23, "float64": 2.0**-48}


@dataclass(frozen=True, slots=True)
class Scaler:
    """Mean and deviation of each feature.

    Parameters
    ----------
    mean
        Mean of each feature, shape (dim,).
    scale
        Deviation of each feature, that of n rows, not of n - 1, shape (dim,); 0 for a feature that
        does not vary beyond rounding.
    """

    mean: NDArray[np.float64] = field(repr=False)
    scale: NDArray[np.float64] = field(repr=False)

    @classmethod
    def of(cls, X: NDArray[np.float32], weights: NDArray[np.float64] | None = None) -> Scaler:
        """Measure a training set.

        Parameters
        ----------
        X
            Embeddings, shape (n, dim).
        weights
            Weight of each row, not negative, shape (n,); None where all rows weigh the same.

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
        return cls.from_moments(mean, share @ np.square(X - mean), X.dtype)

    @classmethod
    def from_moments(
        cls, mean: NDArray[np.float64], variance: NDArray[np.float64], dtype: np.dtype[Any]
    ) -> Scaler:
        """Return the scaler of a known mean and variance; `dtype` is that of the rows."""
        scale = np.sqrt(variance)
        noise = _NOISE.get(dtype.name, _NOISE["float64"])
        return cls(mean, np.where(scale > noise * np.abs(mean), scale, 0.0))

    def apply(self, X: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return X standardised, shape (n, dim); 0 where scale is 0."""
        return np.asarray((X - self.mean) * self.inverse)

    @property
    def inverse(self) -> NDArray[np.float64]:
        """1 / scale, shape (dim,); 0 where scale is 0."""
        return np.divide(1.0, self.scale, out=np.zeros_like(self.scale), where=self.scale > 0)
