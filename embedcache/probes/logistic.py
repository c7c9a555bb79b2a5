"""Multinomial logistic regression on embeddings: many training sets and strengths at a time.

The objective is scikit-learn's: the summed log-loss plus ||W||^2 / (2 C), the intercept free, on
features standardised by the training set's own mean and deviation.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from embedcache.errors import RunError

# C = 10^-5 ... 10^0.5; on z-scored features larger values no longer change the held-out score.
C_GRID: Final = tuple(float(10.0**e) for e in np.arange(-5.0, 0.75, 0.5))
_MOST_ITERATIONS: Final = 10_000
# Largest gradient of the mean loss at which the solver stops. On real embeddings, probabilities at
# scikit-learn's default of 1e-4 are up to 0.2 away from the optimum's, at 1e-6 up to 1e-3, for
# twice the steps. An inner macro F1 moves by 0.005 at most, where several C score alike anyway.
FIT_TOL: Final = 1e-6
SWEEP_TOL: Final = 1e-4


@dataclass(frozen=True, slots=True)
class LinearProbe:
    """A fitted probe.

    Parameters
    ----------
    C
        Inverse regularisation strength it was fitted with.
    mean, scale
        Of the training set, shape (dim,); scale is 0 for a feature that never varied.
    coef
        Shape (n_classes, dim), on standardised features; zero for a class not trained on.
    intercept
        Shape (n_classes,); minus infinity for a class not trained on.
    """

    C: float
    mean: NDArray[np.float64] = field(repr=False)
    scale: NDArray[np.float64] = field(repr=False)
    coef: NDArray[np.float64] = field(repr=False)
    intercept: NDArray[np.float64] = field(repr=False)

    def probability(self, X: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the probability of each class, shape (n, n_classes), float64."""
        logits = _standardise(X, self.mean, self.scale) @ self.coef.T + self.intercept
        logits -= logits.max(axis=1, keepdims=True)
        odds = np.exp(logits)
        return np.asarray(odds / odds.sum(axis=1, keepdims=True))


def _standardise(
    X: NDArray[np.float32], mean: NDArray[np.float64], scale: NDArray[np.float64]
) -> NDArray[np.float64]:
    inverse = np.divide(1.0, scale, out=np.zeros_like(scale), where=scale > 0)
    return np.asarray((X - mean) * inverse)


def fit_sweep(
    X: NDArray[np.float32],
    y: NDArray[np.int64],
    n_classes: int,
    problems: Sequence[tuple[NDArray[np.intp], Sequence[float]]],
    *,
    tol: float = FIT_TOL,
) -> list[list[LinearProbe]]:
    """Fit one probe for each training set and each C.

    Parameters
    ----------
    X
        Shape (n, dim), finite.
    y
        Class of each row, 0 to n_classes - 1, shape (n,).
    n_classes
        Number of classes, whether or not a training set holds all of them.
    problems
        Training rows, and the values of C, ascending, to fit on them.
    tol
        Where the solver stops: `FIT_TOL`, or `SWEEP_TOL` where only a C is to be chosen.

    Returns
    -------
    For each problem its probes, in the order of its C.
    """
    return [_fit_path(X[rows], y[rows], n_classes, values, tol) for rows, values in problems]


def _fit_path(
    X: NDArray[np.float32],
    y: NDArray[np.int64],
    n_classes: int,
    values: Sequence[float],
    tol: float,
) -> list[LinearProbe]:
    mean, scale = X.mean(axis=0, dtype=np.float64), X.std(axis=0, dtype=np.float64)
    scale[scale < 1e-12 * np.maximum(1.0, np.abs(mean))] = 0.0
    Z, present = _standardise(X, mean, scale), np.unique(y)
    if len(present) == 1:
        return [_constant(C, mean, scale, n_classes, int(present[0])) for C in values]
    # The penalised optimum lies in the span of the rows, so with fewer rows than features the
    # search is as well made in the rows' own coordinates: the same optimum, ten times sooner.
    basis = None
    if len(Z) < Z.shape[1]:
        left, spread, basis = np.linalg.svd(Z, full_matrices=False)
        Z = left * spread
    # Each optimum starts the search for the next: ascending C, so from the smoothest on.
    model = LogisticRegression(tol=tol, max_iter=_MOST_ITERATIONS, warm_start=True)
    probes = []
    for C in values:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", ConvergenceWarning)
                model.set_params(C=C).fit(Z, y)
        except ConvergenceWarning:
            raise RunError(
                f"the probe at C = {C:g} did not converge in {_MOST_ITERATIONS} steps; look at the "
                "embeddings (`embedcache verify`), their values may be extreme"
            ) from None
        coef = model.coef_ if basis is None else model.coef_ @ basis
        probes.append(_spread(C, mean, scale, n_classes, model, coef))
    return probes


def _spread(
    C: float,
    mean: NDArray[np.float64],
    scale: NDArray[np.float64],
    n_classes: int,
    model: LogisticRegression,
    fitted: NDArray[np.float64],
) -> LinearProbe:
    """Put a model of the classes present in its training set among all classes."""
    coef, intercept = np.zeros((n_classes, len(mean))), np.full(n_classes, -np.inf)
    if len(model.classes_) == 2:  # scikit-learn keeps the second class's log-odds only
        coef[model.classes_[1]] = fitted[0]
        intercept[model.classes_] = 0.0, model.intercept_[0]
    else:
        coef[model.classes_] = fitted
        intercept[model.classes_] = model.intercept_
    return LinearProbe(C=C, mean=mean, scale=scale, coef=coef, intercept=intercept)


def _constant(
    C: float, mean: NDArray[np.float64], scale: NDArray[np.float64], n_classes: int, only: int
) -> LinearProbe:
    intercept = np.full(n_classes, -np.inf)
    intercept[only] = 0.0
    return LinearProbe(
        C=C, mean=mean, scale=scale, coef=np.zeros((n_classes, len(mean))), intercept=intercept
    )
