"""Answers of a model for each image of a cohort: a class, a number, or several labels."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from embedcache.errors import RunError

CALLED_FROM: Final = 0.5  # probability of one label of several
Role = Literal["in-domain", "external"]


@dataclass(frozen=True, slots=True)
class Predictions:
    """The probabilities of classes for every image of one cohort.

    Parameters
    ----------
    role
        'in-domain': each image was predicted by the model that had not seen its patient;
        'external': by the model fitted on all training patients.
    classes
        The model's classes, sorted.
    image_id, patient_id, cohort, label
        Image, patient, cohort and true class of each of the n images.
    fold
        Number of the fold that tested the image, shape (n,); -1 where external.
    probability
        Probability of each class, shape (n, len(classes)), float64, rows sum to 1.
    temperature
        Factor by which logits are too large, fitted on inner folds, shape (n,), above 0, NaN for
        an image without one; None where none was fitted.
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

    def __post_init__(self) -> None:
        _check_finite(self.probability, self.cohort)

    @property
    def targets(self) -> tuple[str, ...]:
        """Class of each image."""
        return self.label

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
            Whether only classes that occur among the labels count.
        """
        return np.asarray(self.masked_probability(masked=masked).argmax(axis=1), np.int64)

    def masked_probability(self, *, masked: bool = True) -> NDArray[np.float64]:
        """Return the probabilities, those of classes that do not occur set to 0, renormalised."""
        if not masked:
            return self.probability
        allowed = np.isin(self.classes, self.own_classes)
        masked_p = np.where(allowed, self.probability, 0.0)
        total = masked_p.sum(axis=1, keepdims=True)
        return masked_p / np.where(total > 0, total, 1.0)

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
    """The numbers that a regression predicts for every image of one cohort.

    Parameters
    ----------
    role, image_id, patient_id, cohort, fold
        The same as in `Predictions`.
    truth, value
        Target and prediction of each image, in the unit of the target, shape (n,).
    """

    role: Role
    image_id: tuple[str, ...] = field(repr=False)
    patient_id: tuple[str, ...] = field(repr=False)
    cohort: tuple[str, ...] = field(repr=False)
    fold: NDArray[np.int64] = field(repr=False)
    truth: NDArray[np.float64] = field(repr=False)
    value: NDArray[np.float64] = field(repr=False)

    @property
    def targets(self) -> tuple[float, ...]:
        """Target of each image."""
        return tuple(self.truth.tolist())

    def take(self, rows: NDArray[np.int64] | NDArray[np.intp]) -> Measurements:
        """Return some of the images, in the order of `rows`, shape (m,)."""
        return replace(
            self,
            image_id=tuple(self.image_id[row] for row in rows),
            patient_id=tuple(self.patient_id[row] for row in rows),
            cohort=tuple(self.cohort[row] for row in rows),
            fold=self.fold[rows],
            truth=self.truth[rows],
            value=self.value[rows],
        )


@dataclass(frozen=True, slots=True)
class LabelSets:
    """The probabilities of labels that do not exclude each other, for every image of a cohort.

    Parameters
    ----------
    role, image_id, patient_id, cohort, fold
        The same as in `Predictions`.
    names
        The labels, sorted.
    truth
        Whether each image has each label, shape (n, len(names)).
    probability
        Probability of each label, shape (n, len(names)); rows need not sum to 1.
    """

    role: Role
    names: tuple[str, ...]
    image_id: tuple[str, ...] = field(repr=False)
    patient_id: tuple[str, ...] = field(repr=False)
    cohort: tuple[str, ...] = field(repr=False)
    fold: NDArray[np.int64] = field(repr=False)
    truth: NDArray[np.bool_] = field(repr=False)
    probability: NDArray[np.float64] = field(repr=False)

    def __post_init__(self) -> None:
        _check_finite(self.probability, self.cohort)

    @property
    def targets(self) -> tuple[frozenset[str], ...]:
        """Labels of each image."""
        names = np.array(self.names, object)
        return tuple(frozenset(names[row]) for row in self.truth)

    def take(self, rows: NDArray[np.int64] | NDArray[np.intp]) -> LabelSets:
        """Return some of the images, in the order of `rows`, shape (m,)."""
        return replace(
            self,
            image_id=tuple(self.image_id[row] for row in rows),
            patient_id=tuple(self.patient_id[row] for row in rows),
            cohort=tuple(self.cohort[row] for row in rows),
            fold=self.fold[rows],
            truth=self.truth[rows],
            probability=self.probability[rows],
        )

    def called(self) -> NDArray[np.bool_]:
        """Return the labels with a probability of 0.5 or more, shape (n, len(names))."""
        return self.probability >= CALLED_FROM


def _check_finite(probability: NDArray[np.float64], cohort: tuple[str, ...]) -> None:
    """Raise `RunError` where a probability is NaN or infinite: nothing can be scored by it."""
    if np.isfinite(probability).all():
        return
    n_wrong = np.count_nonzero(~np.isfinite(probability).all(axis=1))
    names = ", ".join(sorted(set(cohort)))
    raise RunError(
        f"'{names}': {n_wrong} of {len(probability)} images have a probability that is not finite; "
        "expected a number from 0 to 1 for every class: the model that gave them is broken"
    )


Answers = Predictions | Measurements | LabelSets
