"""Linear support vector machines, one class against the rest, by scikit-learn's LinearSVC.

References
----------
Fan et al. 2008, Journal of Machine Learning Research 9: LIBLINEAR, L2-regularised, squared hinge.
"""

from __future__ import annotations

import warnings
from typing import Final

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.svm import LinearSVC

from embedcache.errors import RunError
from embedcache.files.arrays import Floats
from embedcache.probes.linear import LinearPath
from embedcache.probes.scaling import Scaler
from embedcache.probes.seam import Embeddings, Problems

C_GRID: Final = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
_MOST_ITERATIONS: Final = 1000


def fit_sweep(
    X: Embeddings, y: NDArray[np.int64], n_classes: int, problems: Problems
) -> list[LinearPath]:
    """Fit one probe for each training set and each C; see `seam.FitSweep`.

    The probability is the softmax of the margins: it keeps their order but is not calibrated.

    Raises
    ------
    RunError
        A training set without rows, or a fit that does not converge.
    """
    fitted = []
    for rows, values in problems:
        scaler = Scaler.of(X[rows])
        Z, classes = scaler.apply(X[rows]), y[rows]
        machines = [_fit(Z, classes, n_classes, C) for C in values]
        coef, intercept = (np.stack(parts) for parts in zip(*machines, strict=True))
        fitted.append(LinearPath(scaler, coef, intercept))
    return fitted


def _fit(Z: Floats, y: NDArray[np.int64], n_classes: int, C: float) -> tuple[Floats, Floats]:
    """Return weights, shape (dim, n_classes), and intercepts, shape (n_classes,)."""
    present = np.unique(y)
    coef, intercept = np.zeros((n_classes, Z.shape[1])), np.full(n_classes, -np.inf)
    intercept[present] = 0.0
    if len(present) > 1:
        # In the primal, which is not random, and is sooner there with more rows than features.
        model = LinearSVC(C=C, dual=False, max_iter=_MOST_ITERATIONS)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", ConvergenceWarning)
                model.fit(Z, y)
        except ConvergenceWarning:
            raise RunError(
                f"the SVM at C = {C:g} did not converge in {_MOST_ITERATIONS} steps; look at the "
                "embeddings (`embedcache verify`), their values may be extreme"
            ) from None
        # Of two classes scikit-learn keeps the second one's machine; the first one's is its mirror.
        signs = np.array([-1.0, 1.0]) if len(present) == 2 else np.ones(len(present))
        coef[present] = signs[:, None] * model.coef_
        intercept[present] = signs * model.intercept_
    return coef.T, intercept
