"""Scores as functions of patient weights, so that ten thousand resamples cost a matrix product.

A resample draws patients with replacement, each with all of his or her images; a score of it
depends on how often each patient was drawn and on nothing else. What adds up over patients
(confusion tables, losses, gaps of calibration) is summed once by patient, and weights (resamples x
patients) times these sums give every resample at once. AUROC counts pairs of images: a quadratic
form in the weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from embedcache.data.predictions import Predictions
from embedcache.errors import RunError
from embedcache.scoring.estimates import Level

COVERAGE: Final = 0.95
N_BINS: Final = 15
_ROWS: Final = 1000  # resamples that are drawn at a time
_COLUMNS: Final = 256  # patients whose pairs are counted at a time
_LEAST: Final = np.finfo(np.float64).eps  # probabilities below count as this in a logarithm

Floats = NDArray[np.float64]
Weights = NDArray[np.float32] | NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Units:
    """What is scored: images, or each patient's mean over the images of one class.

    Parameters
    ----------
    classes
        Those that occur among the labels, c of them.
    patient
        Number of each unit's patient, shape (n,); patients are sorted by name.
    truth
        Number of its class in `classes`, shape (n,).
    predicted
        Number of the most probable class, shape (n,); c where that is none of `classes`.
    probability
        Of every class of the model, shape (n, k).
    own
        Column of `probability` of each of `classes`, shape (c,).
    fold
        That tested each unit, shape (n,); one number where external.
    """

    classes: tuple[str, ...]
    patient: NDArray[np.intp] = field(repr=False)
    truth: NDArray[np.int64] = field(repr=False)
    predicted: NDArray[np.int64] = field(repr=False)
    probability: Floats = field(repr=False)
    own: NDArray[np.int64] = field(repr=False)
    fold: NDArray[np.int64] = field(repr=False)

    @property
    def n_patients(self) -> int:
        """Number of patients."""
        return int(self.patient.max()) + 1

    @property
    def everyone(self) -> Floats:
        """The weights of the cohort as it is: each patient once, shape (1, patients)."""
        return np.ones((1, self.n_patients))

    def by_patient(self, values: Floats, groups: NDArray[np.int64], n_groups: int) -> Floats:
        """Return sums of the units' values by patient and group, shape (patients, n_groups)."""
        cells = self.patient * n_groups + groups
        sums = np.bincount(cells, values, minlength=self.n_patients * n_groups)
        return np.asarray(sums.reshape(self.n_patients, n_groups))


def units_of(predictions: Predictions, *, level: Level = "image", masked: bool = False) -> Units:
    """Return what is scored of one cohort's predictions.

    Parameters
    ----------
    level
        'patient': a unit is a patient's mean probability over the images of one class. Frames of
        one examination show several planes, so a patient has one unit for each label.
    masked
        Consider only classes that occur among the labels.
    """
    classes, truth = predictions.classes, predictions.codes()
    probability = predictions.masked_probability(masked=masked)
    patient = np.unique(predictions.patient_id, return_inverse=True)[1]
    fold = predictions.fold
    if level == "patient":
        cells = patient * len(classes) + truth
        cells, first, unit, n_images = np.unique(
            cells, return_index=True, return_inverse=True, return_counts=True
        )
        fold = fold[first]
        sums = np.zeros((len(cells), len(classes)))
        np.add.at(sums, unit, probability)
        probability = sums / n_images[:, None]
        patient, truth = np.divmod(cells, len(classes))
    own = np.unique(truth)
    place = np.full(len(classes), len(own))
    place[own] = np.arange(len(own))
    return Units(
        classes=tuple(classes[code] for code in own),
        patient=patient,
        truth=place[truth],
        predicted=place[probability.argmax(axis=1)],
        probability=probability,
        own=own,
        fold=fold,
    )


# Resamples and intervals


def resample_weights(n_patients: int, n_resamples: int, seed: int) -> NDArray[np.float32]:
    """Return how often each patient is drawn, shape (n_resamples, n_patients).

    It depends on the number of patients and the seed alone, so models that are scored on the same
    patients share their resamples.
    """
    chance = np.random.default_rng(seed)
    weights = np.empty((n_resamples, n_patients), np.float32)
    for first in range(0, n_resamples, _ROWS):
        block = weights[first : first + _ROWS]
        drawn = chance.integers(n_patients, size=block.shape)
        cells = drawn + n_patients * np.arange(len(block))[:, None]
        block[:] = np.bincount(cells.ravel(), minlength=block.size).reshape(block.shape)
    return weights


