"""One temperature that makes probabilities mean what they say."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

# Of log T. Perfectly separated images would send T to 0.
_BOUNDS: Final = (-4.0, 4.0)


def fit_temperature(probability: NDArray[np.float64], y: NDArray[np.int64]) -> float:
    """Return the T whose softmax(log p / T) has the least log-loss.

    Parameters
    ----------
    probability
        Of images that the probe was not trained on, shape (n, k).
    y
        Class of each, shape (n,). An image of a class that the probe does not know says nothing.

    References
    ----------
    Guo et al. 2017, arXiv 1706.04599, section 4.2.
    """
    known = probability[np.arange(len(y)), y] > 0
    if not known.any():
        return 1.0
    log_p = np.log(np.maximum(probability[known], np.finfo(np.float64).tiny))
    own = np.arange(len(log_p)), y[known]

    def loss(log_t: float) -> float:
        return float(-log_softmax(log_p * np.exp(-log_t), axis=1)[own].mean())

    return float(np.exp(minimize_scalar(loss, bounds=_BOUNDS, method="bounded").x))
