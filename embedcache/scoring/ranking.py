"""Scores of an order: a class or a label against the rest, by the probability of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from embedcache.files.arrays import Floats
from embedcache.scoring.resampling import ratio

_BLOCK_CELLS: Final = 1 << 20  # of a table of patients x distinct probabilities, at a time


@dataclass(frozen=True, slots=True)
class Ranking:
    """Units that show a class or label, and units that do not, with the probability of it.

    Parameters
    ----------
    positive
        Whether each unit shows it, shape (n,).
    probability
        Probability of it, shape (n,).
    patient
        Number of each unit's patient, from 0, shape (n,).
    n_patients
        Number of patients.
    fold
        Number of the fold that tested each unit, shape (n,); one number where external.
    """

    positive: NDArray[np.bool_] = field(repr=False)
    probability: Floats = field(repr=False)
    patient: NDArray[np.intp] = field(repr=False)
    n_patients: int
    fold: NDArray[np.int64] = field(repr=False)

    @property
    def n_holders(self) -> int:
        """Number of patients of the side that has fewer; see `fewest_patients`."""
        return fewest_patients(self.patient, self.positive)


def fewest_patients(patient: NDArray[np.intp], is_in: NDArray[np.bool_]) -> int:
    """Return the number of patients of the side that has fewer: units that are in, or the rest.

    A score that holds one side against the other knows no more patients than that: it stays the
    same where the sides change places.

    Parameters
    ----------
    patient
        Number of each unit's patient, shape (n,).
    is_in
        Whether each unit is on the first side, shape (n,).
    """
    return min(len(np.unique(patient[side])) for side in (is_in, ~is_in))


def auroc(ranking: Ranking) -> tuple[float, Floats]:
    """Return the AUROC, and that without each patient, shape (n_patients,).

    NaN where one side is empty. Ties count a half. Units of different folds are no pairs: they were
    scored by different probes (Forman and Scholz 2010). With a patient go the pairs that his or her
    positive units win, and those that others win against his or her other units; pairs within the
    patient are in both, and go once.
    """
    is_in, n_patients = ranking.positive, ranking.n_patients
    folds = np.unique(ranking.fold, return_inverse=True)[1]
    pairs = _pairs(ranking, folds)
    within = _pairs(ranking, folds * n_patients + ranking.patient)
    gone = np.where(is_in[:, None], pairs - within, pairs)
    by_patient = [np.bincount(ranking.patient, column, n_patients) for column in gone.T]
    total = pairs[is_in].sum(axis=0)[:, None]
    won, n_pairs = np.hstack([total, total - by_patient])
    value, *left_out = ratio(won, n_pairs, n_pairs > 0)
    return float(value), np.array(left_out)


def _pairs(ranking: Ranking, group: NDArray[np.intp]) -> Floats:
    """Return each unit's pairs within its group that are won, and all of them, shape (n, 2).

    A pair is won where the positive unit of the two has the higher probability; a tie counts half.
    """
    is_in = ranking.positive
    side = 2 * group + is_in
    opposite = np.bincount(side, minlength=2 * group.max() + 2)[side ^ 1].astype(np.float64)
    below = _middle_ranks(ranking.probability, group) - _middle_ranks(ranking.probability, side)
    return np.column_stack([np.where(is_in, below, opposite - below), opposite])


def _middle_ranks(values: Floats, group: NDArray[np.intp]) -> Floats:
    """Return each value's rank within its group, ties sharing the mean of their ranks."""
    order = np.lexsort((values, group))
    is_new_group = np.diff(group[order], prepend=-1) > 0
    is_new = is_new_group | (np.diff(values[order], prepend=np.nan) != 0)
    ties = np.flatnonzero(is_new)
    tie, n_tied = is_new.cumsum() - 1, np.diff(ties, append=len(values))
    start = np.flatnonzero(is_new_group)[is_new_group.cumsum() - 1]
    ranks = np.empty(len(values))
    ranks[order] = (ties + (n_tied + 1) / 2)[tie] - start
    return ranks


def average_precision(ranking: Ranking) -> tuple[float, Floats]:
    """Return the average precision, and that without each patient, shape (n_patients,).

    It is the sum over thresholds of (gain in recall) x precision; NaN without a positive unit. Only
    the probabilities of positive units are thresholds: recall gains nothing elsewhere.
    """
    is_in, patient = ranking.positive, ranking.patient
    rungs = np.unique(ranking.probability[is_in])
    place = np.searchsorted(rungs, ranking.probability, side="right")  # 0: below all rungs
    called, hit = (_reaching(place[rows], 1, len(rungs)) for rows in (slice(None), is_in))
    left_out = np.empty(ranking.n_patients)
    step = max(1, _BLOCK_CELLS // (len(rungs) + 1))
    for first in range(0, ranking.n_patients, step):
        n_owners = min(step, ranking.n_patients - first)
        of_block = (patient >= first) & (patient < first + n_owners)
        cells = (patient - first) * (len(rungs) + 1) + place
        gone_called, gone_hit = (
            _reaching(cells[rows], n_owners, len(rungs)) for rows in (of_block, of_block & is_in)
        )
        left_out[first : first + n_owners] = _area(called - gone_called, hit - gone_hit)
    return float(_area(called, hit)[0]), left_out


def _reaching(cells: NDArray[np.intp], n_owners: int, n_rungs: int) -> Floats:
    """Return how many units of each owner reach each rung, shape (n_owners, n_rungs)."""
    counts = np.bincount(cells, minlength=n_owners * (n_rungs + 1))
    from_top = counts.reshape(n_owners, -1)[:, :0:-1].cumsum(axis=1)
    return np.asarray(from_top[:, ::-1], np.float64)


def _area(called: Floats, hit: Floats) -> Floats:
    """Return the average precision of the counts that reach each rung, shape (rows,)."""
    gained = -np.diff(hit, axis=1, append=0)
    precision = np.divide(hit, called, out=np.zeros_like(hit), where=called > 0)
    n_positive = hit[:, :1].sum(axis=1)
    return ratio((gained * precision).sum(axis=1), n_positive, n_positive > 0)
