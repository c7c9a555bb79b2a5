"""Intervals in closed form, from what a score would be without each patient.

The delete-one-patient jackknife (Efron and Stein 1981): a patient leaves with all of his or her
images, so frames that resemble each other count as what they are. Nothing is drawn at random, and
the models stay as they were fitted. See docs/protocol.md, 'Intervals'.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from scipy.special import stdtrit

from embedcache.files.arrays import Floats

COVERAGE: Final = 0.95
SHARE: Final = (0.0, 1.0)  # range of a score that is a share, or a mean of shares
LOSS: Final = (0.0, math.inf)
UNBOUNDED: Final = (-math.inf, math.inf)
_ROUNDING: Final = 1e-12  # of a score, relative


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


class Error(NamedTuple):
    """The error of a score.

    Parameters
    ----------
    variance
        Its variance; NaN where a score without one of the patients is not defined.
    freedom
        Degrees of freedom of the variance; 0 where fewer than two patients stand behind it.
    """

    variance: float
    freedom: float


NO_ERROR: Final = Error(0.0, math.inf)


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
    mean = left_out.mean()
    moves = mean - left_out
    # Patients that are all alike do not move the score: what is left is rounding.
    moves = np.where(np.abs(moves) <= _ROUNDING * max(1.0, abs(mean)), 0.0, moves)
    return np.asarray(math.sqrt((n_patients - 1) / n_patients) * moves)


def error_of(parts: Floats, n_holders: int, bounds: tuple[float, float] = UNBOUNDED) -> Error:
    """Return the error of a score; its degrees of freedom are from 1 to n_holders - 1.

    With e = (sum of squares)^2 / (sum of fourth powers), Satterthwaite's formula (1946) for one
    degree of freedom a patient is e; e is a third of the number of patients where the parts are
    normal, and 3 e - 2, which corrects that, too large where they are not. Taken is the mean of
    both, 2 e - 1; `benchmarks/bench_coverage.py` shows how it holds. Near the ends of a share, one
    or two patients carry all of the error, and e would be that of chance: one more patient like the
    one that moves it most is counted there.

    Parameters
    ----------
    parts
        Each patient's part in the standard error, shape (patients,); see `deviations`.
    n_holders
        Number of patients that the score is about: of one class, those who show it.
    bounds
        Range of the score: `SHARE`, `LOSS` or another.
    """
    squares = parts**2
    variance, fourth = float(squares.sum()), float((squares**2).sum())
    if n_holders < 2 or math.isnan(variance):
        return Error(variance, 0.0)
    more = float(squares.max()) if bounds == SHARE else 0.0
    effective = (variance + more) ** 2 / (fourth + more**2) if variance else math.inf
    return Error(variance, max(1.0, min(2 * effective - 1, n_holders - 1)))


def joint_error(*errors: Error) -> Error:
    """Return the error of a sum of scores that vary independently (Welch 1947)."""
    if not all(error.freedom for error in errors):
        return Error(sum(error.variance for error in errors), 0.0)
    terms = [error for error in errors if error.variance]  # what does not vary counts nowhere
    if len(terms) < 2:
        return terms[0] if terms else errors[0]
    variance = sum(error.variance for error in terms)
    return Error(variance, variance**2 / sum(e.variance**2 / e.freedom for e in terms))


def spread_with(value: float, error: Error, n_holders: int, bounds: tuple[float, float]) -> Spread:
    """Return a score with its interval by Student's t.

    A share has Wilson's interval (1927), with the number of images that, were they independent,
    would give the same variance (Korn and Graubard 1998): near its ends it is not symmetric, and
    where no patient moves the score it is that of n_holders images.

    Parameters
    ----------
    value
        Score of the cohort as it is.
    error
        Its error.
    n_holders
        Number of patients that the score is about.
    bounds
        Range of the score.
    """
    variance, freedom = error
    if not freedom or math.isnan(value):
        return Spread(value, math.nan, math.nan)
    t = -float(stdtrit(freedom, (1 - COVERAGE) / 2))
    if bounds != SHARE:
        half = t * math.sqrt(variance)
        return Spread(value, max(bounds[0], value - half), min(bounds[1], value + half))
    n_images = value * (1 - value) / variance if variance else math.inf
    if not 0 < n_images < math.inf:  # all right, or all wrong
        n_images = n_holders
    scale = 1 + t**2 / n_images
    centre = (value + t**2 / (2 * n_images)) / scale
    half = t / scale * math.sqrt(value * (1 - value) / n_images + (t / (2 * n_images)) ** 2)
    # Rounding must not put an end on the wrong side of the value.
    low, high = min(value, centre - half), max(value, centre + half)
    return Spread(value, max(0.0, low), min(1.0, high))


def as_term(value: float, error: Error, n_holders: int, bounds: tuple[float, float]) -> Error:
    """Return the error of a score as a term of a difference.

    No patient moves a share that is all right or all wrong, but its interval says what it may be.
    """
    if not error.freedom or bounds != SHARE:
        return error
    spread = spread_with(value, error, n_holders, bounds)
    t = -float(stdtrit(error.freedom, (1 - COVERAGE) / 2))
    return error._replace(variance=max(error.variance, ((spread.high - spread.low) / 2 / t) ** 2))
