"""Ridge regression in closed form: every strength from one eigendecomposition a training set.

The objective is scikit-learn's: ||t - Z w - b||^2 + alpha ||w||^2, the intercept free, on features
standardised by the training set. As a classifier it regresses on each class's 0 or 1.

References
----------
Hoerl and Kennard 1970, Technometrics 12(1). Hastie, Tibshirani and Friedman 2009, The Elements of
Statistical Learning, sections 3.4.1 and 4.2 (regression on class indicators).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from embedcache.files.arrays import Floats
from embedcache.probes.gram import spectrum, standardised
from embedcache.probes.linear import LinearPath
from embedcache.probes.scaling import Scaler
from embedcache.probes.seam import Embeddings, Problems

# 10^6 ... 10^0. The eigenvalues of Z'Z add up to n times dim.
ALPHA_GRID: Final = tuple(float(10.0**e) for e in np.arange(6.0, -0.25, -0.5))


@dataclass(frozen=True, slots=True)
class RidgePath:
    """The regressions of one training set, one for each alpha.

    Parameters
    ----------
    scaler
        Mean and deviation of the training set.
    coef
        Weights of standardised features, shape (n_values, dim, n_targets).
    intercept
        Means of the training rows' targets, shape (n_targets,).
    """

    scaler: Scaler
    coef: Floats = field(repr=False)
    intercept: Floats = field(repr=False)

    def predict(self, X: Embeddings) -> Floats:
        """Return the targets by alpha and row, shape (n_values, n, n_targets)."""
        return np.asarray(self.scaler.apply(X) @ self.coef + self.intercept)


def fit_ridge_regression(X: Embeddings, t: Floats, problems: Problems) -> list[RidgePath]:
    """Fit one regression for each training set and each strength.

    Parameters
    ----------
    X
        Embeddings, finite, shape (n, dim).
    t
        Targets, finite, shape (n, n_targets).
    problems
        Training rows, and the values of alpha, above 0, to fit on them.

    Returns
    -------
    For each problem the path of its regressions, in the order of its alpha.

    Raises
    ------
    RunError
        A training set without rows.
    """
    fitted = []
    sets = standardised(X, [rows for rows, _ in problems])
    for (rows, alphas), (scaler, Z, gram) in zip(problems, sets, strict=True):
        intercept = t[rows].mean(axis=0)
        values, vectors = spectrum(Z, gram)
        along = vectors.T @ (Z.T @ (t[rows] - intercept))
        shrunk = [along / (values + alpha)[:, None] for alpha in alphas]
        fitted.append(RidgePath(scaler, vectors @ np.stack(shrunk), intercept))
    return fitted


def fit_sweep(
    X: Embeddings, y: NDArray[np.int64], n_classes: int, problems: Problems
) -> list[LinearPath]:
    """Fit one classifier for each training set and each alpha; see `seam.FitSweep`.

    The probability is the softmax of the regressed indicators, not calibrated; the largest wins, as
    in scikit-learn's `RidgeClassifier`.
    """
    fitted = []
    for path in fit_ridge_regression(X, np.eye(n_classes)[y], problems):
        share = path.intercept  # of each class
        intercept = np.where(share > 0, share, -np.inf)
        fitted.append(LinearPath(path.scaler, path.coef, np.tile(intercept, (len(path.coef), 1))))
    return fitted
