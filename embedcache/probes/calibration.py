"""One temperature that makes probabilities mean what they say."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

# Of log T: without a bound, images that are all right would send T to 0.
_BOUNDS: Final = (-7.0, 7.0)
# A vote may give a class nothing at all; that is sure, but not infinitely sure.
_LEAST: Final = 1e-12


def fit_temperature(probability: NDArray[np.float64], y: NDArray[np.int64]) -> float:
    """Return the T whose softmax(log p / T) has the least log-loss.

    Parameters
    ----------
    probability
        Probability of each class, of images that the probe was not trained on, shape (n, k).
    y
        Class of each image, shape (n,). A class to which no image has any probability was not
        among the training images, and its images have no part.

    References
    ----------
    Guo et al. 2017, arXiv 1706.04599, section 4.2.
    """
    is_trained = np.asarray((probability > 0).any(axis=0))[y]
    if not is_trained.any():
        return 1.0
    log_p = np.log(np.maximum(probability[is_trained], _LEAST))
    truth = np.arange(len(log_p)), y[is_trained]

    def loss(log_t: float) -> float:
        return float(-log_softmax(log_p * np.exp(-log_t), axis=1)[truth].mean())

    return float(np.exp(minimize_scalar(loss, bounds=_BOUNDS, method="bounded").x))
