"""Every score of a run's predictions, with intervals that resample patients, not images.

Frames of one patient resemble each other, so an interval over images is far too narrow. A resample
draws patients with replacement and takes all of a drawn patient's images (the cluster bootstrap;
Davison and Hinkley 1997, section 3.8). The models stay fixed, so an interval says how the score
varies with the patients tested, not with those trained on. See docs/protocol.md, 'Scores'.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, get_args

import numpy as np

from embedcache.data.predictions import Predictions
from embedcache.scoring.estimates import Estimate, Level
from embedcache.scoring.scores import (
    OF_ONE_CLASS,
    OF_TABLES,
    Floats,
    Units,
    Weights,
    auroc,
    calibration_gaps,
    ece_interval,
    interval,
    losses,
    mean_over_classes,
    patient_tables,
    rates_above,
    resample_weights,
    table_score,
    thresholds_at,
    units_of,
)

SPECIFICITY: Final = 0.95
_Row = tuple[str, str, float, float, float]  # metric, class, value, low, high


def evaluate(
    predictions: Sequence[Predictions], *, n_resamples: int = 10_000, seed: int = 0
) -> list[Estimate]:
    """Return every score of a run, with its interval, by image and by patient.

    Scores run over the classes that occur in the cohort. Where these are fewer than the model's,
    each is given twice, 'all' and 'masked'; see `Estimate`. Of a cohort with one class only, a
    masked score would say nothing: it is 1 whatever was predicted. Operating points are chosen on
    the in-domain predictions and applied to the other cohorts as they are; without in-domain
    predictions there are none.

    Parameters
    ----------
    predictions
        One of each cohort, that of the training cohort out of fold.
    n_resamples, seed
        Of the bootstrap; the draws depend on the number of patients and the seed alone, so two
        encoders on the same patients share them.
    """
    inside = [one for one in predictions if one.role == "in-domain"]
    estimates = []
    for one in predictions:
        weights = resample_weights(len(set(one.patient_id)), n_resamples, seed)
        subset = 1 < len(one.own_classes) < len(one.classes)
        for level in get_args(Level):
            points = [thresholds_at(units_of(same, level=level), SPECIFICITY) for same in inside]
            for masked in (False, True) if subset else (False,):
                thresholds = points[0] if points and not masked else {}
                rows = _rows(one, level, thresholds, weights, masked=masked)
                estimates += [_estimate(one, level, row, masked=masked) for row in rows]
    return estimates


def _estimate(predictions: Predictions, level: Level, row: _Row, *, masked: bool) -> Estimate:
    metric, label, value, low, high = row
    return Estimate(
        cohort=", ".join(sorted(set(predictions.cohort))),
        role=predictions.role,
        scoring="masked" if masked else "all",
        level=level,
        metric=metric,
        label=label,
        value=value,
        low=low,
        high=high,
        n_patients=len(set(predictions.patient_id)),
        n_images=len(predictions.image_id),
    )


def _rows(
    predictions: Predictions,
    level: Level,
    thresholds: Mapping[str, float],
    weights: Weights,
    *,
    masked: bool,
) -> Iterator[_Row]:
    units = units_of(predictions, level=level, masked=masked)
    once, draws = (dict(_scores(units, thresholds, w)) for w in (units.everyone, weights))
    yield from _with_intervals(once, draws, units.n_patients)
    if predictions.role == "in-domain":
        for label, threshold in thresholds.items():
            yield "threshold_at_spec95", label, threshold, math.nan, math.nan
    yield from _calibration(units, weights, "")
    if predictions.is_calibrated:
        calibrated = units_of(predictions.calibrated(), level=level, masked=masked)
        yield from _calibration(calibrated, weights, "_calibrated")


def _with_intervals(
    once: Mapping[tuple[str, str], Floats],
    draws: Mapping[tuple[str, str], Floats],
    n_patients: int,
) -> Iterator[_Row]:
    for (metric, label), value in once.items():
        if math.isnan(value[0]):
            continue  # as the specificity where there is one class only
        yield metric, label, float(value[0]), *interval(draws[metric, label], n_patients)


def _scores(
    units: Units, thresholds: Mapping[str, float], weights: Weights
) -> Iterator[tuple[tuple[str, str], Floats]]:
    """Yield metric and class, and one value a resample."""
    same = 1 / np.bincount(units.patient)[units.patient]  # every patient weighs one
    images, patients = (
        np.asarray(weights @ patient_tables(units, weight).astype(weights.dtype), np.float64)
        for weight in (None, same)
    )
    for metric in OF_TABLES:
        yield (metric, ""), table_score(metric, units.classes, images)
    yield ("macro_f1_by_patient", ""), table_score("macro_f1", units.classes, patients)
    for name in units.classes:
        for metric in OF_ONE_CLASS:
            yield (metric, name), table_score(f"{metric}:{name}", units.classes, images)
    if len(units.classes) > 1:
        areas = [auroc(units, number, weights) for number in range(len(units.classes))]
        yield ("auroc", ""), mean_over_classes(np.column_stack(areas))
        for name, area in zip(units.classes, areas, strict=True):
            yield ("auroc", name), area
    for number, name in enumerate(units.classes):
        if name in thresholds:
            rates = rates_above(units, number, thresholds[name], weights)
            for metric, rate in zip(("sensitivity", "specificity"), rates, strict=True):
                yield (f"{metric}_at_spec95", name), rate


def _calibration(units: Units, weights: Weights, suffix: str) -> Iterator[_Row]:
    names = [(f"{name}{suffix}", "") for name in ("log_loss", "brier")]
    once, draws = (
        dict(zip(names, losses(units, w), strict=True)) for w in (units.everyone, weights)
    )
    yield from _with_intervals(once, draws, units.n_patients)
    (gaps,), drawn = (calibration_gaps(units, w) for w in (units.everyone, weights))
    low, high = ece_interval(gaps, drawn, units.n_patients)
    yield f"ece{suffix}", "", float(np.abs(gaps).sum()), low, high
