"""One pair of models: one studentised statistic, with its p, its interval and what would decide it.

The statistic is the lead of one model over its standard error by the jackknife. Its reference is
the same statistic under random signs: if it does not matter which model said what of a patient, the
sign of the patient's share of the lead is a coin's. Studentised, so that it also holds where the
models differ otherwise than in the score (Janssen 1997; Chung and Romano 2013).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.special import ndtri

from embedcache.files.arrays import Floats
from embedcache.scoring.jackknife import Spread

ALPHA: Final = 0.05
_MOST_PATIENTS: Final = 10**9  # a lead that needs more is of rounding
POWER: Final = 0.8  # chance to decide a pair that planning asks for
_BLOCK_CELLS: Final = 1 << 22  # signs that are held at a time
_ROUNDING: Final = 1e-9  # share of a statistic; it must not undo a tie


@dataclass(frozen=True, slots=True)
class Lead:
    """By how much one model is ahead of another, with what each patient and repeat does to it.

    Parameters
    ----------
    values
        Lead in each repeat, shape (repeats,).
    parts
        Part of each patient, then of each repeat where there are several, in the standard error of
        the mean lead, shape (patients + repeats,).
    n_patients
        Number of patients.
    """

    values: Floats
    parts: Floats
    n_patients: int

    @property
    def value(self) -> float:
        """The mean lead."""
        return float(self.values.mean())

    def errors(self) -> tuple[float, float]:
        """Return the standard errors by patients, and by repeats."""
        of_patients, of_repeats = np.split(self.parts, [self.n_patients])
        return float(np.linalg.norm(of_patients)), float(np.linalg.norm(of_repeats))


def draw_signs(
    parts: Floats, leads: Sequence[Lead], n_draws: int, seed: int
) -> tuple[Floats, Floats]:
    """Return scores moved by random signs, shape (draws, models), and the statistics of leads.

    The statistics, shape (draws, pairs), are what a lead over its standard error is where it does
    not matter which model said what of a patient: each patient's share of the lead, a pseudo-value
    of the jackknife (Tukey 1958), has a random sign, and so has each repeat's part.
    """
    generator = np.random.default_rng(seed)
    n_patients = leads[0].n_patients if leads else len(parts)
    shares = np.column_stack([np.empty((len(parts), 0)), *map(_shares, leads)])
    of_patients, of_repeats = np.split(shares, [n_patients])
    moved, statistics = np.empty((n_draws, parts.shape[1])), np.empty((n_draws, len(leads)))
    n_rows = max(1, _BLOCK_CELLS // len(parts))
    for first in range(0, n_draws, n_rows):
        block = slice(first, min(first + n_rows, n_draws))
        size = (block.stop - first, len(parts))
        signs = generator.integers(2, size=size, dtype=np.int8) * 2.0 - 1.0
        moved[block] = signs @ parts
        sums = signs[:, :n_patients] @ of_patients
        # About the mean share, as the jackknife has it.
        variance = ((of_patients**2).sum(axis=0) - sums**2 / n_patients) * (
            (n_patients - 1) / n_patients
        )
        variance += (of_repeats**2).sum(axis=0)
        sums += signs[:, n_patients:] @ of_repeats
        statistics[block] = _quotient(np.abs(sums), np.sqrt(np.maximum(variance, 0.0)))
    return moved, statistics


def _shares(lead: Lead) -> Floats:
    """Return what each patient adds to a lead, and each repeat, shape (patients + repeats,)."""
    of_patients, of_repeats = np.split(lead.parts, [lead.n_patients])
    n = lead.n_patients
    moves = of_patients * math.sqrt(n / (n - 1)) if n > 1 else of_patients
    return np.concatenate([lead.value / n + moves, of_repeats])


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
    room = np.array(margin - abs(lead.value))
    statistic = float(_quotient(np.abs(room), np.array(math.hypot(*lead.errors()))))
    one_sided = _share_as_far(drawn, statistic) / 2
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
    alpha, value = ALPHA / n_pairs, abs(lead.value)
    lengths = [value / (ndtri(1 - alpha / 2) + ndtri(POWER))]
    if margin is not None:
        lengths.append((margin - value) / (ndtri(1 - alpha) + ndtri(POWER)))
    room = max(lengths) ** 2
    needed = lead.n_patients * sum(error**2 for error in lead.errors())
    return math.ceil(needed / room) if needed < _MOST_PATIENTS * room else None
