"""One pair of models: one studentised statistic, with its p, its interval and what would decide it.

The statistic is the lead of one model over its standard error by the jackknife. Its reference is
the same statistic under random signs: if it does not matter which model said what of a patient, the
sign of the patient's share of the lead is a coin's. Studentised, so that it also holds where the
models differ otherwise than in the score (Janssen 1997; Chung and Romano 2013).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri

from embedcache.files.arrays import Floats
from embedcache.scoring.jackknife import NO_ERROR, Spread
from embedcache.scoring.repeats import error_of_repeats

ALPHA: Final = 0.05
POWER: Final = 0.8  # chance to decide a pair that planning asks for
_MOST_ERRORS: Final = 10**4.5  # a lead that needs more patients than its square is of rounding
_BLOCK_CELLS: Final = 1 << 22  # signs that are held at a time
_ROUNDING: Final = 1e-9  # share of a statistic; it must not undo a tie
_EQUAL: Final = 1e-12  # share of the sum of squares


@dataclass(frozen=True, slots=True)
class Lead:
    """By how much one model is ahead of another, with what each patient and repeat does to it.

    Parameters
    ----------
    values
        Lead in each repeat, shape (repeats,).
    parts
        Part of each patient, as one who is tested, in the standard error of the mean lead, shape
        (patients,).
    others
        Parts of what repeats draw anew, shape (parts,); see `repeats.parts_of_repeats`.
    n_holders
        Number of patients that the score is about; None for all.
    """

    values: Floats
    parts: Floats
    others: Floats
    n_holders: int | None = None

    @property
    def value(self) -> float:
        """The mean lead."""
        return float(self.values.mean())

    @property
    def is_defined(self) -> bool:
        """Whether the scores are of two patients or more, and defined without each of them."""
        return self.n_patients > 1 and bool(np.isfinite(self.parts).all())

    @property
    def n_patients(self) -> int:
        """Number of patients that the score is about."""
        return len(self.parts) if self.n_holders is None else self.n_holders

    def errors(self) -> tuple[float, float]:
        """Return the standard errors by the patients tested, and by what repeats draw anew."""
        return float(np.linalg.norm(self.parts)), float(np.linalg.norm(self.others))


def draw_statistics(leads: Sequence[Lead], n_draws: int, seed: int) -> Floats:
    """Return what each lead over its standard error is by chance, shape (draws, leads).

    Where it does not matter which model said what of a patient, each patient's share of the lead, a
    pseudo-value of the jackknife (Tukey 1958), has a random sign. What repeats draw anew is normal,
    with a variance that is known as well as that many repeats know it. Of a score of one class, few
    patients know the variance, and the signs of others add nothing: it is chi-squared of those few.

    Parameters
    ----------
    leads
        Leads on the same patients, all with as many repeats.
    n_draws, seed
        Number of draws, and their seed.
    """
    if not leads:
        return np.empty((n_draws, 0))
    n_patients, n_repeats = len(leads[0].parts), len(leads[0].values)
    shares = np.column_stack([_shares(lead) for lead in leads])
    squares = (shares**2).sum(axis=0)
    of_repeats = [error_of_repeats(lead.others, n_repeats) for lead in leads]
    variances = np.array([error.variance for error in of_repeats])
    generator, normal = np.random.default_rng(seed), np.random.default_rng([seed, 1])
    statistics = np.empty((n_draws, len(leads)))
    for block in _blocks(n_draws, n_patients):
        sums = _signs(generator, block, n_patients) @ shares
        # About the mean share, as the jackknife has it; what is left of equal shares is rounding.
        rest = squares - sums**2 / n_patients
        rest = np.where(rest <= _EQUAL * squares, 0.0, rest) * ((n_patients - 1) / n_patients)
        if of_repeats[0] is not NO_ERROR:
            freedom, size = of_repeats[0].freedom, sums.shape
            sums += np.sqrt(variances) * normal.normal(size=size)
            rest += variances * normal.chisquare(freedom, size=size) / freedom
        n_holders = leads[0].n_holders or n_patients
        if 1 < n_holders < n_patients:
            rest *= normal.chisquare(n_holders - 1, size=sums.shape) / (n_holders - 1)
        statistics[block] = _quotient(np.abs(sums), np.sqrt(rest))
    return statistics


def draw_moves(parts: Floats, n_draws: int, seed: int) -> Floats:
    """Return by how much random signs of parts move scores, shape (draws, models).

    Parameters
    ----------
    parts
        Parts in the standard error of each model's score, shape (parts, models).
    n_draws, seed
        Number of draws, and their seed.
    """
    generator = np.random.default_rng(seed)
    moves = [_signs(generator, block, len(parts)) @ parts for block in _blocks(n_draws, len(parts))]
    return np.concatenate(moves)


def _blocks(n_draws: int, width: int) -> Iterator[slice]:
    """Yield the draws that are held at a time."""
    n_rows = max(1, _BLOCK_CELLS // width)
    for first in range(0, n_draws, n_rows):
        yield slice(first, min(first + n_rows, n_draws))


def _signs(generator: np.random.Generator, block: slice, width: int) -> Floats:
    size = (block.stop - block.start, width)
    return np.asarray(generator.integers(2, size=size, dtype=np.int8) * 2.0 - 1.0)


def _shares(lead: Lead) -> Floats:
    """Return what each patient adds to a lead, shape (patients,)."""
    n = len(lead.parts)
    moves = lead.parts * math.sqrt(n / (n - 1)) if n > 1 else lead.parts
    return lead.value / n + moves


def _quotient(above: Floats, below: Floats) -> Floats:
    """Return above / below; infinite where only below is 0, and 0 where both are."""
    rest = np.where(above > 0, math.inf, 0.0)
    return np.divide(above, below, out=rest, where=below > 0)


def spread_and_p(lead: Lead, drawn: Floats) -> tuple[Spread, float]:
    """Return a lead with its interval, and p; p is at most 0.05 where 0 lies outside.

    Parameters
    ----------
    lead
        Lead of one model.
    drawn
        Statistics where the models are alike, shape (draws,).
    """
    value, error = lead.value, math.hypot(*lead.errors())
    if not lead.is_defined:
        return Spread(value, math.nan, math.nan), math.nan
    p = _share_as_far(drawn, float(_quotient(np.array(abs(value)), np.array(error))))
    # The least statistic that a p of 0.05 would need; none if there are too few draws.
    n_above = math.floor(ALPHA * (1 + len(drawn))) - 1
    critical = float(np.sort(drawn)[-1 - n_above]) if n_above >= 0 else math.inf
    if critical == math.inf:
        return Spread(value, math.nan, math.nan), p
    half = critical * error / (1 - _ROUNDING)
    return Spread(value, value - half, value + half), p


def _share_as_far(drawn: Floats, statistic: float) -> float:
    """Return the share of statistics that are as large, the observed one among them."""
    n_as_far = np.count_nonzero(drawn >= statistic * (1 - _ROUNDING))
    return float((1 + n_as_far) / (1 + len(drawn)))


def equivalence_p(lead: Lead, drawn: Floats, margin: float) -> float:
    """Return p of a difference of the margin or more: the larger of two one-sided tests.

    References
    ----------
    Schuirmann 1987, Journal of Pharmacokinetics and Biopharmaceutics 15(6).
    """
    if not lead.is_defined:
        return math.nan
    room = np.array(margin - abs(lead.value))
    statistic = float(_quotient(np.abs(room), np.array(math.hypot(*lead.errors()))))
    # No test knows more of models that say the same than their patients' signs could tell.
    one_sided = max(_share_as_far(drawn, statistic) / 2, 2.0**-lead.n_patients)
    return one_sided if room > 0 else 1 - one_sided


def patients_needed(lead: Lead, margin: float | None, n_pairs: int = 1) -> int | None:
    """Return the least number of patients that would decide a pair with a chance of 0.8.

    A pair is decided as better if its lead stays what it is, or as equal if that is within the
    margin. All of the variance falls with the number of patients. None where no number would do.

    Parameters
    ----------
    lead
        Lead of one model.
    margin
        Difference within which two models count as equal; None where none was given.
    n_pairs
        Number of pairs that p is corrected for.
    """
    alpha, value, n_patients = ALPHA / n_pairs, abs(lead.value), len(lead.parts)
    errors: list[float] = [value / (ndtri(1 - alpha / 2) + ndtri(POWER))]  # that would do
    if margin is not None and margin > value:
        errors.append(_error_to_be_equal(value, margin, ndtri(1 - alpha)))
    present, largest = math.hypot(*lead.errors()), max(errors)
    # No error or not a number, or a lead that is rounding.
    if not present > 0 or not math.sqrt(n_patients) * present < _MOST_ERRORS * largest:
        return None
    return max(n_patients + 1, math.ceil(n_patients * (present / largest) ** 2))


def _error_to_be_equal(value: float, margin: float, quantile: float) -> float:
    """Return the standard error at which both one-sided tests refuse the margin often enough."""

    def excess(error: float) -> float:
        above, below = ((margin + side * value) / error - quantile for side in (1, -1))
        return float(ndtr(above) + ndtr(below) - 1 - POWER)

    room = margin - value
    return float(brentq(excess, room / 100, room))
