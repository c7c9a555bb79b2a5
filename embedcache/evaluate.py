"""Scores of predictions, with intervals that resample patients, not images.

Frames of one patient resemble each other, so an interval over images is far too narrow. Here a
resample draws patients with replacement and takes all of a drawn patient's images (the cluster
bootstrap; Davison and Hinkley 1997, section 3.8), percentile intervals, all resamples at once: each
patient's confusion table is weighted by how often the patient was drawn. The models stay fixed, so
an interval says how the score varies with the patients tested, not with those trained on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from embedcache.runs import Estimate, Predictions

LEVEL: Final = 0.95
_CHUNK_CELLS: Final = 1 << 24  # of the resample x image weights that AUROC needs at a time

Floats = NDArray[np.float64]


def evaluate(predictions: Predictions, *, n_resamples: int = 2000, seed: int = 0) -> list[Estimate]:
    """Return every score of one cohort's predictions, with its interval.

    Scores run over the classes that occur in the cohort. Where these are fewer than the model's,
    each is given twice, 'all' and 'masked'; see `Estimate`. Of a cohort with one class only, a
    masked score would say nothing: it is 1 whatever was predicted.

    Parameters
    ----------
    predictions
        Of one cohort, or of the training cohort out of fold.
    n_resamples, seed
        Of the bootstrap; the draws depend on the number of patients and the seed alone, so two
        encoders on the same patients share them.
    """
    names, patient = np.unique(predictions.patient_id, return_inverse=True)
    weights = resample_weights(len(names), n_resamples, seed)
    subset = 1 < len(predictions.own_classes) < len(predictions.classes)
    estimates = []
    for masked in (False, True) if subset else (False,):
        for metric, label, value, draws in _scores(predictions, patient, weights, masked=masked):
            low, high = _interval(draws) if len(names) > 1 else (math.nan, math.nan)
            estimates.append(
                Estimate(
                    cohort=", ".join(sorted(set(predictions.cohort))),
                    role=predictions.role,
                    scoring="masked" if masked else "all",
                    metric=metric,
                    label=label,
                    value=value,
                    low=low,
                    high=high,
                    n_patients=len(names),
                    n_images=len(predictions.image_id),
                )
            )
    return estimates


def resample_weights(n_patients: int, n_resamples: int, seed: int) -> NDArray[np.float32]:
    """Return how often each patient is drawn, shape (n_resamples, n_patients)."""
    drawn = np.random.default_rng(seed).integers(n_patients, size=(n_resamples, n_patients))
    cells = drawn + n_patients * np.arange(n_resamples)[:, None]
    counts = np.bincount(cells.ravel(), minlength=n_resamples * n_patients)
    return counts.reshape(n_resamples, n_patients).astype(np.float32)


def _interval(draws: Floats) -> tuple[float, float]:
    tail = (1 - LEVEL) / 2
    low, high = np.nanquantile(draws, [tail, 1 - tail])
    return float(low), float(high)


def _scores(
    predictions: Predictions,
    patient: NDArray[np.intp],
    weights: NDArray[np.float32],
    *,
    masked: bool,
) -> Iterator[tuple[str, str, float, Floats]]:
    """Yield metric, class, value and one value a resample."""
    classes, truth = predictions.classes, predictions.codes()
    own = np.array([classes.index(name) for name in predictions.own_classes])
    tables = _patient_tables(truth, predictions.predicted(masked=masked), patient, len(classes))
    flat = tables.reshape(len(tables), -1)
    drawn = (weights @ flat).reshape(-1, len(classes), len(classes)).astype(np.float64)
    once = flat.sum(axis=0).reshape(1, len(classes), len(classes)).astype(np.float64)
    f1, f1_drawn = _f1(once, own)[0], _f1(drawn, own)
    recall, recall_drawn = _recall(once, own)[0], _recall(drawn, own)
    yield "macro_f1", "", float(f1.mean()), _mean(f1_drawn)
    yield "balanced_accuracy", "", float(recall.mean()), _mean(recall_drawn)
    yield "accuracy", "", float(_accuracy(once)[0]), _accuracy(drawn)
    probability = predictions.masked_probability(masked=masked)
    if len(own) > 1:
        everyone = np.ones((1, weights.shape[1]), np.float32)
        value = _macro_auroc(truth, probability, own, patient, everyone)
        yield "auroc", "", float(value[0]), _macro_auroc(truth, probability, own, patient, weights)
    for number, code in enumerate(own):
        yield "f1", classes[code], float(f1[number]), f1_drawn[:, number]


def _patient_tables(
    truth: NDArray[np.int64], predicted: NDArray[np.int64], patient: NDArray[np.intp], k: int
) -> NDArray[np.float32]:
    """Return each patient's confusion table, shape (patients, true class, predicted class)."""
    n_patients = int(patient.max()) + 1
    cells = (patient * k + truth) * k + predicted
    counts = np.bincount(cells, minlength=n_patients * k * k)
    return counts.reshape(n_patients, k, k).astype(np.float32)


