"""One fit with its settings, what it predicted, and how that scored."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from embedcache.durable import canonical_json

CALLED_FROM = 0.5  # probability of one label of several
Role = Literal["in-domain", "external"]
Level = Literal["image", "patient"]


@dataclass(frozen=True, slots=True)
class Predictions:
    """What a run said of every image of one cohort.

    Parameters
    ----------
    role
        'in-domain': each image was predicted by the model that had not seen its patient;
        'external': by the model fitted on all training patients.
    classes
        The model's classes, sorted.
    image_id, patient_id, cohort, label
        One an image.
    fold
        The fold that tested the image, shape (n,); -1 where external.
    probability
        Shape (n, len(classes)), float64, rows sum to 1.
    temperature
        What `probability` was found to be too sure by, on inner folds, shape (n,), NaN for an image
        without one; None where none was fitted.
    """

    role: Role
    classes: tuple[str, ...]
    image_id: tuple[str, ...] = field(repr=False)
    patient_id: tuple[str, ...] = field(repr=False)
    cohort: tuple[str, ...] = field(repr=False)
    label: tuple[str, ...] = field(repr=False)
    fold: NDArray[np.int64] = field(repr=False)
    probability: NDArray[np.float64] = field(repr=False)
    temperature: NDArray[np.float64] | None = field(default=None, repr=False)

    @property
    def own_classes(self) -> tuple[str, ...]:
        """The model's classes that occur among the labels."""
        present = set(self.label)
        return tuple(name for name in self.classes if name in present)

    def codes(self) -> NDArray[np.int64]:
        """Return each label's number in `classes`, shape (n,)."""
        number = {name: i for i, name in enumerate(self.classes)}
        return np.array([number[name] for name in self.label], np.int64)

    def predicted(self, *, masked: bool = False) -> NDArray[np.int64]:
        """Return the number of the most probable class of each image, shape (n,).

        Parameters
        ----------
        masked
            Consider only classes that occur among the labels.
        """
        return np.asarray(self.masked_probability(masked=masked).argmax(axis=1), np.int64)

    def masked_probability(self, *, masked: bool = True) -> NDArray[np.float64]:
        """Return the probabilities, those of classes that do not occur set to 0, renormalised."""
        if not masked:
            return self.probability
        allowed = np.isin(self.classes, self.own_classes)
        kept = np.where(allowed, self.probability, 0.0)
        total = kept.sum(axis=1, keepdims=True)
        return kept / np.where(total > 0, total, 1.0)

    @property
    def is_calibrated(self) -> bool:
        """Whether every image has a temperature."""
        return self.temperature is not None and bool(np.isfinite(self.temperature).all())

    def calibrated(self) -> Predictions:
        """Return the same with softmax(log p / T) as probabilities, T the temperature.

        The most probable class stays. Written p^(1/T), scaled by the largest p first, so that no
        row underflows.
        """
        assert self.temperature is not None
        relative = self.probability / self.probability.max(axis=1, keepdims=True)
        power = relative ** (1 / self.temperature[:, None])
        sharp = power / power.sum(axis=1, keepdims=True)
        return replace(self, probability=sharp, temperature=None)

    def take(self, rows: NDArray[np.int64] | NDArray[np.intp]) -> Predictions:
        """Return some of the images, in the order of `rows`, shape (m,)."""
        return replace(
            self,
            image_id=tuple(self.image_id[row] for row in rows),
            patient_id=tuple(self.patient_id[row] for row in rows),
            cohort=tuple(self.cohort[row] for row in rows),
            label=tuple(self.label[row] for row in rows),
            fold=self.fold[rows],
            probability=self.probability[rows],
            temperature=None if self.temperature is None else self.temperature[rows],
        )