def interval(draws: Floats, n_patients: int) -> tuple[float, float]:
    """Return the expanded percentile interval of draws, shape (resamples,); NaN are left out.

    The plain percentile interval is a z interval with the variance divided by n instead of n - 1,
    and so too narrow for few patients; this one takes the quantiles further out (Hesterberg 2015).
    `benchmarks/bench_coverage.py` measures both. NaN for fewer than two patients.
    """
    if n_patients < 2 or np.isnan(draws).all():
        return math.nan, math.nan
    low, high = np.nanquantile(draws, [_tail(n_patients), 1 - _tail(n_patients)])
    return float(low), float(high)


def ece_interval(gaps: Floats, drawn: Floats, n_patients: int) -> tuple[float, float]:
    """Return an interval of the ECE, which resampling alone would put too high.

    Noise adds to absolute values, in the estimate as in every resample of it, so the percentiles
    lie above the truth: they never hold the 0 of a calibrated model. The gaps themselves have no
    such bias. The true ones are as far from the estimated ones as these are from resampled ones,
    and by the triangle inequality their absolute sums differ by that distance at most.

    Parameters
    ----------
    gaps, drawn
        What `calibration_gaps` says of the cohort, shape (N_BINS,), and of the resamples.
    """
    if n_patients < 2:
        return math.nan, math.nan
    distance = np.quantile(np.abs(drawn - gaps).sum(axis=1), 1 - 2 * _tail(n_patients))
    value = np.abs(gaps).sum()
    return float(max(0, value - distance)), float(min(1, value + distance))


def _tail(n_patients: int) -> float:
    """Return how much an expanded percentile interval leaves out at each end."""
    t = stdtrit(n_patients - 1, (1 - COVERAGE) / 2)
    return NormalDist().cdf(math.sqrt(n_patients / (n_patients - 1)) * t)


def _draw(weights: Weights, sums: Floats) -> Floats:
    """Return the sums over drawn patients, shape (resamples, columns)."""
    return np.asarray(weights @ sums.astype(weights.dtype), np.float64)


def _ratio(above: Floats, below: Floats, defined: NDArray[np.bool_]) -> Floats:
    """Return above / below; NaN where not defined, 0 where below is 0 all the same."""
    quotient = np.divide(above, below, out=np.zeros_like(above), where=below > 0)
    return np.where(defined, quotient, np.nan)


def mean_over_classes(values: Floats) -> Floats:
    """Return the mean over the classes that were drawn, shape (resamples,); NaN where none was."""
    n_drawn = (~np.isnan(values)).sum(axis=1)
    return _ratio(np.nansum(values, axis=1), n_drawn.astype(np.float64), n_drawn > 0)


# Scores of confusion tables, shape (tables, true class, predicted class or none of them)


def patient_tables(units: Units, weight: Floats | None = None) -> Floats:
    """Return confusion tables by patient, shape (patients, c (c + 1)); units may have weights."""
    c = len(units.classes)
    ones = np.ones(len(units.truth)) if weight is None else weight
    return units.by_patient(ones, units.truth * (c + 1) + units.predicted, c * (c + 1))


def f1(tables: Floats) -> Floats:
    """Return F1 a class, shape (tables, c); NaN for a class that was not drawn at all."""
    hits, actual = np.diagonal(tables, axis1=1, axis2=2), tables.sum(axis=2)
    claimed = tables.sum(axis=1)[:, :-1]
    return _ratio(2 * hits, actual + claimed, actual > 0)


def recall(tables: Floats) -> Floats:
    """Return the share of each class that is found, shape (tables, c); NaN likewise."""
    actual = tables.sum(axis=2)
    return _ratio(np.diagonal(tables, axis1=1, axis2=2).astype(np.float64), actual, actual > 0)