def _ratio(above: Floats, below: Floats, defined: NDArray[np.bool_]) -> Floats:
    """Return above / below; NaN where not defined, 0 where below is 0 all the same."""
    quotient = np.divide(above, below, out=np.zeros_like(above), where=below > 0)
    return np.where(defined, quotient, np.nan)


def _f1(tables: Floats, own: NDArray[np.int64]) -> Floats:
    """Return F1 a class, shape (tables, own); NaN for a class that was not drawn at all."""
    hits = tables[:, own, own]
    actual, claimed = tables.sum(axis=2)[:, own], tables.sum(axis=1)[:, own]
    return _ratio(2 * hits, actual + claimed, actual > 0)


def _recall(tables: Floats, own: NDArray[np.int64]) -> Floats:
    actual = tables.sum(axis=2)[:, own]
    return _ratio(tables[:, own, own], actual, actual > 0)


def _accuracy(tables: Floats) -> Floats:
    return np.asarray(np.trace(tables, axis1=1, axis2=2) / tables.sum(axis=(1, 2)))


def _mean(values: Floats) -> Floats:
    """Return the mean over the classes drawn; a resample always draws one."""
    return np.asarray(np.nanmean(values, axis=1))


def _macro_auroc(
    truth: NDArray[np.int64],
    probability: Floats,
    own: NDArray[np.int64],
    patient: NDArray[np.intp],
    weights: NDArray[np.float32],
) -> Floats:
    """Return the mean one-against-rest AUROC over the classes drawn, one a resample."""
    areas = [_auroc(truth == code, probability[:, code], patient, weights) for code in own]
    n_defined = (~np.isnan(areas)).sum(axis=0)
    total = np.nansum(areas, axis=0)
    return np.asarray(_ratio(total, n_defined.astype(np.float64), n_defined > 0))


def _auroc(
    positive: NDArray[np.bool_],
    score: Floats,
    patient: NDArray[np.intp],
    weights: NDArray[np.float32],
) -> Floats:
    """Return the weighted AUROC of each resample: P(positive above negative), ties a half.

    Images are sorted once; a resample then is a cumulative sum of its weights.
    """
    order = np.argsort(score, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(score[order]) > 0])  # of runs of equal scores
    is_positive, owner = positive[order], patient[order]
    areas = np.full(len(weights), np.nan)
    step = max(1, _CHUNK_CELLS // len(score))
    for first in range(0, len(weights), step):
        of_image = weights[first : first + step][:, owner]
        up = np.add.reduceat(np.where(is_positive, of_image, 0), starts, axis=1, dtype=np.float64)
        down = np.add.reduceat(np.where(is_positive, 0, of_image), starts, axis=1, dtype=np.float64)
        below = np.cumsum(down, axis=1) - 0.5 * down
        pairs = up.sum(axis=1) * down.sum(axis=1)
        won = (up * below).sum(axis=1)
        areas[first : first + step] = _ratio(won, pairs, pairs > 0)
    return areas
