"""Intervals in closed form, from what a score would be without each patient.

The delete-one-patient jackknife (Efron and Stein 1981): a patient leaves with all of his or her
images, so frames that resemble each other count as what they are. Nothing is drawn at random, and
the models stay as they were fitted. See docs/protocol.md, 'Intervals'.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.special import stdtrit

from embedcache.files.arrays import Floats

COVERAGE: Final = 0.95
SHARE: Final = (0.0, 1.0)  # range of a score that is a share, or a mean of shares
LOSS: Final = (0.0, math.inf)
UNBOUNDED: Final = (-math.inf, math.inf)


@dataclass(frozen=True, slots=True)
class Spread:
    """A score, or a difference of scores, with its interval.

    Parameters
    ----------
    value
        Score of the cohort as it is.
    low, high
        Ends of the 95 % interval; NaN where fewer than two patients stand behind it.
    """

    value: float
    low: float
    high: float


def deviations(left_out: Floats) -> Floats:
    """Return each patient's part in the standard error, shape (patients,).

    Its squares add up to the variance of the score, and it adds up to 0. 0 for a single patient.

    Parameters
    ----------
    left_out
        Score without each patient, shape (patients,).
    """
    n_patients = len(left_out)
    if n_patients < 2:  # nobody is left
        return np.zeros(n_patients)
    return np.asarray(math.sqrt((n_patients - 1) / n_patients) * (left_out.mean() - left_out))


def degrees_of_freedom(parts: Floats, n_holders: int) -> float:
    """Return the degrees of freedom of a variance, from 1 to n_holders - 1.

    With e = (sum of squares)^2 / (sum of fourth powers), Satterthwaite's formula (1946) for one
    degree of freedom a patient is e; e is a third of the number of patients where the parts are
    normal, and 3 e - 2, which corrects that, too large where they are not. This is the mean of
    both, 2 e - 1; `benchmarks/bench_coverage.py` shows how it holds.

    Parameters
    ----------
    parts
        Each patient's part in the standard error, shape (patients,); see `deviations`.
    n_holders
        Number of patients that the score is about: of one class, those who show it.
    """
    squares = parts**2
    effective = squares.sum() ** 2 / (squares**2).sum() if squares.any() else math.inf
    return float(max(1.0, min(2 * effective - 1, n_holders - 1)))


def spread_of(
    value: float, parts: Floats, n_holders: int, bounds: tuple[float, float] = UNBOUNDED
) -> Spread:
    """Return a score with its interval by Student's t.

    A share has Wilson's interval (1927), with the number of images that, were they independent,
    would give the same variance (Korn and Graubard 1998): near its ends it is not symmetric, and
    where no patient moves the score it is that of n_holders images.

    Parameters
    ----------
    value
        Score of the cohort as it is.
    parts
        Each patient's part in the standard error, shape (patients,); see `deviations`.
    n_holders
        Number of patients that the score is about.
    bounds
        Range of the score: `SHARE`, `LOSS` or `UNBOUNDED`.
    """
    if n_holders < 2 or math.isnan(value) or np.isnan(parts).any():
        return Spread(value, math.nan, math.nan)
    variance = float((parts**2).sum())
    t = -float(stdtrit(degrees_of_freedom(parts, n_holders), (1 - COVERAGE) / 2))
    if bounds != SHARE:
        half = t * math.sqrt(variance)
        return Spread(value, max(bounds[0], value - half), min(bounds[1], value + half))
    n_images = value * (1 - value) / variance if variance else math.inf
    if not 0 < n_images < math.inf:  # all right, or all wrong
        n_images = n_holders
    scale = 1 + t**2 / n_images
    centre = (value + t**2 / (2 * n_images)) / scale
    half = t / scale * math.sqrt(value * (1 - value) / n_images + (t / (2 * n_images)) ** 2)
    # An end at the value is the value: rounding puts it on the wrong side.
    low, high = min(value, centre - half), max(value, centre + half)
    return Spread(value, max(0.0, low), min(1.0, high))
