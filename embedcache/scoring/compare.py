"""Models against each other on the same patients: differences, tests, ranks, groups.

Everything is paired: a resample draws the same patients for all models, and a permutation swaps
what two models said of a patient, of all of his or her images at once. See docs/protocol.md,
'Comparison'.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from embedcache.scoring.scores import (
    N_BINS,
    Floats,
    Units,
    check_metric,
    confidence_bins,
    interval,
    patient_tables,
    resample_weights,
    score,
    table_score,
)

ALPHA: Final = 0.05


@dataclass(frozen=True, slots=True)
class Standing:
    """How one model stands among the others.

    Parameters
    ----------
    name
        The model.
    value, low, high
        Its score and 95 % interval.
    rank
        Mean over resamples; 1 is best, models that tie share the mean of their places.
    p_best
        Share of resamples in which it is the best; models that tie share it.
    groups
        Numbers of the groups that it is in, from 1. Models that share a group cannot be told apart.
    """

    name: str
    value: float
    low: float
    high: float
    rank: float
    p_best: float
    groups: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Pair:
    """One model against another.

    Parameters
    ----------
    better, worse
        The models, by score.
    difference, low, high
        Score of the better one less that of the other, with its paired 95 % interval.
    p
        Of no difference, two-sided, never 0.
    p_corrected
        By Holm, over all pairs of the comparison.
    """

    better: str
    worse: str
    difference: float
    low: float
    high: float
    p: float
    p_corrected: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """Models on one cohort, best first; `pairs` are all of them, `test` says where p is from."""

    standings: tuple[Standing, ...]
    pairs: tuple[Pair, ...]
    test: str

    def behind_best(self, name: str) -> Pair | None:
        """Return the pair of a model and the best one; None for the best itself."""
        best = self.standings[0].name
        return next((one for one in self.pairs if (one.better, one.worse) == (best, name)), None)


def compare(
    models: Mapping[str, Units], metric: str, *, n_resamples: int = 10_000, seed: int = 0
) -> Comparison:
    """Compare models that predicted the same units.

    Parameters
    ----------
    models
        By name; each has the same patients and classes.
    metric
        As for `scores.score`; higher is better.
    n_resamples, seed
        Of bootstrap and permutation.

    Raises
    ------
    RunError
        No such metric, or a class that does not occur.
    """
    some = next(iter(models.values()))
    check_metric(metric, some.classes)
    values = {name: float(score(metric, one, one.everyone)[0]) for name, one in models.items()}
    names = sorted(models, key=lambda name: (-values[name], name))
    weights = resample_weights(some.n_patients, n_resamples, seed)
    draws = np.stack([score(metric, models[name], weights) for name in names])
    draws = draws[:, ~np.isnan(draws).any(axis=0)]  # a class that was not drawn
    has_tables = not metric.startswith("auroc")
    swaps = _swaps(some.n_patients, n_resamples, seed)
    leads = []
    for first, second in itertools.combinations(range(len(names)), 2):
        ours, theirs = models[names[first]], models[names[second]]
        lead = draws[first] - draws[second]
        p = permutation_p(ours, theirs, metric, swaps) if has_tables else _bootstrap_p(lead)
        value = values[names[first]] - values[names[second]]
        leads.append((names[first], names[second], value, *interval(lead, some.n_patients), p))
    corrected = holm([lead[-1] for lead in leads])
    pairs = tuple(Pair(*lead, p) for lead, p in zip(leads, corrected, strict=True))
    test = "permutation of patients" if has_tables else "bootstrap of patients"
    return Comparison(_standings(names, values, draws, some.n_patients, pairs), pairs, test)


def _standings(
    names: Sequence[str],
    values: Mapping[str, float],
    draws: Floats,
    n_patients: int,
    pairs: Sequence[Pair],
) -> tuple[Standing, ...]:
    groups = alike(names, [(one.better, one.worse) for one in pairs if one.p_corrected < ALPHA])
    ranks, p_best = _ranks(draws)
    return tuple(
        Standing(
            name,
            values[name],
            *interval(draws[place], n_patients),
            rank=float(ranks[place]),
            p_best=float(p_best[place]),
            groups=tuple(i for i, group in enumerate(groups, 1) if name in group),
        )
        for place, name in enumerate(names)
    )


def _swaps(n_patients: int, n_draws: int, seed: int) -> NDArray[np.float32]:
    """Return whether a draw swaps a patient, 0 or 1, shape (n_draws, patients)."""
    chance = np.random.default_rng([seed, 1])  # not the stream of the bootstrap
    return chance.integers(2, size=(n_draws, n_patients), dtype=np.int8).astype(np.float32)


def permutation_p(first: Units, second: Units, metric: str, swaps: NDArray[np.float32]) -> float:
    """Return how often models with swapped patients differ as much as the models do.

    If it did not matter which model said what of a patient, the swaps would change nothing but by
    chance (Good 2005). A swap moves a patient's confusion table from one model to the other.

    Parameters
    ----------
    swaps
        0 or 1, shape (draws, patients).
    """
    ours, theirs = patient_tables(first), patient_tables(second)
    moved = np.asarray(swaps @ (theirs - ours).astype(np.float32), np.float64)
    sums = ours.sum(axis=0), theirs.sum(axis=0)

    def lead(moved: Floats) -> Floats:
        scores = (
            table_score(metric, first.classes, one) for one in (sums[0] + moved, sums[1] - moved)
        )
        return np.asarray(np.subtract(*scores))

    observed = abs(lead(np.zeros((1, len(sums[0]))))[0])
    as_far = np.abs(lead(moved)) >= observed - 1e-12  # rounding must not undo a tie
    return float((1 + as_far.sum()) / (1 + len(swaps)))


def _bootstrap_p(lead: Floats) -> float:
    """Return twice the share of resamples on the rarer side of 0, which counts to both."""
    rarer = min((lead <= 0).sum(), (lead >= 0).sum())
    return float(min(1, 2 * (1 + rarer) / (1 + len(lead))))


def holm(p: Sequence[float]) -> list[float]:
    """Return p values corrected for their number, step-down (Holm 1979)."""
    corrected, largest = [0.0] * len(p), 0.0
    for step, number in enumerate(np.argsort(p, kind="stable")):
        largest = max(largest, min(1.0, (len(p) - step) * p[number]))
        corrected[number] = largest
    return corrected


def alike(names: Sequence[str], different: Iterable[tuple[str, str]]) -> list[frozenset[str]]:
    """Return the largest groups in which no two differ, that of the first name first.

    Insert and absorb (Piepho 2004): a group that holds a pair that differs is split in two, each
    without one of them, and groups that lie within another go.
    """
    groups = {frozenset(names)}
    for pair in map(frozenset, different):
        split = {part for group in groups for part in _split(group, pair)}
        groups = {one for one in split if not any(one < other for other in split)}
    place = {name: number for number, name in enumerate(names)}
    return sorted(groups, key=lambda group: sorted(place[name] for name in group))


def _split(group: frozenset[str], pair: frozenset[str]) -> Collection[frozenset[str]]:
    return [group - {one} for one in pair] if pair <= group else [group]


def _ranks(draws: Floats) -> tuple[Floats, Floats]:
    """Return mean rank and share of first places, shape (models,) each; ties share."""
    above = (draws[None] > draws[:, None]).sum(axis=1)
    level = (draws[None] == draws[:, None]).sum(axis=1)
    is_best = draws == draws.max(axis=0)
    return (1 + above + (level - 1) / 2).mean(axis=1), (is_best / is_best.sum(axis=0)).mean(axis=1)


@dataclass(frozen=True, slots=True)
class Spread:
    """A score, or a difference of scores, with its 95 % interval."""

    value: float
    low: float
    high: float


def spread(metric: str, units: Units, *, n_resamples: int = 10_000, seed: int = 0) -> Spread:
    """Return a score with its interval."""
    weights = resample_weights(units.n_patients, n_resamples, seed)
    value = score(metric, units, units.everyone)[0]
    return Spread(float(value), *interval(score(metric, units, weights), units.n_patients))


def drop(
    metric: str, inside: Units, outside: Units, *, n_resamples: int = 10_000, seed: int = 0
) -> Spread:
    """Return how much lower a score is on other patients, with its interval.

    The two cohorts are resampled independently.
    """
    inner, outer = (
        score(metric, one, resample_weights(one.n_patients, n_resamples, seed))
        for one in (inside, outside)
    )
    value = score(metric, inside, inside.everyone)[0] - score(metric, outside, outside.everyone)[0]
    # One seed draws alike for both: the reverse order sets other draws against each other.
    ends = interval(inner - outer[::-1], min(inside.n_patients, outside.n_patients))
    return Spread(float(value), *ends)


@dataclass(frozen=True, slots=True)
class Bin:
    """Units of about the same confidence, its mean, and the share of them that is right."""

    n: int
    confidence: float
    accuracy: float


def reliability(units: Units) -> list[Bin]:
    """Return the bins of the reliability diagram that the ECE sums up, least sure first."""
    bins, confidence = confidence_bins(units), units.probability.max(axis=1)
    right = units.predicted == units.truth
    rows = [np.flatnonzero(bins == number) for number in range(N_BINS)]
    return [
        Bin(len(one), float(confidence[one].mean()), float(right[one].mean()))
        for one in rows
        if len(one)
    ]
