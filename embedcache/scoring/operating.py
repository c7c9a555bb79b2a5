"""Operating points: each class against the rest, where 95 % of the rest is refused.

In-domain, a threshold is never judged by the images that it was chosen on: the images of a fold are
called by the threshold of the other folds. See docs/protocol.md, 'Operating points'.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from embedcache.files.arrays import Floats
from embedcache.scoring.ranking import Ranking
from embedcache.scoring.resampling import ratio, sums_by_patient
from embedcache.scoring.subject import Score, Subject, score_of_sums

SPECIFICITY: Final = 0.95


def operating_points(subject: Subject) -> dict[str, float]:
    """Return the threshold of each class at which 95 % of the rest is refused."""
    thresholds = {n: threshold_at(r, SPECIFICITY) for n, r in subject.rankings.items()}
    return {name: threshold for name, threshold in thresholds.items() if threshold is not None}


def threshold_at(ranking: Ranking, specificity: float) -> float | None:
    """Return the lowest threshold at which enough of the rest is refused; None without a rest.

    A unit is called positive if its probability lies above the threshold, which therefore is the
    probability of the unit of the rest that is the first not allowed to pass.

    Parameters
    ----------
    ranking
        Units to choose the threshold on.
    specificity
        Least share of the rest that must be refused; below 0 counts as 0, above 1 as 1.
    """
    rest = np.sort(ranking.probability[~ranking.positive])
    if not len(rest):
        return None
    # Whole images: 0.05 * 40 is 2.0000000000000018.
    n_passing = math.floor(round((1 - min(max(specificity, 0.0), 1.0)) * len(rest), 9))
    return float(rest[max(0, len(rest) - 1 - n_passing)])


def rates_above(ranking: Ranking, label: str, threshold: float | Floats) -> tuple[Score, Score]:
    """Return sensitivity and specificity at thresholds as given.

    Parameters
    ----------
    ranking
        Units of the class, and the rest.
    label
        Name of the class.
    threshold
        Probability above which a unit is called positive, or that of each unit, shape (n,).
    """
    called = ranking.probability > threshold
    cells = 2 * ranking.positive.astype(np.int64) + called
    sums = sums_by_patient(
        np.ones(len(cells)), ranking.patient, ranking.n_patients, group=cells, n_groups=4
    )
    refused, passed, missed, hit = range(4)

    def rate(name: str, right: int, wrong: int) -> Score:
        n_holders = int(np.count_nonzero(sums[:, right] + sums[:, wrong]))
        return score_of_sums(
            f"{name}_at_spec95", label, sums[:, [right, wrong]], _share_of_first, n_holders
        )

    return rate("sensitivity", hit, missed), rate("specificity", refused, passed)


def _share_of_first(sums: Floats) -> Floats:
    total = sums.sum(axis=1)
    return ratio(sums[:, 0], total, total > 0)


def rates_out_of_fold(ranking: Ranking, label: str) -> tuple[Score, ...]:
    """Return sensitivity and specificity of out-of-fold answers; none where folds are too few.

    The specificity is that of the thresholds as they are. The sensitivity is an estimate of that
    which the population has where its specificity is 95 %, so its error holds that of the
    thresholds: what a patient does to the specificity, times the slope of the ROC curve, as for
    sample quantiles (Woodruff 1952).

    Parameters
    ----------
    ranking
        Units of the class, and the rest, each with the fold that tested it.
    label
        Name of the class.
    """
    thresholds = thresholds_of_others(ranking)
    if thresholds is None:
        return ()
    sensitivity, specificity = rates_above(ranking, label, thresholds)
    slope = _slope(ranking, float(np.linalg.norm(specificity.parts)))
    moved = sensitivity.parts - slope * specificity.parts
    return sensitivity._replace(parts=moved), specificity


def thresholds_of_others(ranking: Ranking) -> Floats | None:
    """Return each unit's threshold, chosen on the other folds, shape (n,).

    None where the other folds of one have no rest to choose on.
    """
    thresholds = np.empty(len(ranking.fold))
    for number in np.unique(ranking.fold):
        is_tested = ranking.fold == number
        threshold = threshold_at(_take(ranking, ~is_tested), SPECIFICITY)
        if threshold is None:
            return None
        thresholds[is_tested] = threshold
    return thresholds


def _take(ranking: Ranking, rows: NDArray[np.bool_]) -> Ranking:
    return replace(
        ranking,
        positive=ranking.positive[rows],
        probability=ranking.probability[rows],
        patient=ranking.patient[rows],
        fold=ranking.fold[rows],
    )


def _slope(ranking: Ranking, error: float) -> float:
    """Return the slope of sensitivity over specificity at the operating point, at most 0.

    It is that of the chord to the point one standard error of the specificity below: above, few of
    the rest are left, and the curve falls off steeply.

    Parameters
    ----------
    ranking
        Units of the class, and the rest.
    error
        Standard error of the specificity; a chord is as long as one unit of the rest at least.
    """
    positive, probability = ranking.positive, ranking.probability
    reach = max(error, 1 / np.count_nonzero(~positive))
    ends = [
        threshold_at(ranking, specificity) for specificity in (SPECIFICITY - reach, SPECIFICITY)
    ]
    (refused_less, refused), (missed_less, missed) = (
        [np.mean(probability[side] <= end) for end in ends if end is not None]
        for side in (~positive, positive)
    )
    if refused_less == refused:  # ties: no threshold lies between
        return 0.0
    return float((missed_less - missed) / (refused - refused_less))