@dataclass(frozen=True, slots=True)
class Measurements:
    """What a regression said of every image of one cohort.

    Parameters
    ----------
    role, image_id, patient_id, cohort, fold
        As for `Predictions`.
    truth, value
        The target and what was predicted, in its unit, shape (n,).
    """

    role: Role
    image_id: tuple[str, ...] = field(repr=False)
    patient_id: tuple[str, ...] = field(repr=False)
    cohort: tuple[str, ...] = field(repr=False)
    fold: NDArray[np.int64] = field(repr=False)
    truth: NDArray[np.float64] = field(repr=False)
    value: NDArray[np.float64] = field(repr=False)


@dataclass(frozen=True, slots=True)
class LabelSets:
    """What a multi-label probe said of every image of one cohort.

    Parameters
    ----------
    role, image_id, patient_id, cohort, fold
        As for `Predictions`.
    names
        The labels, sorted.
    truth
        Which of them each image has, shape (n, len(names)).
    probability
        Of each, shape (n, len(names)); rows need not sum to 1.
    """

    role: Role
    names: tuple[str, ...]
    image_id: tuple[str, ...] = field(repr=False)
    patient_id: tuple[str, ...] = field(repr=False)
    cohort: tuple[str, ...] = field(repr=False)
    fold: NDArray[np.int64] = field(repr=False)
    truth: NDArray[np.bool_] = field(repr=False)
    probability: NDArray[np.float64] = field(repr=False)

    def called(self) -> NDArray[np.bool_]:
        """Return the labels with a probability of 0.5 or more, shape (n, len(names))."""
        return self.probability >= CALLED_FROM


Answers = Predictions | Measurements | LabelSets


@dataclass(frozen=True, slots=True)
class Estimate:
    """One score with its interval.

    Parameters
    ----------
    cohort, role
        What was scored.
    scoring
        'all': every output allowed, one outside the cohort's classes counts as a miss; 'masked':
        only the cohort's own classes were considered.
    level
        'image', or 'patient': the mean probability over a patient's images of one class.
    metric
        One of docs/protocol.md, 'Scores'.
    label
        The class, where the metric is of one; '' where it is over all of them.
    value, low, high
        The score and its 95 % interval; NaN where there are fewer than two patients to resample.
    n_patients, n_images
        What stands behind it.
    """

    cohort: str
    role: Role
    scoring: Literal["all", "masked"]
    level: Level
    metric: str
    label: str
    value: float
    low: float
    high: float
    n_patients: int
    n_images: int


@dataclass(frozen=True, slots=True)
class Run:
    """The record of a run: enough to repeat it.

    Parameters
    ----------
    run_id
        `<kind>-<encoder>-<digest>` of everything that decides the result.
    kind
        'probe' or 'zeroshot'.
    encoder, fingerprint
        Whose embeddings.
    settings
        What was asked for: label column, cohorts, predicate, class map and what it says, grid,
        tolerances, seeds.
    data
        Digests of what it was applied to: embeddings, labels, folds.
    results
        What was chosen on the way, and the notes a reader of the scores must know.
    versions
        Of this project and of the libraries that decide the result.
    created, seconds
        For the record; they decide nothing.
    """

    run_id: str
    kind: str
    encoder: str
    fingerprint: str
    settings: dict[str, Any]
    data: dict[str, Any]
    results: dict[str, Any]
    versions: dict[str, Any]
    created: str
    seconds: float


# What a run is judged by, over images; more is better.
HEADLINES = {"classification": "macro_f1", "regression": "r2", "multilabel": "macro_f1"}


def is_headline(run: Run, estimate: Estimate) -> bool:
    """Return whether an estimate is of the score, over images, that a run is judged by."""
    task = run.settings.get("task", "classification")
    return (estimate.metric, estimate.level) == (HEADLINES[task], "image")


def run_id_of(kind: str, encoder: str, decisive: Any) -> str:
    """Return the id of a run: equal inputs give the same one, so a repeated run is found again."""
    digest = hashlib.sha256(canonical_json(decisive)).hexdigest()[:12]
    name = "".join(c if c.isalnum() or c in "._-" else "-" for c in encoder)
    return f"{kind}-{name}-{digest}"