def accuracy(tables: Floats) -> Floats:
    """Return the share that is right, shape (tables,)."""
    hits = np.trace(tables, axis1=1, axis2=2)
    return np.asarray(hits / tables.sum(axis=(1, 2)), np.float64)


OF_TABLES: Final[Mapping[str, Callable[[Floats], Floats]]] = {
    "macro_f1": lambda tables: mean_over_classes(f1(tables)),
    "balanced_accuracy": lambda tables: mean_over_classes(recall(tables)),
    "accuracy": accuracy,
}
OF_ONE_CLASS: Final[Mapping[str, Callable[[Floats], Floats]]] = {"f1": f1, "recall": recall}


def table_score(metric: str, classes: tuple[str, ...], sums: Floats) -> Floats:
    """Return a score of summed confusion tables, shape (tables, c (c + 1)).

    Parameters
    ----------
    metric
        'macro_f1', 'balanced_accuracy', 'accuracy', 'f1:CLASS' or 'recall:CLASS'.
    """
    tables = sums.reshape(-1, len(classes), len(classes) + 1)
    if metric in OF_TABLES:
        return OF_TABLES[metric](tables)
    name, _, label = metric.partition(":")
    return OF_ONE_CLASS[name](tables)[:, classes.index(label)]


def score(metric: str, units: Units, weights: Weights) -> Floats:
    """Return one score of each resample, shape (resamples,).

    Parameters
    ----------
    metric
        As for `table_score`, or 'auroc' or 'auroc:CLASS'.

    Raises
    ------
    RunError
        No such metric, or a class that does not occur.
    """
    check_metric(metric, units.classes)
    name, _, label = metric.partition(":")
    if name != "auroc":
        return table_score(metric, units.classes, _draw(weights, patient_tables(units)))
    if label:
        return auroc(units, units.classes.index(label), weights)
    areas = [auroc(units, number, weights) for number in range(len(units.classes))]
    return mean_over_classes(np.column_stack(areas))


def check_metric(metric: str, classes: tuple[str, ...]) -> None:
    """Raise `RunError` unless `score` knows this metric of these classes."""
    name, colon, label = metric.partition(":")
    if metric not in {*OF_TABLES, "auroc"} and not (colon and name in {*OF_ONE_CLASS, "auroc"}):
        raise RunError(
            f"no metric '{metric}' to compare by; it may be {', '.join(OF_TABLES)}, auroc, "
            "f1:CLASS, recall:CLASS or auroc:CLASS"
        )
    if name == "auroc" and len(classes) < 2:
        raise RunError(f"auroc needs two classes; there is only {classes[0]}")
    if colon and label not in classes:
        raise RunError(f"no class '{label}' for {name}; there are {', '.join(classes)}")


# Ranking and operating points


def auroc(units: Units, number: int, weights: Weights) -> Floats:
    """Return the AUROC of one class against the rest, shape (resamples,), ties counting a half.

    Images of different folds are no pairs: they were scored by different probes (Forman and Scholz
    2010). With A[p, q] the pairs that images of the class of patient p win against other images of
    patient q, it is w' A w over the number of pairs. Only patients that have the class have a row
    in A, and A is made some columns at a time; counts below 2^24 are exact in float32.
    """
    won, n_pairs = np.zeros((2, len(weights)))
    for fold in np.unique(units.fold):
        fold_won, fold_pairs = _contests(units, number, weights, units.fold == fold)
        won += fold_won
        n_pairs += fold_pairs
    return _ratio(won, n_pairs, n_pairs > 0)


def _contests(
    units: Units, number: int, weights: Weights, tested: NDArray[np.bool_]
) -> tuple[Floats, Floats]:
    """Return pairs won and all pairs of some units, shape (resamples,) each."""
    is_in, is_out = tested & (units.truth == number), tested & (units.truth != number)
    score = units.probability[:, units.own[number]]
    order = np.flatnonzero(is_in)[np.argsort(score[is_in], kind="stable")]
    ladder, rest = score[order], np.flatnonzero(is_out)
    holders, holder = np.unique(units.patient[order], return_inverse=True)
    drawn = weights[:, holders]
    won = np.zeros(len(weights))
    for first in range(0, units.n_patients, _COLUMNS):
        width = min(_COLUMNS, units.n_patients - first)
        here = rest[(units.patient[rest] >= first) & (units.patient[rest] < first + width)]
        pairs = np.zeros((len(holders), width), weights.dtype)
        np.add.at(pairs, holder, _below(ladder, score[here], units.patient[here] - first, width))
        products = (drawn @ pairs) * weights[:, first : first + width]
        won += products.sum(axis=1, dtype=np.float64)
    sides = [
        units.by_patient(side.astype(np.float64), np.zeros_like(units.fold), 1)
        for side in (is_in, is_out)
    ]
    n_pairs = np.prod([_draw(weights, side)[:, 0] for side in sides], axis=0)
    return won, n_pairs


