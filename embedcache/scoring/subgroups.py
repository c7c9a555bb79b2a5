"""Groups of one cohort against the rest of it: which are behind, and whether by more than chance.

A group is the images of one value of a column; all others of the cohort are the rest. Both are
scored in the same resamples of patients, and a patient may have images in both. See
docs/protocol.md, 'Groups within a cohort'.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

from embedcache.files.arrays import Floats
from embedcache.scoring.grouping import holm
from embedcache.scoring.resampling import COVERAGE, Spread, Weights, interval, resample_weights
from embedcache.scoring.subject import Subject

_LEAST_PATIENTS: Final = 2  # of a group and of the rest, for an interval


class Side(NamedTuple):
    """A part of a cohort that is scored.

    Parameters
    ----------
    subject
        Its units.
    patients
        Place of each of its patients among those of the cohort, shape (its patients,).
    """

    subject: Subject
    patients: NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Group:
    """A group and the rest of its cohort.

    Parameters
    ----------
    name
        Value of the column.
    classes
        Classes that both sides are scored over; empty for other tasks than classification.
    members, rest
        Images of the group, and all others.
    """

    name: str
    classes: tuple[str, ...]
    members: Side = field(repr=False)
    rest: Side = field(repr=False)

    @property
    def n_patients(self) -> int:
        """Number of patients of the smaller side."""
        return min(len(self.members.patients), len(self.rest.patients))


@dataclass(frozen=True, slots=True)
class Gap:
    """How far a group is behind the rest of its cohort.

    Parameters
    ----------
    group
        Name of the group.
    classes
        Classes that both sides are scored over; empty for other tasks than classification.
    n_patients
        Number of patients of the group.
    value, low, high
        Score of the rest less that of the group, or of errors the reverse, with the ends of its
        95 % interval; NaN for fewer than two patients on a side.
    p
        Two-sided p value of no gap, of the same resamples as the interval; NaN without one.
    p_corrected
        The same by Holm, over the groups of the cohort.
    p_worst
        Share of resamples in which the group is the furthest behind; NaN without an interval.
    """

    group: str
    classes: tuple[str, ...]
    n_patients: int
    value: float
    low: float
    high: float
    p: float
    p_corrected: float
    p_worst: float


def gaps(
    groups: Sequence[Group],
    metric: str,
    n_patients: int,
    *,
    n_resamples: int = 10_000,
    seed: int = 0,
) -> tuple[tuple[Gap, ...], Spread | None]:
    """Return the gap of each group, the furthest behind first, and the largest gap.

    The largest of several gaps is too large, for noise has a part in which one it is. Its interval
    allows for that: it is wide enough for all gaps at once to lie within theirs, so that it holds
    whichever is picked.

    Parameters
    ----------
    groups
        Groups of the cohort on which the metric is defined.
    metric
        One of `Subject.metrics`.
    n_patients
        Number of patients of the cohort.
    n_resamples
        Number of resamples of patients.
    seed
        Seed of the bootstrap.

    Returns
    -------
    Gaps, and the largest of those with an interval, with its wider one; None where none has.
    """
    weights = resample_weights(n_patients, n_resamples, seed)
    everyone = np.ones((1, n_patients))
    values = {group.name: float(_lead_of_rest(group, metric, everyone)[0]) for group in groups}
    sized = [group for group in groups if group.n_patients >= _LEAST_PATIENTS]
    draws = {group.name: _lead_of_rest(group, metric, weights) for group in sized}
    sized = [group for group in sized if not np.isnan(draws[group.name]).all()]
    draws = {group.name: draws[group.name] for group in sized}
    p = {group.name: _p_of_no_gap(draws[group.name], group.n_patients) for group in sized}
    # Each of two groups is the rest of the other: one hypothesis, not two.
    corrected = dict(zip(p, p.values() if len(groups) == 2 else holm([*p.values()]), strict=True))
    worst = _shares_of_worst(draws)
    rows = [
        Gap(
            group.name,
            group.classes,
            len(group.members.patients),
            values[group.name],
            *interval(draws.get(group.name, np.full(1, np.nan)), group.n_patients),
            p=p.get(group.name, math.nan),
            p_corrected=corrected.get(group.name, math.nan),
            p_worst=worst.get(group.name, math.nan),
        )
        for group in groups
    ]
    # Those without an interval come last: nothing says that they are behind.
    rows.sort(key=lambda gap: (math.isnan(gap.low), -gap.value))
    return tuple(rows), _simultaneous(rows[0], sized, values, draws) if sized else None


def _lead_of_rest(group: Group, metric: str, weights: Weights) -> Floats:
    """Return by how much the rest is ahead of a group, shape (resamples,); NaN without either."""
    sign = group.rest.subject.sign(metric)
    return sign * (_scores(group.rest, metric, weights) - _scores(group.members, metric, weights))


def _scores(side: Side, metric: str, weights: Weights) -> Floats:
    drawn = weights[:, side.patients]
    is_there = drawn.any(axis=1)
    scores = np.full(len(drawn), np.nan)
    if is_there.any():
        scores[is_there] = side.subject.score(metric, drawn[is_there])
    return scores


def _p_of_no_gap(draws: Floats, n_patients: int) -> float:
    """Return the p value at which the interval of some draws would end at 0; see `interval`."""
    n_below, n_above = (draws <= 0).sum(), (draws >= 0).sum()
    n_drawn = (~np.isnan(draws)).sum()
    tail = max(1, min(n_below, n_above)) / max(1, n_drawn)
    if tail >= 0.5:
        return 1.0
    t = NormalDist().inv_cdf(float(tail)) / math.sqrt(n_patients / (n_patients - 1))
    return float(2 * stdtr(n_patients - 1, t))


def _shares_of_worst(draws: dict[str, Floats]) -> dict[str, float]:
    """Return the share of resamples in which each group is the furthest behind; ties share."""
    if not draws:
        return {}
    behind = np.nan_to_num(np.stack([*draws.values()]), nan=-np.inf)
    behind = behind[:, (behind > -np.inf).any(axis=0)]
    is_worst = behind == behind.max(axis=0)
    return dict(zip(draws, (is_worst / is_worst.sum(axis=0)).mean(axis=1).tolist(), strict=True))


def _simultaneous(
    gap: Gap, groups: Sequence[Group], values: dict[str, float], draws: dict[str, Floats]
) -> Spread:
    """Return a gap with its part of a band that holds the gaps of all groups at once."""
    farthest = np.zeros(len(draws[gap.group]))
    for group in groups:  # the largest distance over groups, in standard errors
        distance = np.abs(draws[group.name] - values[group.name])
        error = np.nanstd(draws[group.name])
        farthest = np.fmax(farthest, distance / error if error > 0 else 0.0)
    n_patients = next(group.n_patients for group in groups if group.name == gap.group)
    half = np.quantile(farthest, COVERAGE) * np.nanstd(draws[gap.group]) * _stretch(n_patients)
    # The band is symmetric and the gap's own interval is not: never less than that.
    low, high = min(gap.low, gap.value - half), max(gap.high, gap.value + half)
    return Spread(gap.value, float(low), float(high))


def _stretch(n_patients: int) -> float:
    """Return by how much few patients stretch an interval, at least 1: as in `interval`."""
    t, z = stdtrit(n_patients - 1, (1 - COVERAGE) / 2), NormalDist().inv_cdf((1 - COVERAGE) / 2)
    return float(math.sqrt(n_patients / (n_patients - 1)) * t / z)
