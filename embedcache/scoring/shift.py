"""The drop on an external cohort taken apart: what another mix of classes explains, and the rest.

Two cohorts differ in how often each class is shown, and in what its images look like. F1 depends on
both: where a class is rarer, the same model's claims of it are wrong more often. Weights that give
the external images the class shares of home say how much of a drop that is; the rest is skill. See
docs/protocol.md, 'The external drop'.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import numpy as np

from embedcache.data.predictions import Predictions
from embedcache.files.arrays import Floats
from embedcache.scoring.class_units import ClassUnits
from embedcache.scoring.confusion import table_score
from embedcache.scoring.jackknife import (
    NO_ERROR,
    UNBOUNDED,
    Spread,
    as_term,
    deviations,
    error_of,
    joint_error,
    spread_with,
)
from embedcache.scoring.repeats import error_of_repeats, parts_of_repeats, repeated_score
from embedcache.scoring.resampling import ratio

_TOLERANCE: Final = 1e-8  # of a class share, between two steps of EM
_MOST_STEPS: Final = 10_000


@dataclass(frozen=True, slots=True)
class ClassShare:
    """How often a class is shown.

    Parameters
    ----------
    label
        Name of the class.
    home
        Share of the training images that are of it, from 0 to 1.
    outside
        Share of the external images that are of it.
    estimated
        Share of the external images that is estimated without their labels; see `prior_adjusted`.
    """

    label: str
    home: float
    outside: float
    estimated: float


@dataclass(frozen=True, slots=True)
class Shift:
    """A drop taken apart: `mix` and `rest` add up to it.

    Parameters
    ----------
    mix
        External score at the class shares of home, less the external score as it is: the part of
        the drop that class shares alone explain.
    rest
        Score at home, less the external score at the class shares of home.
    prior
        External score with probabilities adjusted to estimated class shares, less the external
        score as it is: what such an adjustment wins back.
    """

    mix: Spread
    rest: Spread
    prior: Spread


# A score of added-up confusion tables at home and outside, shape (rows, columns) each, of which one
# may have a single row.
_Score = Callable[[Floats, Floats], Floats]


def take_apart(
    inside: Sequence[ClassUnits],
    outside: Sequence[ClassUnits],
    adjusted: Sequence[ClassUnits],
    metric: str,
) -> Shift:
    """Return the parts of a drop, each with its interval; see `compare.drop`.

    Parameters
    ----------
    inside
        Units of the training cohort, of the classes that occur outside, by repeat.
    outside
        Units of the external cohort, by repeat.
    adjusted
        The same with probabilities that `prior_adjusted` gave, by repeat.
    metric
        Score of a confusion table, such as 'macro_f1' or 'f1:CLASS'.
    """
    classes, n_folds = outside[0].classes, inside[0].n_folds
    at_home, there, corrected = (
        [units.patient_tables() for units in repeats] for repeats in (inside, outside, adjusted)
    )
    both = [np.hstack(pair) for pair in zip(there, corrected, strict=True)]
    nobody = [np.zeros((1, 0))] * len(both)  # of home, where that plays no part

    def score(tables: Floats) -> Floats:
        return table_score(metric, classes, tables)

    def mix(home: Floats, away: Floats) -> Floats:
        return score(_at_shares_of(home, away, len(classes))) - score(away)

    def rest(home: Floats, away: Floats) -> Floats:
        return score(home) - score(_at_shares_of(home, away, len(classes)))

    def prior(_: Floats, away: Floats) -> Floats:
        as_it_is, with_shares = np.hsplit(away, 2)
        return score(with_shares) - score(as_it_is)

    n_home, n_there = (repeats[0].score(metric).n_holders for repeats in (inside, outside))
    # No patient moves a score that is all right outside, but its interval says what it may be.
    alone = repeated_score(outside, metric).mean
    least = as_term(alone.value, alone.error, n_there, alone.bounds)
    home, away = _Cohort(at_home, n_home, n_folds), _Cohort(there, n_there)
    return Shift(
        mix=_spread(mix, home, away),
        rest=_spread(rest, home, away, least.variance),
        prior=_spread(prior, _Cohort(nobody, 2), _Cohort(both, n_there)),
    )


class _Cohort(NamedTuple):
    """Confusion tables of a cohort.

    Parameters
    ----------
    tables
        Tables of each patient in each repeat, shape (patients, columns) each.
    n_holders
        Number of patients that the score is about.
    n_folds
        Number of folds that repeats draw anew; 1 for none.
    """

    tables: Sequence[Floats]
    n_holders: int
    n_folds: int = 1


def _at_shares_of(home: Floats, away: Floats, n_classes: int) -> Floats:
    """Return external tables, each class weighted to the number of units that home has of it."""
    tables = away.reshape(-1, n_classes, n_classes + 1)
    wanted = home.reshape(-1, n_classes, n_classes + 1).sum(axis=2)
    wanted, present = np.broadcast_arrays(wanted, tables.sum(axis=2))
    weight = np.divide(wanted, present, out=np.zeros(wanted.shape), where=present > 0)
    return np.asarray((tables * weight[:, :, None]).reshape(len(weight), -1))


def _spread(score: _Score, home: _Cohort, outside: _Cohort, least: float = 0.0) -> Spread:
    """Return the mean over repeats of a score of two cohorts, with its interval.

    The patients of the two vary independently; repeats add what they add to a score of each.

    Parameters
    ----------
    score
        Function of added-up tables of both cohorts.
    home, outside
        The cohorts.
    least
        Variance by the patients outside where none of them moves the score.
    """
    pairs = list(zip(home.tables, outside.tables, strict=True))
    values = np.array([_whole(score, *pair) for pair in pairs])
    of_home, of_outside = map(np.stack, zip(*(_parts(score, *pair) for pair in pairs), strict=True))
    # The models that test outside, apart from those that test at home.
    of_models = np.array([_whole(score, home.tables[0], tables) for tables in outside.tables])
    there = error_of(of_outside.mean(axis=0), outside.n_holders)
    error = joint_error(
        error_of(of_home.mean(axis=0), home.n_holders),
        there._replace(variance=there.variance or least),
        error_of_repeats(parts_of_repeats(of_home, values, home.n_folds), len(values))
        if home.n_folds > 1
        else NO_ERROR,
        error_of_repeats(parts_of_repeats(of_outside, of_models, 1), len(values)),
    )
    return spread_with(float(values.mean()), error, outside.n_holders, UNBOUNDED)


def _whole(score: _Score, home: Floats, outside: Floats) -> float:
    return float(score(home.sum(axis=0)[None], outside.sum(axis=0)[None])[0])


def _parts(score: _Score, home: Floats, outside: Floats) -> tuple[Floats, Floats]:
    """Return the part of each patient of both cohorts in the standard error."""
    all_home, all_outside = home.sum(axis=0)[None], outside.sum(axis=0)[None]
    # Without a single patient nobody is left, and there is no score.
    without_home = score(all_home - home, all_outside) if len(home) > 1 else np.zeros(1)
    without_outside = score(all_home, all_outside - outside) if len(outside) > 1 else np.zeros(1)
    return deviations(without_home), deviations(without_outside)


def prior_adjusted(
    predictions: Predictions, home: Floats, *, masked: bool = False
) -> tuple[Predictions, Floats]:
    """Return external predictions adjusted to the class shares there, and these, without labels.

    Saerens, Latinne and Decaestecker 2002: if images of a class look outside as at home, and only
    the shares of classes differ, the shares of greatest likelihood are the fixed point of EM, and
    each probability is multiplied by the share outside over the share at home. Needs calibrated
    probabilities: the temperature is applied where one was fitted.

    Parameters
    ----------
    predictions
        Answers to one external cohort; their labels are not used, but for `masked`.
    home
        Share of each class in training, shape (classes,).
    masked
        Whether only classes that occur among the labels are considered.

    Returns
    -------
    Predictions without a temperature, and the estimated share of each class, shape (classes,).
    """
    calibrated = predictions.calibrated() if predictions.is_calibrated else predictions
    probability = calibrated.masked_probability(masked=masked)
    if masked:
        home = np.where(np.isin(predictions.classes, predictions.own_classes), home, 0.0)
        home = home / home.sum()
    # An answer that is certain of a class that was not trained cannot be adjusted.
    likelihood = ratio(probability, np.broadcast_to(home, probability.shape), home >= 0)
    rows = likelihood[likelihood.any(axis=1)]
    shares = home
    for _ in range(_MOST_STEPS if len(rows) else 0):
        before, shares = shares, shares * (rows.T @ (1 / (rows @ shares))) / len(rows)
        if np.abs(shares - before).max() < _TOLERANCE:
            break
    odds = likelihood * shares
    total = odds.sum(axis=1, keepdims=True)
    sharp = np.where(total > 0, odds / np.where(total > 0, total, 1.0), probability)
    return replace(calibrated, probability=sharp, temperature=None), shares


def class_shares(predictions: Predictions) -> Floats:
    """Return the share of each class among the images of a cohort, shape (classes,)."""
    counts = np.bincount(predictions.codes(), minlength=len(predictions.classes))
    return counts / len(predictions.label)
