"""How far probabilities can be believed: log-loss, Brier score, ECE, the reliability diagram."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from embedcache.files.arrays import Floats
from embedcache.scoring.jackknife import LOSS
from embedcache.scoring.probability_units import ProbabilityUnits
from embedcache.scoring.resampling import Weights, ratio, sums_by_patient, weighted_sums
from embedcache.scoring.subject import Score, score_of_sums

N_BINS: Final = 15
_LEAST: Final = np.finfo(np.float64).eps  # probabilities below count as this in a logarithm


def losses(units: ProbabilityUnits) -> Iterator[Score]:
    """Yield mean log-loss and mean Brier score, summed over classes."""
    of_truth = units.probability[np.arange(len(units.truth)), units.columns[units.truth]]
    n, n_patients = np.ones(len(of_truth)), units.n_patients
    of_unit = {
        "log_loss": (-np.log(np.maximum(of_truth, _LEAST)), LOSS),
        "brier": ((units.probability**2).sum(axis=1) - 2 * of_truth + 1, (0.0, 2.0)),
    }
    for metric, (loss, bounds) in of_unit.items():
        sums = np.hstack([sums_by_patient(c, units.patient, n_patients) for c in (loss, n)])
        yield score_of_sums(metric, "", sums, _mean, n_patients, bounds)


def _mean(sums: Floats) -> Floats:
    return ratio(sums[:, 0], sums[:, 1], sums[:, 1] > 0)


def confidence_bins(units: ProbabilityUnits) -> NDArray[np.int64]:
    """Return each unit's bin by its largest probability, shape (n,): equal masses, but for ties."""
    confidence = units.probability.max(axis=1)
    edges = np.quantile(confidence, np.arange(1, N_BINS) / N_BINS)
    return np.asarray(np.searchsorted(edges, confidence), np.int64)


def calibration_gaps(units: ProbabilityUnits, weights: Weights) -> Floats:
    """Return the excess of confidence over accuracy, by bin, times the bin's share.

    Shape (resamples, N_BINS); the ECE is the sum of their absolute values. The bins are those of
    the whole cohort in every resample.
    """
    gap = units.probability.max(axis=1) - (units.predicted == units.truth)
    bins, n_patients = confidence_bins(units), units.n_patients
    by_bin = sums_by_patient(gap, units.patient, n_patients, group=bins, n_groups=N_BINS)
    n_units = sums_by_patient(np.ones(len(gap)), units.patient, n_patients)
    sums = weighted_sums(weights, np.hstack([by_bin, n_units]))
    return sums[:, :-1] / sums[:, -1:]


@dataclass(frozen=True, slots=True)
class Bin:
    """Units of about the same confidence.

    Parameters
    ----------
    n
        Number of units.
    confidence
        Mean of their largest probabilities.
    accuracy
        Share of them that is right.
    """

    n: int
    confidence: float
    accuracy: float


def reliability(units: ProbabilityUnits) -> list[Bin]:
    """Return the bins of the reliability diagram that the ECE sums up, least sure first."""
    bins, confidence = confidence_bins(units), units.probability.max(axis=1)
    right = units.predicted == units.truth
    members = [np.flatnonzero(bins == number) for number in range(N_BINS)]
    return [
        Bin(len(rows), float(confidence[rows].mean()), float(right[rows].mean()))
        for rows in members
        if len(rows)
    ]
