"""Models against each other on the same patients: differences, tests, ranks, groups.

Everything is paired: a resample draws the same patients for all models, and a permutation swaps
what two models answered for a patient, for all of his or her images at once. See docs/protocol.md,
'Comparison'.

A model is better by the sign of its metric: a larger score, or a smaller error (`mae`, `rmse`).
Differences are leads: by how much the first model is ahead, above 0 where it is better.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from embedcache.errors import RunError
from embedcache.files.arrays import Floats
from embedcache.scoring.grouping import alike, holm, mean_ranks
from embedcache.scoring.resampling import Spread, interval, resample_weights
from embedcache.scoring.subject import Subject, check_metric

ALPHA: Final = 0.05
_ROUNDING: Final = 1e-12  # of a lead; it must not undo a tie

Score = TypeVar("Score", float, Floats)


@dataclass(frozen=True, slots=True)
class Standing:
    """How one model stands among the others.

    Parameters
    ----------
    name
        Name of the model.
    value, low, high
        Its score and the ends of the 95 % interval.
    rank
        Mean place over resamples; 1 is best, models that tie share the mean of their places.
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
        Names of the models; the better one has the larger score, or the smaller error.
    difference, low, high
        Lead of the better one, not negative, with the ends of its paired 95 % interval: its score
        less that of the other; of errors, the other's less its own.
    p
        Two-sided p value of no difference, never 0.
    p_corrected
        The same by Holm, over all pairs of the comparison.
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
    """Models on one cohort.

    Parameters
    ----------
    standings
        Models, best first.
    pairs
        All pairs of models.
    test
        Name of the test that p is from: 'permutation of patients' or 'bootstrap of patients'.
    """

    standings: tuple[Standing, ...]
    pairs: tuple[Pair, ...]
    test: str

    def behind_best(self, name: str) -> Pair | None:
        """Return the pair of a model and the best one; None for the best itself."""
        best = self.standings[0].name
        return next((p for p in self.pairs if (p.better, p.worse) == (best, name)), None)


