"""Probes whose class scores are linear in the standardised embedding."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy.special import softmax

from embedcache.files.arrays import Floats
from embedcache.probes.scaling import Scaler
from embedcache.probes.seam import Embeddings


@dataclass(frozen=True, slots=True)
class LinearPath:
    """For each value of a setting a linear score of each class, and the softmax of the scores.

    Parameters
    ----------
    scaler
        Mean and deviation of the training set.
    coef
        Weights of standardised features, shape (n_values, dim, n_classes).
    intercept
        Intercepts, shape (n_values, n_classes); minus infinity for a class not trained on.
    """

    scaler: Scaler
    coef: Floats = field(repr=False)
    intercept: Floats = field(repr=False)

    def probability(self, X: Embeddings) -> Floats:
        """Return the softmax of the scores by value, row and class."""
        scores = self.scaler.apply(X) @ self.coef + self.intercept[:, None]
        return np.asarray(softmax(scores, axis=2))
