"""Scores of regression and of several labels an image, with intervals that resample patients.

As in `evaluate`: a resample draws patients with all of their images, and a score of it depends on
how often each patient was drawn. Sums over a patient's images are made once; weights (resamples x
patients) times these give every resample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from embedcache.data.predictions import CALLED_FROM, LabelSets, Measurements, Role
from embedcache.scoring.estimates import Estimate, Level
from embedcache.scoring.scores import (
    Floats,
    Units,
    Weights,
    interval,
    mean_over_classes,
    resample_weights,
    score,
)

_NOISE: Final = 1e-6
_CHUNK_CELLS: Final = 1 << 22  # of resamples x distinct scores, at a time

_Scores = Iterator[tuple[str, str, Floats]]  # metric, label, one value a resample


def evaluate_task(
    answers: Measurements | LabelSets, *, n_resamples: int = 10_000, seed: int = 0
) -> list[Estimate]:
    """Return every score of one cohort's answers; see the functions below."""
    about: dict[str, Any] = {
        "cohort": answers.cohort[0],
        "role": answers.role,
        "n_resamples": n_resamples,
        "seed": seed,
    }
    if isinstance(answers, Measurements):
        return evaluate_regression(answers.truth, answers.value, answers.patient_id, **about)
    return evaluate_multilabel(
        answers.truth,
        answers.probability,
        answers.names,
        answers.patient_id,
        fold=answers.fold,
        **about,
    )


def evaluate_regression(
    truth: Floats,
    predicted: Floats,
    patient_id: Sequence[str],
    *,
    cohort: str,
    role: Role,
    target: str = "",
    n_resamples: int = 10_000,
    seed: int = 0,
) -> list[Estimate]:
    """Return 'mae', 'rmse', 'r2' and 'pearson', by image and by patient.

    By patient, a patient's truth and prediction are the means over his or her images. Left out is
    what is undefined: R2 and Pearson's r where the truth does not vary, and r where the prediction
    does not.

    Parameters
    ----------
    truth, predicted
        Shape (n,), finite, in the unit of the target.
    patient_id
        One an image.
    cohort, role
        What is scored, as in `Estimate`.
    target
        Name of the target; the `label` of the estimates.
    n_resamples, seed
        Of the bootstrap; the draws depend on the number of patients and the seed alone.
    """
    patient, n_images = np.unique(patient_id, return_inverse=True, return_counts=True)[1:]
    centre = truth.mean()  # near 0, squares do not swamp their differences
    images = _moments(truth - centre, predicted - centre)
    means = [np.bincount(patient, one - centre) / n_images for one in (truth, predicted)]
    sums: dict[Level, Floats] = {"image": _by_group(images, patient), "patient": _moments(*means)}
    weights = resample_weights(len(n_images), n_resamples, seed)
    about = {"cohort": cohort, "role": role, "n_images": len(truth)}
    return [
        estimate
        for level, of_patient in sums.items()
        for estimate in _estimates(partial(_errors, of_patient, target), weights, level, about)
    ]


def evaluate_multilabel(
    truth: NDArray[np.bool_],
    probability: Floats,
    names: Sequence[str],
    patient_id: Sequence[str],
    *,
    cohort: str,
    role: Role,
    fold: NDArray[np.int64] | None = None,
    n_resamples: int = 10_000,
    seed: int = 0,
) -> list[Estimate]:
    """Return 'auroc', 'f1' and 'average_precision' of each label, and their means over labels.

    The means are 'macro_auroc', 'macro_f1' and 'mean_average_precision'. F1 calls a label from
    probability 0.5 on. Labels that no image has are left out, and so is the AUROC of one that every
    image has; a resample without a label leaves it out of its mean.

    Parameters
    ----------
    truth
        Which labels each image has, shape (n, n_labels).
    probability
        Of each label, shape (n, n_labels).
    names
        The labels.
    patient_id
        One an image.
    fold
        That tested each image, shape (n,); None: one for all.
    cohort, role, n_resamples, seed
        See `evaluate_regression`.
    """
    patient = np.unique(patient_id, return_inverse=True)[1]
    fold = np.zeros(len(patient), np.int64) if fold is None else fold
    labels = {
        name: _yes_or_no(has, yes, patient, fold)
        for name, has, yes in zip(names, truth.T, probability.T, strict=True)
        if has.any()
    }
    if not labels:
        return []
    weights = resample_weights(int(patient.max()) + 1, n_resamples, seed)
    about = {"cohort": cohort, "role": role, "n_images": len(truth)}
    return _estimates(partial(_of_labels, labels), weights, "image", about)


