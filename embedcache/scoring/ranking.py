"""Scores of an order: a class or a label against the rest, by the probability of it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from embedcache.files.arrays import Floats
from embedcache.scoring.resampling import Weights, ratio, sums_by_patient, weighted_sums

_BLOCK_CELLS: Final = 1 << 22  # of a table of units x patients, or resamples x units, at a time
_EXACT: Final = 2.0**23  # halves below it are exact in float32


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


def auroc(rankings: Sequence[Ranking], weights: Weights) -> Floats:
    """Return the AUROC of each ranking, shape (resamples, rankings); NaN where a side is empty.

    Ties count a half. Units of different folds are no pairs: they were scored by different probes
    (Forman and Scholz 2010). With A[p, q] the pairs that positive units of patient p win against
    other units of patient q, it is w' A w over the number of pairs, both added up over folds.

    Parameters
    ----------
    rankings
        Rankings of the same units, at least one: only `positive` and `probability` differ.
    weights
        How often each patient is drawn, shape (resamples, patients).
    """
    patient, fold = rankings[0].patient, rankings[0].fold
    won, n_pairs = np.zeros((2, len(weights), len(rankings)))
    for number in np.unique(fold):
        rows = np.flatnonzero(fold == number)
        patients, owner = np.unique(patient[rows], return_inverse=True)
        drawn = weights.take(patients, axis=1)
        positive = np.column_stack([ranking.positive[rows] for ranking in rankings])
        sides = [_by_owner(side.astype(np.float64), owner) for side in (positive, ~positive)]
        n_in, n_out = np.split(weighted_sums(drawn, np.hstack(sides)), 2, axis=1)
        n_pairs += n_in * n_out
        for place, ranking in enumerate(rankings):
            for holders, wins in _wins(positive[:, place], ranking.probability[rows], owner):
                won[:, place] += _drawn_wins(drawn, holders, wins)
    return ratio(won, n_pairs, n_pairs > 0)


def _by_owner(columns: Floats, owner: NDArray[np.intp]) -> Floats:
    """Return the sums of columns over each owner's rows, shape (owners, columns)."""
    return np.column_stack([np.bincount(owner, column) for column in columns.T])


