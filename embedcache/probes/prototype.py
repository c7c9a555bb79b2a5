"""The nearest class mean, by cosine.

References
----------
Mensink et al. 2013, IEEE TPAMI 35(11): nearest class mean. Gidaris and Komodakis 2018, arXiv
1804.09458: by cosine, as a classifier of few images.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from embedcache.files.arrays import Floats
from embedcache.probes.scaling import Scaler
from embedcache.probes.seam import Embeddings, Problems

# It moves no prediction, only how sure one sounds, so there is nothing to choose.
TEMPERATURE_GRID: Final = (0.1,)


@dataclass(frozen=True, slots=True)
class PrototypePath:
    """The means of the classes.

    Parameters
    ----------
    scaler
        Mean and deviation of the training set.
    directions
        Mean standardised embedding of each class, at unit length, shape (n_classes, dim).
    present
        Whether the training set holds each class, shape (n_classes,).
    temperatures
        Temperatures of the softmax, shape (n_values,).
    """

    scaler: Scaler
    directions: Floats = field(repr=False)
    present: NDArray[np.bool_] = field(repr=False)
    temperatures: Floats

    def probability(self, X: Embeddings) -> Floats:
        """Return the softmax of cosine / temperature by temperature, row and class."""
        cosine = _direction(self.scaler.apply(X)) @ self.directions.T
        scores = np.where(self.present, cosine, -np.inf) / self.temperatures[:, None, None]
        return np.asarray(softmax(scores, axis=2))


def _direction(Z: Floats) -> Floats:
    length = np.linalg.norm(Z, axis=1, keepdims=True)
    return np.asarray(np.divide(Z, length, out=np.zeros_like(Z), where=length > 0))


def fit_sweep(
    X: Embeddings, y: NDArray[np.int64], n_classes: int, problems: Problems
) -> list[PrototypePath]:
    """Fit one probe for each training set and each temperature; see `seam.FitSweep`."""
    fitted = []
    for rows, temperatures in problems:
        scaler = Scaler.of(X[rows])
        members = np.eye(n_classes)[y[rows]]
        means = _direction(members.T @ scaler.apply(X[rows]))  # a sum points where its mean does
        present = np.asarray(members.any(axis=0))
        fitted.append(PrototypePath(scaler, means, present, np.asarray(temperatures)))
    return fitted
