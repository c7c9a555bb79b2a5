"""Linear discriminant analysis with a shrunken covariance: every shrinkage from one decomposition.

Classes are normal with one covariance, (1 - s) S + s (tr S / dim) I, where S is the covariance
within classes of the standardised features; priors are the classes' shares. Probabilities are the
posterior of that model.

References
----------
Friedman 1989, Journal of the American Statistical Association 84(405), equation 18 (with lambda 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from embedcache.files.arrays import Floats
from embedcache.probes.gram import spectrum, standardised
from embedcache.probes.linear import LinearPath
from embedcache.probes.scaling import Scaler
from embedcache.probes.seam import Embeddings, Problems

SHRINKAGE_GRID: Final = (1.0, 0.7, 0.5, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001)
# Least mean variance within classes, of 1 in all. One image a class has none, which leaves nothing
# to divide by; as it goes to 0, the nearest mean wins with certainty.
_LEAST: Final = 1e-9


def fit_sweep(
    X: Embeddings, y: NDArray[np.int64], n_classes: int, problems: Problems
) -> list[LinearPath]:
    """Fit one probe for each training set and each shrinkage, above 0; see `seam.FitSweep`."""
    sets = standardised(X, [rows for rows, _ in problems])
    return [
        _fit(scaler, Z, gram, y[rows], n_classes, shrinkages)
        for (rows, shrinkages), (scaler, Z, gram) in zip(problems, sets, strict=True)
    ]


def _fit(
    scaler: Scaler,
    Z: Floats,
    gram: Floats | None,
    y: NDArray[np.int64],
    n_classes: int,
    shrinkages: Sequence[float],
) -> LinearPath:
    counts = np.bincount(y, minlength=n_classes)
    means = (Z.T @ np.eye(n_classes)[y]) / np.maximum(counts, 1)  # (dim, n_classes)
    within = None if gram is None else gram - (means * counts) @ means.T
    scatter, vectors = spectrum(Z - means.T[y], within)
    variance = scatter / len(Z)
    mean_variance = max(variance.sum() / max(1, int(np.count_nonzero(scaler.scale))), _LEAST)
    along = vectors.T @ means
    beside = means - vectors @ along  # outside the span of the rows: only the target has variance
    log_prior = np.log(counts / len(Z), where=counts > 0, out=np.full(n_classes, -np.inf))
    weight = np.asarray(shrinkages)[:, None, None]  # (n_values, 1, 1)
    target = weight * mean_variance
    shrunk = (1 - weight) * variance[:, None] + target
    coef = vectors @ (along / shrunk) + beside / target
    return LinearPath(scaler, coef, log_prior - 0.5 * (coef * means).sum(axis=1))
