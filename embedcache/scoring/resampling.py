"""Resamples of patients, and the intervals of what is computed on them.

A resample draws patients with replacement, each with all of his or her images; a score of it
depends on how often each patient was drawn and on nothing else. What adds up over patients is
summed once by patient, and weights (resamples x patients) times these sums give every resample at
once, so that ten thousand of them cost a matrix product.
"""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from embedcache.files.arrays import Floats
from embedcache.scoring.jackknife import COVERAGE

_BLOCK_ROWS: Final = 1000  # resamples that are drawn at a time

Weights = NDArray[np.float32] | NDArray[np.float64]


@lru_cache(maxsize=1)  # images and patients of a cohort, and all its models, share it
def resample_weights(n_patients: int, n_resamples: int, seed: int) -> NDArray[np.float32]:
    """Return how often each patient is drawn, shape (n_resamples, n_patients), not to be changed.

    It depends on the number of patients and the seed alone, so models that are scored on the same
    patients share their resamples.
    """
    generator = np.random.default_rng(seed)
    weights = np.empty((n_resamples, n_patients), np.float32)
    for first in range(0, n_resamples, _BLOCK_ROWS):
        block = weights[first : first + _BLOCK_ROWS]
        drawn = generator.integers(n_patients, size=block.shape)
        cells = drawn + n_patients * np.arange(len(block))[:, None]
        block[:] = np.bincount(cells.ravel(), minlength=block.size).reshape(block.shape)
    weights.flags.writeable = False
    return weights


def weighted_sums(weights: Weights, sums: Floats) -> Floats:
    """Return sums over the drawn patients, shape (resamples, columns).

    Parameters
    ----------
    weights
        How often each patient is drawn, shape (resamples, patients).
    sums
        Sums over the images of each patient, shape (patients, columns). The product is in the
        precision of the weights: exact in float32 for counts below 2^24.
    """
    return np.asarray(weights @ sums.astype(weights.dtype), np.float64)


def sums_by_patient(
    values: Floats,
    patient: NDArray[np.intp],
    n_patients: int,
    *,
    group: NDArray[np.int64] | None = None,
    n_groups: int = 1,
) -> Floats:
    """Return sums of values by patient and group, shape (n_patients, n_groups).

    Parameters
    ----------
    values
        Value of each unit, shape (n,).
    patient
        Number of each unit's patient, from 0, shape (n,).
    n_patients
        Number of patients.
    group
        Number of each unit's group, from 0, shape (n,); None where all are of one group.
    n_groups
        Number of groups.
    """
    cells = patient if group is None else patient * n_groups + group
    sums = np.bincount(cells, values, minlength=n_patients * n_groups)
    return np.asarray(sums.reshape(n_patients, n_groups))


def ece_interval(gaps: Floats, drawn: Floats, n_patients: int) -> tuple[float, float]:
    """Return an interval of the ECE, which resampling alone would put too high.

    Noise adds to absolute values, in the estimate as in every resample of it, so the percentiles
    lie above the truth: they never hold the 0 of a calibrated model. The gaps themselves have no
    such bias. The true ones are as far from the estimated ones as these are from resampled ones,
    and by the triangle inequality their absolute sums differ by that distance at most.

    Parameters
    ----------
    gaps
        Calibration gaps of the cohort, shape (bins,); see `calibration_gaps`.
    drawn
        Calibration gaps of the resamples, shape (resamples, bins).
    n_patients
        Number of patients.
    """
    if n_patients < 2:
        return math.nan, math.nan
    distance = np.quantile(np.abs(drawn - gaps).sum(axis=1), 1 - 2 * _tail(n_patients))
    value = np.abs(gaps).sum()
    return float(max(0, value - distance)), float(min(1, value + distance))


def _tail(n_patients: int) -> float:
    """Return how much an interval of resamples leaves out at each end (Hesterberg 2015).

    Percentiles are too narrow for few patients: they use normal quantiles where Student's belong,
    and a variance over n where n - 1 belongs.
    """
    t = stdtrit(n_patients - 1, (1 - COVERAGE) / 2)
    return NormalDist().cdf(math.sqrt(n_patients / (n_patients - 1)) * t)


def ratio(above: Floats, below: Floats, defined: NDArray[np.bool_]) -> Floats:
    """Return above / below; NaN where not defined, 0 where below is 0 all the same."""
    quotient = np.divide(above, below, out=np.zeros_like(above), where=below > 0)
    return np.where(defined, quotient, np.nan)


def mean_of_defined(values: Floats) -> Floats:
    """Return the mean over the columns that are not NaN, shape (resamples,); NaN where all are.

    A column is a class or a label, and is NaN in a resample that drew none of its images.
    """
    n_defined = (~np.isnan(values)).sum(axis=1)
    return ratio(np.nansum(values, axis=1), n_defined.astype(np.float64), n_defined > 0)
