"""Subgroups of a cohort against the rest of it: which are behind, and whether by more than chance.

A subgroup is the images of one value of a column; all others of the cohort are the rest. A patient
may have images in both. Which subgroup is the furthest behind is chosen by its shortfall, so that
of the chosen one is too large; p, and an interval that allows for the choice, are given beside it.
See docs/protocol.md, 'Subgroups'.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

from embedcache.files.arrays import Floats
from embedcache.scoring.grouping import holm
from embedcache.scoring.jackknife import COVERAGE, Spread, as_term, joint_error
from embedcache.scoring.repeats import error_of_repeats, parts_of_repeats, repeated_score
from embedcache.scoring.subject import Subject

_ALPHA: Final = 1 - COVERAGE


class Side(NamedTuple):
    """A part of a cohort that is scored.

    Parameters
    ----------
    repeats
        Its units, by repeat.
    patients
        Place of each of its patients among those of the cohort, shape (its patients,).
    """

    repeats: Sequence[Subject]
    patients: NDArray[np.intp]


class Subgroup(NamedTuple):
    """A subgroup and the rest of its cohort.

    Parameters
    ----------
    name
        Value of the column.
    classes
        Classes that both sides are scored over; empty for other tasks than classification.
    members, rest
        Images of the subgroup, and all others.
    """

    name: str
    classes: tuple[str, ...]
    members: Side
    rest: Side


@dataclass(frozen=True, slots=True)
class Shortfall:
    """How far a subgroup is behind the rest of its cohort.

    Parameters
    ----------
    subgroup
        Name of the subgroup.
    classes
        Classes that both sides are scored over; empty for other tasks than classification.
    n_patients
        Number of patients of the subgroup.
    value, low, high
        Score of the rest less that of the subgroup, or of errors the reverse, with the ends of its
        95 % interval; NaN for fewer than two patients on a side.
    p
        Two-sided p value of no shortfall; at most 0.05 where 0 lies outside the interval, NaN
        without an interval.
    p_corrected
        The same by Holm, over the subgroups of the cohort.
    p_worst
        Chance that the subgroup is the furthest behind, as share of draws; NaN without an interval.
    """

    subgroup: str
    classes: tuple[str, ...]
    n_patients: int
    value: float
    low: float
    high: float
    p: float
    p_corrected: float
    p_worst: float


class _Error(NamedTuple):
    """A shortfall with its standard error.

    Parameters
    ----------
    value
        The shortfall.
    parts
        Part of each patient of the cohort in the standard error, then those of repeats.
    more
        Variance beside that of the parts: of a side that no patient moves.
    freedom
        Degrees of freedom; 0 where a side has fewer than two patients.
    most
        Largest shortfall that there can be; infinite where the score has no bounds.
    """

    value: float
    parts: Floats
    more: float
    freedom: float
    most: float

    @property
    def error(self) -> float:
        """Standard error of the shortfall."""
        return math.sqrt((self.parts**2).sum() + self.more)

    def spread(self, alpha: float) -> Spread:
        """Return the shortfall with the interval that leaves out `alpha`."""
        if not self.freedom:
            return Spread(self.value, math.nan, math.nan)
        half = -float(stdtrit(self.freedom, alpha / 2)) * self.error
        low, high = max(-self.most, self.value - half), min(self.most, self.value + half)
        return Spread(self.value, low, high)

    @property
    def p(self) -> float:
        """P value of no shortfall."""
        if not self.error:
            return 1.0 if not self.value else 0.0
        return float(2 * stdtr(self.freedom, -abs(self.value) / self.error))


def shortfalls(
    subgroups: Sequence[Subgroup],
    metric: str,
    n_patients: int,
    *,
    n_values: int | None = None,
    n_draws: int = 10_000,
    seed: int = 0,
) -> tuple[tuple[Shortfall, ...], Spread | None]:
    """Return the shortfall of each subgroup, the furthest behind first, and the largest shortfall.

    The largest of several shortfalls is too large, for noise has a part in which one it is. Its
    interval allows for that (Bonferroni): it holds whichever subgroup is picked.

    Parameters
    ----------
    subgroups
        Subgroups of the cohort on which the metric is defined.
    metric
        One of `Subject.metrics`.
    n_patients
        Number of patients of the cohort.
    n_values
        Number of values of the column in the cohort; None where the metric is defined on all.
    n_draws, seed
        Number of draws of which subgroup is the furthest behind, and their seed.

    Returns
    -------
    Shortfalls, and the largest of those with an interval, with a wider one; None without any.
    """
    errors = {subgroup.name: _shortfall(subgroup, metric, n_patients) for subgroup in subgroups}
    sized = {name: error for name, error in errors.items() if error.freedom}
    # Each of two subgroups is the rest of the other: one hypothesis, not two.
    n_hypotheses = 1 if (n_values or len(subgroups)) == 2 else len(sized)
    p = {name: error.p for name, error in sized.items()}
    corrected = [*p.values()] if n_hypotheses == 1 else holm([*p.values()])
    p_worst = _worst(sized, n_draws, seed)
    tests = dict(zip(p, zip(p.values(), corrected, p_worst, strict=True), strict=True))
    rows = []
    for subgroup in subgroups:
        name, n_members = subgroup.name, len(subgroup.members.patients)
        spread, test = errors[name].spread(_ALPHA), tests.get(name, [math.nan] * 3)
        ends = spread.value, spread.low, spread.high
        rows.append(Shortfall(name, subgroup.classes, n_members, *ends, *test))
    # Those without an interval come last: nothing says that they are behind.
    rows.sort(key=lambda shortfall: (shortfall.subgroup not in sized, -shortfall.value))
    largest = errors[rows[0].subgroup].spread(_ALPHA / n_hypotheses) if sized else None
    return tuple(rows), largest


def _shortfall(subgroup: Subgroup, metric: str, n_patients: int) -> _Error:
    """Return the shortfall of a subgroup, by what each patient of the cohort does to it."""
    sides = subgroup.members, subgroup.rest
    scores = [[subject.score(metric) for subject in side.repeats] for side in sides]
    moves = np.zeros((2, len(scores[0]), n_patients))
    for of_side, side, of_repeats in zip(moves, sides, scores, strict=True):
        of_side[:, side.patients] = [score.parts for score in of_repeats]
    sign = subgroup.rest.repeats[0].sign(metric)
    levels = np.array([[score.value for score in of_repeats] for of_repeats in scores])
    values, behind = sign * (levels[1] - levels[0]), sign * (moves[1] - moves[0])
    others = parts_of_repeats(behind, values, sides[0].repeats[0].n_folds)
    means = [repeated_score(side.repeats, metric).mean for side in sides]
    terms = [as_term(m.value, m.error, m.n_holders, m.bounds) for m in means]
    more = max(0.0, sum(term.variance for term in terms) - (moves.mean(axis=1) ** 2).sum())
    least, most = means[0].bounds
    freedom = joint_error(*terms, error_of_repeats(others, len(values))).freedom
    parts = np.concatenate([behind.mean(axis=0), others])
    return _Error(float(values.mean()), parts, more, freedom, most - least)


def _worst(errors: Mapping[str, _Error], n_draws: int, seed: int) -> Sequence[float]:
    """Return the share of draws in which each subgroup is the furthest behind, in their order."""
    if not errors:
        return []
    values = np.array([error.value for error in errors.values()])
    parts = np.stack([error.parts for error in errors.values()])
    covariance = parts @ parts.T + np.diag([error.more for error in errors.values()])
    generator = np.random.default_rng(seed)
    drawn = generator.multivariate_normal(values, covariance, n_draws, check_valid="ignore")
    counts = np.bincount(drawn.argmax(axis=1), minlength=len(values))
    return [float(count) for count in counts / n_draws]
