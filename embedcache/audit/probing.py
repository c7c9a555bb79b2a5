"""Quick probes of embeddings: split by patient as a score must be, and wrongly, by image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from embedcache.audit.finding import AuditFinding, Scene
from embedcache.data.predictions import Predictions
from embedcache.files.arrays import Codes, Floats, Rows
from embedcache.probes import lda
from embedcache.scoring.answers import subject_of
from embedcache.scoring.compare import lead, spread

SHRINKAGE: Final = 0.1
MOST_FEATURES: Final = 256
METRIC: Final = "macro_f1"
_INFLATION: Final = 0.05  # of macro F1; less is not worth a word
N_RESAMPLES: Final = 2000


@dataclass(frozen=True, slots=True)
class Score:
    """How well one thing is told from another, as macro F1.

    Parameters
    ----------
    target
        Name of what is predicted: the label, or a fact of the images.
    source
        Name of what it is predicted from: an encoder, a fact of the images, or 'metadata' for all.
    split
        Units that folds keep together: 'patients', or 'images' for the wrong way.
    value, low, high
        Macro F1 with its 95 % interval over patients.
    chance
        Macro F1 that a guess reaches.
    n_values
        Number of classes of the target.
    n_patients, n_images
        Number of patients and images that are scored.
    """

    target: str
    source: str
    split: str
    value: float
    low: float
    high: float
    chance: float
    n_values: int
    n_patients: int
    n_images: int


def fewer_features(X: Rows) -> NDArray[np.float32]:
    """Return at most 256 features: wide embeddings are projected at random, by a fixed seed.

    The projection looks at no image, so nothing of a test image gets into a probe by it.
    """
    dim = X.shape[1]
    if dim <= MOST_FEATURES:
        return X.astype(np.float32)
    directions = np.random.default_rng(0).standard_normal((dim, MOST_FEATURES), np.float32)
    return np.asarray(X.astype(np.float32) @ directions / np.sqrt(np.float32(dim)))


def image_folds(y: Codes, n_folds: int) -> Codes:
    """Return folds that part images at random, by class: the wrong way, shape (n,)."""
    order = np.random.default_rng(0).permutation(len(y))
    order = order[np.argsort(y[order], kind="stable")]
    fold = np.empty(len(y), np.int64)
    fold[order] = np.arange(len(y)) % n_folds
    return fold


def out_of_fold(X: NDArray[np.float32], y: Codes, fold: Codes) -> Floats:
    """Return each image's class probabilities by the probe of the other folds, shape (n, classes).

    Parameters
    ----------
    X
        Embeddings, shape (n, dim).
    y
        Class of each image, from 0, shape (n,).
    fold
        Number of each image's fold, shape (n,).
    """
    numbers, n_classes = np.unique(fold), int(y.max()) + 1
    problems = [(np.flatnonzero(fold != number), [SHRINKAGE]) for number in numbers]
    probability = np.empty((len(y), n_classes))
    for number, path in zip(numbers, lda.fit_sweep(X, y, n_classes, problems), strict=True):
        probability[fold == number] = path.probability(X[fold == number])[0]
    return probability


def predictions(
    scene: Scene, rows: Codes, classes: Sequence[str], y: Codes, probability: Floats
) -> Predictions:
    """Return out-of-fold probabilities of some training images as predictions, to be scored.

    Parameters
    ----------
    scene, rows
        All images, and the numbers of those that were predicted, shape (n,).
    classes
        Names of the classes, sorted.
    y
        Class of each image, from 0, shape (n,).
    probability
        Probability of each class, shape (n, classes).
    """
    return Predictions(
        role="in-domain",
        classes=tuple(classes),
        image_id=tuple(scene.image_id[row] for row in rows),
        patient_id=tuple(scene.patient_id[row] for row in rows),
        cohort=tuple(scene.cohort[row] for row in rows),
        label=tuple(classes[code] for code in y),
        fold=scene.fold[rows],
        probability=probability,
    )


def score_of(target: str, source: str, predicted: Predictions, *, split: str = "patients") -> Score:
    """Return the macro F1 of predictions; chance is that of a guess by the shares of classes."""
    interval = spread([subject_of(predicted)], METRIC)
    n_values = len(predicted.own_classes)
    return Score(
        target=target,
        source=source,
        split=split,
        value=interval.value,
        low=interval.low,
        high=interval.high,
        chance=1 / n_values,
        n_values=n_values,
        n_patients=len(set(predicted.patient_id)),
        n_images=len(predicted.image_id),
    )


def inflation(encoder: str, by_patient: Predictions, by_image: Predictions) -> list[AuditFinding]:
    """Return how much better a probe looks where frames of one patient train and test it.

    Parameters
    ----------
    encoder
        Name of the encoder.
    by_patient, by_image
        Predictions of the same images, on folds of patients and on folds of images.
    """
    mixed, apart = ([subject_of(predicted)] for predicted in (by_image, by_patient))
    ahead = lead(mixed, apart, METRIC, n_resamples=N_RESAMPLES)
    if not ahead.low > _INFLATION:
        return []
    values = [spread(subject, METRIC).value for subject in (mixed, apart)]
    message = (
        f"a split by image inflates macro F1 of '{encoder}' to {values[0]:.3f}, from "
        f"{values[1]:.3f} by patient: {ahead.value:+.3f} [{ahead.low:.3f}, {ahead.high:.3f}]; keep "
        "each patient's images in one fold, as the folds here do"
    )
    return [AuditFinding("image-split-inflates", "note", message)]