def _below(ladder: Floats, score: Floats, owner: NDArray[np.intp], width: int) -> Floats:
    """Return how many of each owner's scores lie below each rung, shape (rungs, width)."""
    steps = np.zeros((len(ladder) + 1, width))
    for side in ("left", "right"):  # a tie passes one of the two, and so counts a half
        np.add.at(steps, (np.searchsorted(ladder, score, side), owner), 0.5)
    return np.asarray(steps[:-1].cumsum(axis=0))


def thresholds_at(units: Units, specificity: float) -> dict[str, float]:
    """Return the lowest threshold of each class at which enough of the rest is refused.

    An image is called a class if its probability of it lies above the threshold, which therefore is
    the probability of the image of the rest that is the first not allowed to pass.
    """
    thresholds = {}
    for number, name in enumerate(units.classes):
        rest = np.sort(units.probability[units.truth != number, units.own[number]])
        if len(rest):
            # Whole images: 0.05 * 40 is 2.0000000000000018.
            n_passing = math.floor(round((1 - specificity) * len(rest), 9))
            thresholds[name] = float(rest[len(rest) - 1 - n_passing])
    return thresholds


def rates_above(
    units: Units, number: int, threshold: float, weights: Weights
) -> tuple[Floats, Floats]:
    """Return sensitivity and specificity of a class at a threshold, shape (resamples,) each."""
    is_in = (units.truth == number).astype(np.int64)
    called = (units.probability[:, units.own[number]] > threshold).astype(np.int64)
    cells = _draw(weights, units.by_patient(np.ones(len(is_in)), 2 * is_in + called, 4))
    n_out, n_in = cells[:, :2].sum(axis=1), cells[:, 2:].sum(axis=1)
    return _ratio(cells[:, 3], n_in, n_in > 0), _ratio(cells[:, 0], n_out, n_out > 0)


# Calibration


def losses(units: Units, weights: Weights) -> tuple[Floats, Floats]:
    """Return mean log-loss and mean Brier score (summed over classes), shape (resamples,) each."""
    of_truth = units.probability[np.arange(len(units.truth)), units.own[units.truth]]
    brier = (units.probability**2).sum(axis=1) - 2 * of_truth + 1
    columns = (-np.log(np.maximum(of_truth, _LEAST)), brier, np.ones(len(brier)))
    alone = np.zeros(len(brier), np.int64)
    sums = _draw(weights, np.hstack([units.by_patient(one, alone, 1) for one in columns]))
    return sums[:, 0] / sums[:, 2], sums[:, 1] / sums[:, 2]


def confidence_bins(units: Units) -> NDArray[np.int64]:
    """Return each unit's bin by its largest probability, shape (n,): equal masses, but for ties."""
    confidence = units.probability.max(axis=1)
    edges = np.quantile(confidence, np.arange(1, N_BINS) / N_BINS)
    return np.asarray(np.searchsorted(edges, confidence), np.int64)


def calibration_gaps(units: Units, weights: Weights) -> Floats:
    """Return the excess of confidence over accuracy, by bin, times the bin's share.

    Shape (resamples, N_BINS); the ECE is the sum of their absolute values. The bins are those of
    the whole cohort in every resample.
    """
    confidence = units.probability.max(axis=1)
    bins, gap = confidence_bins(units), confidence - (units.predicted == units.truth)
    n_units = units.by_patient(np.ones(len(gap)), np.zeros(len(gap), np.int64), 1)
    sums = _draw(weights, np.hstack([units.by_patient(gap, bins, N_BINS), n_units]))
    return sums[:, :-1] / sums[:, -1:]