def compare(
    models: Mapping[str, Subject], metric: str, *, n_resamples: int = 10_000, seed: int = 0
) -> Comparison:
    """Compare models that answered for the same units, whatever the task.

    Parameters
    ----------
    models
        Subject of each model by its name; all have the same units and truth.
    metric
        One of `Subject.metrics`. 'Better' means a larger score, or a smaller error.
    n_resamples
        Number of resamples, and of permutations.
    seed
        Seed of bootstrap and permutation.

    Raises
    ------
    RunError
        No such metric, or one that is not defined on these units.
    """
    values = {name: _score(metric, subject, name) for name, subject in models.items()}
    reference = next(iter(models.values()))
    n_patients, sign = reference.n_patients, reference.sign(metric)
    weights = resample_weights(n_patients, n_resamples, seed)
    names = sorted(models, key=lambda name: (-sign * values[name], name))
    draws = np.stack([models[name].score(metric, weights) for name in names])
    draws = draws[:, ~np.isnan(draws).any(axis=0)]  # a class that was not drawn
    if not draws.size:
        raise RunError(f"{metric} is defined in no resample of the patients; pass more resamples")
    has_sums = reference.patient_sums(metric) is not None
    swaps = _swaps(n_patients, n_resamples, seed) if has_sums else None
    ordered = {name: models[name] for name in names}
    pairs = _pairs(ordered, values, draws, metric, swaps)
    groups = alike(names, [(p.better, p.worse) for p in pairs if p.p_corrected < ALPHA])
    ranks, p_best = mean_ranks(sign * draws)
    standings = tuple(
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
    test = "permutation of patients" if has_sums else "bootstrap of patients"
    return Comparison(standings, pairs, test)


def _pairs(
    models: Mapping[str, Subject],
    values: Mapping[str, float],
    draws: Floats,
    metric: str,
    swaps: NDArray[np.float32] | None,
) -> tuple[Pair, ...]:
    """Return all pairs of models, which come best first, as do their resampled scores `draws`."""
    leads = []
    for (first, better), (second, worse) in itertools.combinations(enumerate(models), 2):
        subject = models[better]
        sign, n_patients = subject.sign(metric), subject.n_patients
        drawn = _ahead(draws[first], draws[second], sign)
        value = _ahead(values[better], values[worse], sign)
        p = (
            _bootstrap_p(drawn)
            if swaps is None
            else permutation_p(subject, models[worse], metric, swaps)
        )
        leads.append((better, worse, value, *interval(drawn, n_patients), p))
    corrected = holm([lead[-1] for lead in leads])
    return tuple(Pair(*lead, p) for lead, p in zip(leads, corrected, strict=True))


def _score(metric: str, subject: Subject, name: str) -> float:
    check_metric(metric, subject)
    value = float(subject.score(metric, subject.everyone)[0])
    if math.isnan(value):
        raise RunError(f"{metric} of '{name}' is not defined on these images; pass another metric")
    return value


def _ahead(first: Score, second: Score, sign: float) -> Score:
    """Return by how much the first is ahead of the second."""
    return first - second if sign > 0 else second - first


def _swaps(n_patients: int, n_draws: int, seed: int) -> NDArray[np.float32]:
    """Return whether a draw swaps a patient, 0 or 1, shape (n_draws, patients)."""
    generator = np.random.default_rng([seed, 1])  # not the stream of the bootstrap
    return generator.integers(2, size=(n_draws, n_patients), dtype=np.int8).astype(np.float32)


def permutation_p(
    first: Subject, second: Subject, metric: str, swaps: NDArray[np.float32]
) -> float:
    """Return how often models with swapped patients differ as much as the models do.

    If it did not matter which model answered for a patient, the swaps would change nothing but by
    chance (Good 2005). A swap moves a patient's sums from one model to the other.

    Parameters
    ----------
    first, second
        Subjects of the models, on the same units.
    metric
        Metric that is a function of sums over patients; see `Subject.patient_sums`.
    swaps
        Whether a draw swaps a patient, 0 or 1, shape (draws, patients).
    """
    sums = first.patient_sums(metric), second.patient_sums(metric)
    assert sums[0] is not None
    assert sums[1] is not None
    step = sums[1] - sums[0]
    # Counts are exact in float32, and half the work; moments of numbers are not.
    exact = swaps if np.array_equal(step, np.rint(step)) else swaps.astype(np.float64)
    moved = np.asarray(exact @ step.astype(exact.dtype), np.float64)
    totals = sums[0].sum(axis=0), sums[1].sum(axis=0)

    def lead_after(moved: Floats) -> Floats:
        scores = (first.score_of_sums(metric, s) for s in (totals[0] + moved, totals[1] - moved))
        return np.asarray(np.subtract(*scores))

    observed = abs(lead_after(np.zeros((1, len(totals[0]))))[0])
    as_far = np.abs(lead_after(moved)) >= observed - _ROUNDING
    return float((1 + as_far.sum()) / (1 + len(swaps)))


def _bootstrap_p(lead: Floats) -> float:
    """Return twice the share of resamples on the rarer side of 0, which counts to both."""
    rarer = min((lead <= 0).sum(), (lead >= 0).sum())
    return float(min(1, 2 * (1 + rarer) / (1 + len(lead))))


def spread(subject: Subject, metric: str, *, n_resamples: int = 10_000, seed: int = 0) -> Spread:
    """Return a score with its interval.

    Parameters
    ----------
    subject
        Subject that is scored.
    metric
        One of `Subject.metrics`.
    n_resamples
        Number of resamples of patients.
    seed
        Seed of the bootstrap.

    Raises
    ------
    RunError
        No such metric.
    """
    weights = resample_weights(subject.n_patients, n_resamples, seed)
    value = subject.score(metric, subject.everyone)[0]
    return Spread(float(value), *interval(subject.score(metric, weights), subject.n_patients))


def lead(
    first: Subject, second: Subject, metric: str, *, n_resamples: int = 10_000, seed: int = 0
) -> Spread:
    """Return by how much one model is ahead of another on the same units, with its interval.

    Above 0 where the first is better: its score less that of the second, or of errors the second's
    less its own. The interval is that of the paired bootstrap, as in `compare`.

    Parameters
    ----------
    first, second
        Subjects of the models, on the same units.
    metric
        One of `Subject.metrics`.
    n_resamples
        Number of resamples of patients.
    seed
        Seed of the bootstrap.

    Raises
    ------
    RunError
        No such metric, or one that is not defined on these units.
    """
    values = [_score(metric, subject, f"model {i}") for i, subject in enumerate((first, second), 1)]
    sign, n_patients = first.sign(metric), first.n_patients
    weights = resample_weights(n_patients, n_resamples, seed)
    draws = _ahead(first.score(metric, weights), second.score(metric, weights), sign)
    return Spread(_ahead(values[0], values[1], sign), *interval(draws, n_patients))


def drop(
    inside: Subject, outside: Subject, metric: str, *, n_resamples: int = 10_000, seed: int = 0
) -> Spread:
    """Return how much worse a model is on other patients, with its interval.

    Above 0 where it is worse outside: its score is lower there, or its error larger. The two
    cohorts are resampled independently.

    Parameters
    ----------
    inside, outside
        Subjects of the model on the two cohorts.
    metric
        One of `Subject.metrics`.
    n_resamples
        Number of resamples of patients, of each cohort.
    seed
        Seed of the bootstrap.

    Raises
    ------
    RunError
        No such metric.
    """
    cohorts, sign = (inside, outside), inside.sign(metric)
    inner, outer = (
        subject.score(metric, resample_weights(subject.n_patients, n_resamples, seed))
        for subject in cohorts
    )
    values = [subject.score(metric, subject.everyone)[0] for subject in cohorts]
    # One seed draws alike for both: the reverse order sets other draws against each other.
    ends = interval(
        _ahead(inner, outer[::-1], sign), min(subject.n_patients for subject in cohorts)
    )
    return Spread(float(_ahead(values[0], values[1], sign)), *ends)
