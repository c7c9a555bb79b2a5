"""One fit with its settings, what it predicted, and how that scored."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from embedcache.durable import canonical_json

Role = Literal["in-domain", "external"]


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
    """

    role: Role
    classes: tuple[str, ...]
    image_id: tuple[str, ...] = field(repr=False)
    patient_id: tuple[str, ...] = field(repr=False)
    cohort: tuple[str, ...] = field(repr=False)
    label: tuple[str, ...] = field(repr=False)
    fold: NDArray[np.int64] = field(repr=False)
    probability: NDArray[np.float64] = field(repr=False)

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
    metric
        'macro_f1', 'f1', 'balanced_accuracy', 'accuracy' or 'auroc'.
    label
        The class, for 'f1'; '' where the metric is over all of them.
    value, low, high
        The score and its 95 % interval; NaN where there are fewer than two patients to resample.
    n_patients, n_images
        What stands behind it.
    """

    cohort: str
    role: Role
    scoring: Literal["all", "masked"]
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


def run_id_of(kind: str, encoder: str, decisive: Any) -> str:
    """Return the id of a run: equal inputs give the same one, so a repeated run is found again."""
    digest = hashlib.sha256(canonical_json(decisive)).hexdigest()[:12]
    name = "".join(c if c.isalnum() or c in "._-" else "-" for c in encoder)
    return f"{kind}-{name}-{digest}"