def _estimates(
    scores: Callable[[Weights], _Scores], weights: Weights, level: Level, about: Mapping[str, Any]
) -> list[Estimate]:
    n_patients = weights.shape[1]
    pairs = zip(scores(np.ones((1, n_patients))), scores(weights), strict=True)
    return [
        Estimate(
            **about,
            scoring="all",
            level=level,
            metric=metric,
            label=label,
            value=float(value),
            low=low,
            high=high,
            n_patients=n_patients,
        )
        for (metric, label, (value,)), (_, _, draws) in pairs
        if not np.isnan(value)
        for low, high in [interval(draws, n_patients)]
    ]


# Regression


def _moments(truth: Floats, predicted: Floats) -> Floats:
    """Return what the scores are made of, summable, shape (n, 8)."""
    error = predicted - truth
    squares = truth**2, predicted**2, truth * predicted, error**2
    return np.column_stack([np.ones(len(truth)), truth, predicted, *squares, np.abs(error)])


def _by_group(values: Floats, group: NDArray[np.intp]) -> Floats:
    return np.column_stack([np.bincount(group, column) for column in values.T])


def _errors(of_patient: Floats, target: str, weights: Weights) -> _Scores:
    """Yield the scores of each resample from each patient's moments, shape (patients, 8)."""
    sums = np.asarray(weights @ of_patient.astype(weights.dtype), np.float64)
    n, t, p, tt, pp, tp, squared, absolute = sums.T
    var_t, var_p = _variance(n, t, tt), _variance(n, p, pp)
    yield "mae", target, absolute / n
    yield "rmse", target, np.sqrt(squared / n)
    yield "r2", target, 1 - squared / n / var_t
    yield "pearson", target, (tp / n - t * p / n**2) / np.sqrt(var_t * var_p)


def _variance(n: Floats, total: Floats, squares: Floats) -> Floats:
    """Return the variance; NaN where what is left of the squares is float32 rounding."""
    variance = squares / n - (total / n) ** 2
    return np.where(variance > _NOISE * squares / n, variance, np.nan)


# Several labels


def _yes_or_no(
    truth: NDArray[np.bool_], yes: Floats, patient: NDArray[np.intp], fold: NDArray[np.int64]
) -> Units:
    """Return one label as a question of two classes."""
    return Units(
        classes=("no", "yes"),
        patient=patient,
        truth=truth.astype(np.int64),
        predicted=(yes >= CALLED_FROM).astype(np.int64),
        probability=np.column_stack([1 - yes, yes]),
        own=np.array([0, 1]),
        fold=fold,
    )


def _average_precision(units: Units, weights: Weights) -> Floats:
    """Return the sum over thresholds of (gain in recall) x precision, shape (resamples,).

    Only the scores of images that have the label are thresholds: recall gains nothing elsewhere.
    """
    has, yes = units.truth == 1, units.probability[:, 1]
    rungs = np.unique(yes[has])
    called, hit = (_reaching(units, rows, yes, rungs) for rows in (has | True, has))
    precision = np.empty(len(weights))
    step = max(1, _CHUNK_CELLS // len(rungs))
    for first in range(0, len(weights), step):
        some = weights[first : first + step]
        n_called, n_hit = (np.asarray(some @ one.astype(some.dtype)) for one in (called, hit))
        gained = -np.diff(n_hit, axis=1, append=0)
        each = np.divide(n_hit, n_called, out=np.zeros_like(n_hit), where=n_called > 0)
        total = np.where(n_hit[:, 0] > 0, n_hit[:, 0], np.nan)
        precision[first : first + step] = (gained * each).sum(axis=1, dtype=np.float64) / total
    return precision


def _reaching(units: Units, rows: NDArray[np.bool_], yes: Floats, rungs: Floats) -> Floats:
    """Return how many rows of each patient reach each rung, shape (patients, rungs)."""
    place = np.searchsorted(rungs, yes[rows], side="right")  # 0: below all rungs
    cells = units.patient[rows] * (len(rungs) + 1) + place
    counts = np.bincount(cells, minlength=units.n_patients * (len(rungs) + 1))
    from_below = counts.reshape(units.n_patients, -1)[:, :0:-1].cumsum(axis=1)
    return np.asarray(from_below[:, ::-1], np.float64)


_OF_LABEL: Final[Mapping[str, tuple[str, Callable[[Units, Weights], Floats]]]] = {
    "auroc": ("macro_auroc", partial(score, "auroc:yes")),
    "f1": ("macro_f1", partial(score, "f1:yes")),
    "average_precision": ("mean_average_precision", _average_precision),
}


def _of_labels(labels: Mapping[str, Units], weights: Weights) -> _Scores:
    """Yield each metric's mean over labels, and its value for each."""
    for metric, (mean, of_label) in _OF_LABEL.items():
        values = {name: of_label(units, weights) for name, units in labels.items()}
        yield mean, "", mean_over_classes(np.column_stack([*values.values()]))
        yield from ((metric, name, draws) for name, draws in values.items())
