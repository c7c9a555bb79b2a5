"""Which images of a fold move the weights, which choose the epoch, and which are tested."""

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
        One a row of the training cohort.
    fold
        The fold that tests each row.
    number
        Of the fold to split for.
    validation
        Share of the remaining patients that choose, stratified by class as folds are.
    seed
        Of that choice.

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
    n_parts = min(max(2, round(1 / validation)), len(set(who)), most)
    if n_parts < 2:
        raise RunError(
            f"fold {number} leaves {len(set(who))} patients with {len(names)} images to train on, "
            "too few to set some aside; pass fewer --folds"
        )
    inner = assign_folds(who, names.tolist(), n_folds=n_parts, seed=seed).of(who)
    # The part that lacks the fewest classes, on either side; of equals the first.
    missing = [
        len(set(names)) - len(set(names[inner != part])) + _n_missing(names, inner == part)
        for part in range(n_parts)
    ]
    chosen = int(np.argmin(missing))
    split = Split(others[inner != chosen], others[inner == chosen], test)
    check_apart(patients, split)
    return split


def _n_missing(names: NDArray[np.str_], rows: NDArray[np.bool_]) -> int:
    return len(set(names)) - len(set(names[rows])) if rows.any() else len(names)


def check_apart(patient_id: NDArray[np.str_], split: Split) -> None:
    """Check that no patient stands on two sides.

    Raises
    ------
    LeakageError
    """
    sides = {
        name: set(patient_id[getattr(split, name)].tolist())
        for name in ("train", "validation", "test")
    }
    for one, other in (("train", "test"), ("validation", "test"), ("train", "validation")):
        shared = sorted(sides[one] & sides[other])
        if shared:
            raise LeakageError(
                f"patient '{shared[0]}' is in both the {one} and the {other} part of a fold "
                f"({len(shared)} patients are); one patient belongs to one part"
            )
