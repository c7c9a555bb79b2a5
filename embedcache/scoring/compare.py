"""Models against each other on the same patients: differences, tests, verdicts, ranks, groups.

Everything is paired and made of one thing: what each patient does to a score (`jackknife`), with
all of his or her images. A pair has one studentised statistic and one reference for it, so that its
p and its interval never contradict each other. See docs/protocol.md, 'Comparison'.

A model is better by the sign of its metric: a larger score, or a smaller error (`mae`, `rmse`).
Differences are leads: by how much the first model is ahead, above 0 where it is better.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from embedcache.errors import RunError
from embedcache.files.arrays import Floats
from embedcache.scoring.grouping import alike, holm, mean_ranks
from embedcache.scoring.jackknife import UNBOUNDED, Spread, as_term, joint_error, spread_with
from embedcache.scoring.pairs import (
    ALPHA,
    Lead,
    draw_moves,
    draw_statistics,
    equivalence_p,
    patients_needed,
    spread_and_p,
)
from embedcache.scoring.repeats import RepeatedScore, repeated_score
from embedcache.scoring.subject import Subject, check_metric

FEW_REPEATS: Final = 5  # fewer do not tell their own variance

STATISTICS: Final = "compare-1"  # version of what is said of models, in a stored comparison
Verdict = Literal["better", "equal", "undecided"]


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
        Mean place over draws; 1 is best, models that tie share the mean of their places.
    p_best
        Share of draws in which it is the best; models that tie share it. NaN, as `rank`, where a
        score is not defined without one of the patients.
    groups
        Numbers of the groups that it is in, from 1. Models that share a group cannot be told apart.
    values
        Score of each repeat.
    """

    name: str
    value: float
    low: float
    high: float
    rank: float
    p_best: float
    groups: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Pair:
    """One model against another.

    Parameters
    ----------
    better, worse
        Names of the models; the better one has the larger score, or the smaller error.
    difference, low, high
        Lead of the better one, not negative, with the ends of its paired 95 % interval: its score
        less that of the other; of errors, the other's less its own. NaN where the patients are too
        few for an end, or a score is not defined without one of them.
    p
        Two-sided p value of no difference, never 0; at most 0.05 exactly where the interval lies
        above 0.
    p_corrected
        The same by Holm, over all pairs of the comparison.
    verdict
        'better': p_corrected is at most 0.05; else 'equal': `p_equal` is; else 'undecided'.
    p_equal
        p value, by Holm, of a difference of the margin or more, of either sign; None without a
        margin.
    error_patients, error_repeats
        Standard error of the difference by the patients tested, and by those that train, their
        split and seeds (0 for one repeat, which cannot tell).
    patients_needed
        Number of patients that would decide an undecided pair with a chance of 0.8, if the
        difference is what it seems; None where none would, or where it is decided.
    values
        Lead in each repeat.
    """

    better: str
    worse: str
    difference: float
    low: float
    high: float
    p: float
    p_corrected: float
    verdict: Verdict
    p_equal: float | None
    error_patients: float
    error_repeats: float
    patients_needed: int | None
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Models on one cohort.

    Parameters
    ----------
    standings
        Models, best first.
    pairs
        All pairs of models.
    margin
        Difference within which two models count as equal; None where none was given.
    notes
        What a reader of the p values must know.
    """

    standings: tuple[Standing, ...]
    pairs: tuple[Pair, ...]
    margin: float | None
    notes: tuple[str, ...]

    def behind_best(self, name: str) -> Pair | None:
        """Return the pair of a model and the best one; None for the best itself."""
        best = self.standings[0].name
        return next((p for p in self.pairs if (p.better, p.worse) == (best, name)), None)


def compare(
    models: Mapping[str, Sequence[Subject]],
    metric: str,
    *,
    margin: float | None = None,
    n_resamples: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """Compare models that answered for the same units, whatever the task.

    Parameters
    ----------
    models
        Subject of each repeat of each model, by its name: the same units, in one place the folds.
    metric
        One of `Subject.metrics`. 'Better' means a larger score, or a smaller error.
    margin
        Difference within which two models count as equal, above 0; None to look for none.
    n_resamples, seed
        Number of draws of signs, and their seed.

    Raises
    ------
    RunError
        No such metric, or one that is not defined on these units.
    """
    scores = {name: _score(metric, repeats, name) for name, repeats in models.items()}
    sign = next(iter(models.values()))[0].sign(metric)
    names = sorted(models, key=lambda name: (-sign * scores[name].mean.value, name))
    leads = {(a, b): _lead(scores[a], scores[b], sign) for a, b in itertools.combinations(names, 2)}
    statistics = draw_statistics([*leads.values()], n_resamples, seed)
    pairs = _pairs(leads, statistics, margin)
    columns = [np.concatenate([scores[name].mean.parts, scores[name].others]) for name in names]
    moves = draw_moves(np.column_stack(columns), n_resamples, seed)
    drawn = sign * ([scores[name].mean.value for name in names] + moves).T
    groups = alike(names, [(p.better, p.worse) for p in pairs if p.verdict == "better"])
    standings = tuple(
        _standing(name, scores[name], groups, rank, p_best)
        for name, rank, p_best in zip(names, *_ranks(drawn), strict=True)
    )
    notes = tuple(_notes([*leads.values()], n_resamples))
    return Comparison(standings, pairs, margin, notes)


def _ranks(drawn: Floats) -> tuple[Floats, Floats]:
    """Return mean rank and share of first places of each model; NaN where a draw is no number."""
    if np.isnan(drawn).any():
        return np.full(len(drawn), math.nan), np.full(len(drawn), math.nan)
    return mean_ranks(drawn)


def _standing(
    name: str,
    score: RepeatedScore,
    groups: Sequence[frozenset[str]],
    rank: float,
    p_best: float,
) -> Standing:
    return Standing(
        name,
        *_ends(score.spread),
        rank=float(rank),
        p_best=float(p_best),
        groups=tuple(number for number, group in enumerate(groups, 1) if name in group),
        values=tuple(score.values.tolist()),
    )


def _lead(ours: RepeatedScore, theirs: RepeatedScore, sign: float) -> Lead:
    """Return by how much the first model is ahead."""
    return Lead(
        sign * (ours.values - theirs.values),
        sign * (ours.mean.parts - theirs.mean.parts),
        sign * (ours.others - theirs.others),
        ours.mean.n_holders,
    )


def _ends(spread: Spread) -> tuple[float, float, float]:
    return spread.value, spread.low, spread.high


def _score(metric: str, repeats: Sequence[Subject], name: str) -> RepeatedScore:
    check_metric(metric, repeats[0])
    score = repeated_score(repeats, metric)
    if math.isnan(score.mean.value):
        raise RunError(f"{metric} of '{name}' is not defined on these images; pass another metric")
    return score


def _pairs(
    leads: Mapping[tuple[str, str], Lead],
    statistics: Floats,
    margin: float | None,
) -> tuple[Pair, ...]:
    """Return all pairs of models, given the better one's lead and what chance makes of it."""
    drawn = list(zip(leads.values(), statistics.T, strict=True))
    tests = [spread_and_p(*pair) for pair in drawn]
    corrected = _corrected([p for _, p in tests])
    equal: Sequence[float | None] = [None] * len(leads)
    if margin is not None:
        equal = _corrected([equivalence_p(*pair, margin) for pair in drawn])
    n_tested = max(1, sum(lead.is_defined for lead in leads.values()))
    pairs = []
    for place, (names, lead) in enumerate(leads.items()):
        verdict = _verdict(corrected[place], equal[place])
        of_patients, of_repeats = lead.errors()
        pairs.append(
            Pair(
                *names,
                max(0.0, lead.value),  # of equal models, it may be rounding
                tests[place][0].low,
                tests[place][0].high,
                p=tests[place][1],
                p_corrected=corrected[place],
                verdict=verdict,
                p_equal=equal[place],
                error_patients=of_patients,
                error_repeats=of_repeats,
                patients_needed=(
                    patients_needed(lead, margin, n_tested) if verdict == "undecided" else None
                ),
                values=tuple(lead.values.tolist()),
            )
        )
    return tuple(pairs)


