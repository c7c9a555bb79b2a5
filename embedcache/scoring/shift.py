"""The drop on an external cohort taken apart: what another mix of classes explains, and the rest.

Two cohorts differ in how often each class is shown, and in what its images look like. F1 depends on
both: where a class is rarer, the same model's claims of it are wrong more often. Weights that give
the external images the class shares of home say how much of a drop that is; the rest is skill. See
docs/protocol.md, 'The external drop'.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from embedcache.data.predictions import Predictions
from embedcache.files.arrays import Floats
from embedcache.scoring.class_units import ClassUnits
from embedcache.scoring.confusion import table_score
from embedcache.scoring.resampling import (
    Spread,
    Weights,
    interval,
    ratio,
    resample_weights,
    weighted_sums,
)

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


def take_apart(
    inside: Sequence[ClassUnits],
    outside: Sequence[ClassUnits],
    adjusted: Sequence[ClassUnits],
    metric: str,
    *,
    n_resamples: int = 10_000,
    seed: int = 0,
) -> Shift:
    """Return the parts of a drop, each with its interval; the draws are those of `compare.drop`.

    Parameters
    ----------
    inside
        Units of the training cohort, of the classes that occur outside; one subject a repeat of
        the model, all of the same images.
    outside
        Units of the external cohort, by repeat.
    adjusted
        The same with probabilities that `prior_adjusted` gave, by repeat.
    metric
        Score of a confusion table, such as 'macro_f1' or 'f1:CLASS'.
    n_resamples
        Number of resamples of patients, of each cohort.
    seed
        Seed of the bootstrap.
    """
    n_patients = inside[0].n_patients, outside[0].n_patients
    drawn = [resample_weights(n, n_resamples, seed) for n in n_patients]
    # As in `drop`: one seed draws alike for both, and the reverse order sets other draws together.
    whole, draws = (
        _parts(inside, outside, adjusted, metric, weights)
        for weights in ((inside[0].everyone, outside[0].everyone), (drawn[0], drawn[1][::-1]))
    )
    # What is won back is of the external patients alone.
    fewest = (min(n_patients), min(n_patients), n_patients[1])
    mix, rest, prior = (
        Spread(float(value), *interval(of_draws, n))
        for (value,), of_draws, n in zip(whole, draws, fewest, strict=True)
    )
    return Shift(mix, rest, prior)


def _parts(
    inside: Sequence[ClassUnits],
    outside: Sequence[ClassUnits],
    adjusted: Sequence[ClassUnits],
    metric: str,
    weights: tuple[Weights, Weights],
) -> tuple[Floats, Floats, Floats]:
    """Return mix, rest and prior of each resample, shape (resamples,) each."""
    home = _tables(inside[0], weights[0]).sum(axis=2)  # repeats have the same images
    at_home = _mean_score(inside, metric, weights[0])
    as_it_is = _mean_score(outside, metric, weights[1])
    at_home_shares = _mean_score(outside, metric, weights[1], home)
    won = _mean_score(adjusted, metric, weights[1]) - as_it_is
    return at_home_shares - as_it_is, at_home - at_home_shares, won


def _mean_score(
    repeats: Sequence[ClassUnits], metric: str, weights: Weights, n_wanted: Floats | None = None
) -> Floats:
    """Return the mean score over repeats, shape (resamples,).

    Parameters
    ----------
    repeats
        Units of one cohort, by repeat.
    metric
        Score of a confusion table.
    weights
        How often each patient is drawn, shape (resamples, patients).
    n_wanted
        Number of units of each class that each table is scaled to, shape (resamples, c); None for
        those drawn.
    """
    scores = []
    for units in repeats:
        tables = _tables(units, weights)
        if n_wanted is not None:
            n_drawn = tables.sum(axis=2)
            tables *= ratio(n_wanted, n_drawn, n_drawn >= 0)[:, :, None]
        scores.append(table_score(metric, units.classes, tables))
    return np.asarray(np.mean(scores, axis=0), np.float64)


def _tables(units: ClassUnits, weights: Weights) -> Floats:
    """Return the confusion table of each resample, shape (resamples, c, c + 1)."""
    c = len(units.classes)
    return weighted_sums(weights, units.patient_tables()).reshape(-1, c, c + 1)


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
    likelihood = ratio(probability, np.broadcast_to(home, probability.shape), home > 0)
    likelihood = np.nan_to_num(likelihood)
    told = likelihood[likelihood.any(axis=1)]
    shares = home
    for _ in range(_MOST_STEPS if len(told) else 0):
        before, shares = shares, shares * (told.T @ (1 / (told @ shares))) / len(told)
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