def _wins(
    is_in: NDArray[np.bool_], probability: Floats, owner: NDArray[np.intp]
) -> Iterator[tuple[NDArray[np.intp], Floats]]:
    """Yield owners of positive units and the pairs that they win, shape (owners, these owners).

    Row q of a column p counts the pairs that positive units of p win against other units of q.
    """
    n_owners = int(owner.max()) + 1
    inside = np.flatnonzero(is_in)
    inside = inside[np.argsort(owner[inside], kind="stable")]
    n_chunks = -(-len(inside) * n_owners // _BLOCK_CELLS)
    for chunk in np.array_split(np.unique(owner[inside]), n_chunks) if n_chunks else ():
        of_chunk = inside[np.isin(owner[inside], chunk)]
        first = np.searchsorted(owner[of_chunk], chunk)
        below = _below(probability[of_chunk], probability[~is_in], owner[~is_in], n_owners)
        yield chunk, np.add.reduceat(below, first, axis=0).T


def _drawn_wins(drawn: Weights, holders: NDArray[np.intp], wins: Floats) -> Floats:
    """Return the pairs won in each resample, shape (resamples,)."""
    # Halves below 2^23 are exact in float32: no order of additions changes their sum.
    is_exact = wins.sum(axis=0).max() * float(drawn.max()) ** 2 < _EXACT
    dtype = np.float32 if is_exact else np.float64
    beaten = drawn.astype(dtype, copy=False) @ wins.astype(dtype)
    beaten *= drawn.take(holders, axis=1)
    return np.asarray(beaten.sum(axis=1, dtype=np.float64))


def _below(marks: Floats, probability: Floats, owner: NDArray[np.intp], n_owners: int) -> Floats:
    """Return how many of each owner's units lie below each mark, shape (marks, n_owners)."""
    order = np.argsort(marks, kind="stable")
    steps = np.zeros((len(marks) + 1) * n_owners)
    for side in ("left", "right"):  # a tie passes one of the two, and so counts a half
        cells = np.searchsorted(marks[order], probability, side) * n_owners + owner
        steps += np.bincount(cells, minlength=len(steps)) / 2
    counts = np.empty((len(marks), n_owners))
    counts[order] = steps.reshape(-1, n_owners)[:-1].cumsum(axis=0)
    return counts


def auroc_left_out(ranking: Ranking) -> Floats:
    """Return the AUROC without each patient, shape (n_patients,); NaN where a side is empty then.

    With a patient go the pairs that his or her positive units win and those that others win against
    his or her other units; pairs within the patient are in both, and count once.
    """
    is_in, n_patients = ranking.positive, ranking.n_patients
    folds = np.unique(ranking.fold, return_inverse=True)[1]
    pairs = _pairs(ranking, folds)
    within = _pairs(ranking, folds * n_patients + ranking.patient)
    gone = np.where(is_in[:, None], pairs - within, pairs)
    by_patient = [np.bincount(ranking.patient, column, n_patients) for column in gone.T]
    won, n_pairs = pairs[is_in].sum(axis=0)[:, None] - by_patient
    return ratio(won, n_pairs, n_pairs > 0)


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


def average_precision(ranking: Ranking, weights: Weights) -> Floats:
    """Return the sum over thresholds of (gain in recall) x precision, shape (resamples,).

    Only the probabilities of positive units are thresholds: recall gains nothing elsewhere.
    """
    n_called, n_hit = _reaching(ranking)
    values = np.empty(len(weights))
    step = max(1, _BLOCK_CELLS // n_hit.shape[1])
    for first in range(0, len(weights), step):
        block = weights[first : first + step]
        called, hit = (np.asarray(block @ n.astype(block.dtype)) for n in (n_called, n_hit))
        values[first : first + step] = _area(called, hit)
    return values


def average_precision_left_out(ranking: Ranking) -> Floats:
    """Return the average precision without each patient, shape (n_patients,); NaN likewise."""
    called, hit = (n.sum(axis=0) - n for n in _reaching(ranking))
    return _area(called, hit)


def _area(called: Floats, hit: Floats) -> Floats:
    """Return the average precision of units and positive units that reach each threshold."""
    gained = -np.diff(hit, axis=1, append=0)
    precision = np.divide(hit, called, out=np.zeros_like(hit), where=called > 0)
    area = (gained * precision).sum(axis=1, dtype=np.float64)
    n_positive = hit[:, 0].astype(np.float64)
    return ratio(area, n_positive, n_positive > 0)


def _reaching(ranking: Ranking) -> tuple[Floats, Floats]:
    """Return how many units of each patient reach each positive unit's probability.

    All units, then positive ones, shape (patients, distinct probabilities) each, lowest first.
    """
    rungs = np.unique(ranking.probability[ranking.positive])
    n_places = len(rungs) + 1
    place = np.searchsorted(rungs, ranking.probability, side="right")  # 0: below all rungs
    cells = ranking.patient * n_places + place

    def reaching(cells: NDArray[np.intp]) -> Floats:
        counts = np.bincount(cells, minlength=ranking.n_patients * n_places)
        from_below = counts.reshape(ranking.n_patients, -1)[:, :0:-1].cumsum(axis=1)
        return np.asarray(from_below[:, ::-1], np.float64)

    return reaching(cells), reaching(cells[ranking.positive])


def threshold_at(ranking: Ranking, specificity: float) -> float | None:
    """Return the lowest threshold at which enough of the rest is refused; None without a rest.

    A unit is called positive if its probability lies above the threshold, which therefore is the
    probability of the unit of the rest that is the first not allowed to pass.

    Parameters
    ----------
    ranking
        Units to choose the threshold on.
    specificity
        Least share of the rest that must be refused, from 0 to 1.
    """
    rest = np.sort(ranking.probability[~ranking.positive])
    if not len(rest):
        return None
    # Whole images: 0.05 * 40 is 2.0000000000000018.
    n_passing = math.floor(round((1 - specificity) * len(rest), 9))
    return float(rest[len(rest) - 1 - n_passing])


def rates_above(ranking: Ranking, threshold: float, weights: Weights) -> tuple[Floats, Floats]:
    """Return sensitivity and specificity at a threshold, shape (resamples,) each."""
    is_in = ranking.positive.astype(np.int64)
    called = (ranking.probability > threshold).astype(np.int64)
    sums = sums_by_patient(
        np.ones(len(is_in)),
        ranking.patient,
        ranking.n_patients,
        group=2 * is_in + called,
        n_groups=4,
    )
    cells = weighted_sums(weights, sums)
    n_out, n_in = cells[:, :2].sum(axis=1), cells[:, 2:].sum(axis=1)
    return ratio(cells[:, 3], n_in, n_in > 0), ratio(cells[:, 0], n_out, n_out > 0)