def _corrected(p: Sequence[float]) -> list[float]:
    """Return p by Holm; a pair without a p stays without, and is not counted."""
    is_defined = ~np.isnan(p)
    corrected = np.full(len(p), math.nan)
    corrected[is_defined] = holm(np.array(p)[is_defined].tolist())
    return [float(value) for value in corrected]


def _verdict(p_corrected: float, p_equal: float | None) -> Verdict:
    if p_corrected <= ALPHA:
        return "better"
    return "equal" if p_equal is not None and p_equal <= ALPHA else "undecided"


def _notes(leads: Sequence[Lead], n_draws: int) -> Iterator[str]:
    """Say where there is no p, or where no corrected p can be as small as 0.05."""
    if not leads:
        return
    n_pairs, n_repeats, n_patients = len(leads), len(leads[0].values), len(leads[0].parts)
    n_undefined = sum(not lead.is_defined for lead in leads)
    if n_undefined:
        yield (
            f"{n_undefined} pairs have no p: fewer than two patients, or fewer than two of the "
            "class, or no score without one"
        )
    # Out of fold, each repeat has a part of each patient; elsewhere one of its own.
    has_own_parts = len(leads[0].others) == n_repeats
    if has_own_parts and 1 < n_repeats < FEW_REPEATS:
        yield (
            f"{n_repeats} repeats tell little of how their models differ; pass --repeats "
            f"{FEW_REPEATS} or more"
        )
    if n_pairs / (1 + n_draws) > ALPHA:
        yield (
            f"{n_draws} resamples cannot make a corrected p of {n_pairs} pairs as small as "
            f"{ALPHA}; pass --resamples {math.ceil(n_pairs / ALPHA)} or more"
        )
    # With repeats, or few patients of a class, the least p is not that of signs.
    is_of_signs = n_repeats == 1 and leads[0].n_patients == n_patients
    if is_of_signs and n_pairs * 2.0 ** (1 - n_patients) > ALPHA:
        yield (
            f"{n_patients} patients cannot make a corrected p of {n_pairs} pairs as small as "
            f"{ALPHA}"
        )


