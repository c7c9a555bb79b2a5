"""One temperature that makes probabilities mean what they say."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

LEAST_TEMPERATURE: Final = 1e-3
LARGEST_TEMPERATURE: Final = 1e3
# A vote may give a class nothing at all; that is sure, but not infinitely sure.
_LEAST: Final = 1e-12


def fit_temperature(
    probability: NDArray[np.float64], y: NDArray[np.int64], probe: NDArray[np.int64]
) -> float:
    """Return the T whose softmax(log p / T) has the least log-loss against smoothed targets.

    Of n_c images of class c, the target is (n_c + 1) / (n_c + 2) for c, and the rest in equal parts
    for the other classes: Platt's rule, which keeps T away from 0 where all images are right. Of
    many images it is hardly any different from 1 and 0.

    Parameters
    ----------
    probability
        Probability of each class, of images that their probes were not trained on, shape (n, k).
    y
        Class of each image, shape (n,).
    probe
        Number of the probe that predicted each image, shape (n,). A class to which a probe gives
        none of its images any probability was not among its training images; images of such a class
        have no part.

    References
    ----------
    Guo et al. 2017, arXiv 1706.04599, section 4.2. Platt 1999, Probabilistic outputs for support
    vector machines, section 2.2.
    """
    is_trained = np.zeros(len(y), np.bool_)
    for number in np.unique(probe):
        rows = probe == number
        is_trained[rows] = (probability[rows] > 0).any(axis=0)[y[rows]]
    n_classes = probability.shape[1]
    if not is_trained.any() or n_classes == 1:
        return 1.0
    truth = y[is_trained]
    log_p = np.log(np.maximum(probability[is_trained], _LEAST))
    doubt = 1 / (np.bincount(truth, minlength=n_classes)[truth] + 2)
    target = np.repeat(doubt[:, None] / (n_classes - 1), n_classes, axis=1)
    target[np.arange(len(truth)), truth] = 1 - doubt

    def loss(log_t: float) -> float:
        return float(-(target * log_softmax(log_p * np.exp(-log_t), axis=1)).sum())

    ends = np.log([LEAST_TEMPERATURE, LARGEST_TEMPERATURE])
    return float(np.exp(minimize_scalar(loss, bounds=ends, method="bounded").x))
