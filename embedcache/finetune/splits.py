"""Images of a fold that move the weights, that choose the epoch, and that are tested."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embedcache.data.folds import assign_folds
from embedcache.errors import LeakageError, RunError

Rows = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Split:
    """Row numbers of one fold, ascending; no patient is in two of them."""

    train: Rows
    validation: Rows
    test: Rows


def split_fold(
    patient_id: Sequence[str],
    label: Sequence[str],
    fold: NDArray[np.int64],
    number: int,
    *,
    validation: float,
    seed: int,
) -> Split:
    """Return the split of one fold: its own patients are tested, some others choose the epoch.

    Parameters
    ----------
    patient_id, label
        Patient and class of each row of the training cohort.
    fold
        Fold that tests each row, shape (n,).
    number
        Number of the fold to split for.
    validation
        Share of the remaining patients that choose the epoch, from 0.01 to 0.5, stratified by
        class as folds are.
    seed
        Seed of the choice of these patients.

    Raises
    ------
    LeakageError
        A patient would stand on two sides.
    RunError
        Too few patients to set some aside.
    """
    others, test = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
    patients, names = np.array(patient_id), np.array(label)[others]
    who = patients[others].tolist()
    most = Counter(names.tolist()).most_common(1)[0][1] if len(names) else 0
    # The validation part is one fold of so many; each needs a patient, and scikit-learn refuses
    # more folds than the commonest class has images.
    n_parts = min(max(2, round(1 / validation)), len(set(who)), most)
    if n_parts < 2:
        raise RunError(
            f"fold {number} leaves {len(set(who))} patients with {len(names)} images to train on, "
            "too few to set some aside; pass fewer --folds"
        )
    inner = assign_folds(who, names.tolist(), n_folds=n_parts, seed=seed).of(who)
    chosen = _most_complete_part(names, inner, n_parts)
    split = Split(others[inner != chosen], others[inner == chosen], test)
    check_apart(patients, split)
    return split


def _most_complete_part(names: NDArray[np.str_], inner: NDArray[np.int64], n_parts: int) -> int:
    """Return the part that lacks the fewest classes, inside and outside it; of equals the first."""
    n_classes = len(set(names))
    missing = [
        n_classes - len(set(names[inner != part])) + _n_missing(names, inner == part)
        for part in range(n_parts)
    ]
    return int(np.argmin(missing))


def _n_missing(names: NDArray[np.str_], rows: NDArray[np.bool_]) -> int:
    return len(set(names)) - len(set(names[rows])) if rows.any() else len(names)


def check_apart(patient_id: NDArray[np.str_], split: Split) -> None:
    """Check that no patient stands on two sides.

    Raises
    ------
    LeakageError
        A patient is in two of the parts.
    """
    sides = {
        name: set(patient_id[getattr(split, name)].tolist())
        for name in ("train", "validation", "test")
    }
    for first, second in (("train", "test"), ("validation", "test"), ("train", "validation")):
        shared = sides[first] & sides[second]
        if shared:
            raise LeakageError(
                f"{len(shared)} patients are in both the {first} and the {second} part of a fold; "
                "one patient belongs to one part"
            )