def spread(repeats: Sequence[Subject], metric: str) -> Spread:
    """Return a score with its interval; the mean over repeats where there are several.

    Parameters
    ----------
    repeats
        Subject of each repeat.
    metric
        One of `Subject.metrics`.

    Raises
    ------
    RunError
        No such metric.
    """
    return repeated_score(repeats, metric).spread


def lead(
    first: Sequence[Subject],
    second: Sequence[Subject],
    metric: str,
    *,
    n_resamples: int = 10_000,
    seed: int = 0,
) -> Spread:
    """Return by how much one model is ahead of another on the same units, with its interval.

    Above 0 where the first is better: its score less that of the second, or of errors the second's
    less its own. The interval is that of a pair in `compare`.

    Parameters
    ----------
    first, second
        Subject of each repeat of the models, on the same units.
    metric
        One of `Subject.metrics`.
    n_resamples
        Number of draws of signs.
    seed
        Seed of the signs.

    Raises
    ------
    RunError
        No such metric, or one that is not defined on these units.
    """
    ours, theirs = _score(metric, first, "model 1"), _score(metric, second, "model 2")
    ahead = _lead(ours, theirs, first[0].sign(metric))
    drawn = draw_statistics([ahead], n_resamples, seed)
    return spread_and_p(ahead, drawn[:, 0])[0]


def drop(inside: Sequence[Subject], outside: Sequence[Subject], metric: str) -> Spread:
    """Return how much worse a model is on other patients, with its interval.

    Above 0 where it is worse outside: its score is lower there, or its error larger. The patients
    of the two cohorts vary independently, so their variances add up.

    Parameters
    ----------
    inside, outside
        Subject of each repeat of the model, on the two cohorts.
    metric
        One of `Subject.metrics`.

    Raises
    ------
    RunError
        No such metric.
    """
    sign = inside[0].sign(metric)
    cohorts = [repeated_score(repeats, metric) for repeats in (inside, outside)]
    home, away = (cohort.mean.value for cohort in cohorts)
    errors = (as_term(c.mean.value, c.error, c.mean.n_holders, c.mean.bounds) for c in cohorts)
    return spread_with(sign * (home - away), joint_error(*errors), 2, UNBOUNDED)
