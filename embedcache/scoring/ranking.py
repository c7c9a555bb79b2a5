"""Scores of an order: a class or a label against the rest, by the probability of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from embedcache.files.arrays import Floats
from embedcache.scoring.resampling import Weights, ratio, sums_by_patient, weighted_sums

_BLOCK_PATIENTS: Final = 256  # patients whose pairs are counted at a time
_BLOCK_CELLS: Final = 1 << 22  # of resamples x distinct scores, at a time


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


def auroc(ranking: Ranking, weights: Weights) -> Floats:
    """Return the AUROC, shape (resamples,), ties counting a half; NaN where one side is empty.

    Units of different folds are no pairs: they were scored by different probes (Forman and Scholz
    2010). With A[p, q] the pairs that positive units of patient p win against other units of
    patient q, it is w' A w over the number of pairs. Only patients with positive units have a row
    in A, and A is made a block of columns at a time; counts below 2^24 are exact in float32.
    """
    won, n_pairs = np.zeros((2, len(weights)))
    for number in np.unique(ranking.fold):
        fold_won, fold_pairs = _contests(ranking, weights, ranking.fold == number)
        won += fold_won
        n_pairs += fold_pairs
    return ratio(won, n_pairs, n_pairs > 0)


def _contests(
    ranking: Ranking, weights: Weights, tested: NDArray[np.bool_]
) -> tuple[Floats, Floats]:
    """Return pairs won and all pairs of the tested units, shape (resamples,) each."""
    probability, patient = ranking.probability, ranking.patient
    is_in, is_out = tested & ranking.positive, tested & ~ranking.positive
    order = np.flatnonzero(is_in)[np.argsort(probability[is_in], kind="stable")]
    ladder, rest = probability[order], np.flatnonzero(is_out)
    holders, holder = np.unique(patient[order], return_inverse=True)
    drawn = weights[:, holders]
    won = np.zeros(len(weights))
    for first in range(0, ranking.n_patients, _BLOCK_PATIENTS):
        width = min(_BLOCK_PATIENTS, ranking.n_patients - first)
        rows = rest[(patient[rest] >= first) & (patient[rest] < first + width)]
        pairs = np.zeros((len(holders), width), weights.dtype)
        np.add.at(pairs, holder, _below(ladder, probability[rows], patient[rows] - first, width))
        products = (drawn @ pairs) * weights[:, first : first + width]
        won += products.sum(axis=1, dtype=np.float64)
    sides = [
        sums_by_patient(side.astype(np.float64), patient, ranking.n_patients)
        for side in (is_in, is_out)
    ]
    n_pairs = np.prod([weighted_sums(weights, side)[:, 0] for side in sides], axis=0)
    return won, n_pairs


def _below(ladder: Floats, probability: Floats, owner: NDArray[np.intp], n_owners: int) -> Floats:
    """Return how many of each owner's units lie below each rung, shape (rungs, n_owners)."""
    steps = np.zeros((len(ladder) + 1, n_owners))
    for side in ("left", "right"):  # a tie passes one of the two, and so counts a half
        np.add.at(steps, (np.searchsorted(ladder, probability, side), owner), 0.5)
    return np.asarray(steps[:-1].cumsum(axis=0))


def average_precision(ranking: Ranking, weights: Weights) -> Floats:
    """Return the sum over thresholds of (gain in recall) x precision, shape (resamples,).

    Only the probabilities of positive units are thresholds: recall gains nothing elsewhere.
    """
    rungs = np.unique(ranking.probability[ranking.positive])
    everywhere = np.ones_like(ranking.positive)
    n_called, n_hit = (_reaching(ranking, rows, rungs) for rows in (everywhere, ranking.positive))
    values = np.empty(len(weights))
    step = max(1, _BLOCK_CELLS // len(rungs))
    for first in range(0, len(weights), step):
        block = weights[first : first + step]
        called, hit = (np.asarray(block @ n.astype(block.dtype)) for n in (n_called, n_hit))
        gained = -np.diff(hit, axis=1, append=0)
        precision = np.divide(hit, called, out=np.zeros_like(hit), where=called > 0)
        total = np.where(hit[:, 0] > 0, hit[:, 0], np.nan)
        values[first : first + step] = (gained * precision).sum(axis=1, dtype=np.float64) / total
    return values


def _reaching(ranking: Ranking, rows: NDArray[np.bool_], rungs: Floats) -> Floats:
    """Return how many of these units of each patient reach each rung, shape (patients, rungs)."""
    place = np.searchsorted(rungs, ranking.probability[rows], side="right")  # 0: below all rungs
    cells = ranking.patient[rows] * (len(rungs) + 1) + place
    counts = np.bincount(cells, minlength=ranking.n_patients * (len(rungs) + 1))
    from_below = counts.reshape(ranking.n_patients, -1)[:, :0:-1].cumsum(axis=1)
    return np.asarray(from_below[:, ::-1], np.float64)


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
