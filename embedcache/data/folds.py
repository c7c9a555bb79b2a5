"""Which patients are tested together: stratified by class, and no patient in two folds."""

from __future__ import annotations

import csv
import hashlib
import io
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from embedcache.errors import LeakageError, RunError
from embedcache.files.durable import canonical_json
from embedcache.files.regular import read_regular

_METHOD: Final = "StratifiedGroupKFold, shuffled, rows sorted by patient and class"


@dataclass(frozen=True, slots=True)
class FoldTable:
    """The fold in which each patient is tested.

    Parameters
    ----------
    folds_id
        Digest of what the assignment was made from: patients, their classes, number, seed.
    n_folds
        Number of folds.
    seed
        Seed of the shuffle; 0 for a table that was given, or made by a column.
    patients
        Number of the fold, from 0, by patient.
    notes
        Lines that a reader of a score must know: rare classes, dominating patients.
    values
        Value of a manifest column that each fold tests; empty where folds are not by a column.
    """

    folds_id: str
    n_folds: int
    seed: int
    patients: dict[str, int]
    notes: tuple[str, ...] = ()
    values: tuple[str, ...] = ()

    def of(self, patient_id: Sequence[str]) -> NDArray[np.int64]:
        """Return the fold of each image, by its patient, shape (n,).

        Raises
        ------
        RunError
            A patient is not in the table.
        """
        absent = {patient for patient in patient_id if patient not in self.patients}
        if absent:
            raise RunError(
                f"{len(absent)} patients are in no fold of table {self.folds_id}; make a table of "
                "these images with `embedcache folds`"
            )
        return np.array([self.patients[patient] for patient in patient_id], np.int64)


def folds_identity(patient_id: Sequence[str], label: Sequence[str], n_folds: int, seed: int) -> str:
    """Return the digest of all that `assign_folds` works from; row order plays no part."""
    counts = sorted(Counter(zip(patient_id, label, strict=True)).items())
    return hashlib.sha256(canonical_json([_METHOD, n_folds, seed, counts])).hexdigest()[:16]


def assign_folds(
    patient_id: Sequence[str], label: Sequence[str], *, n_folds: int = 5, seed: int = 0
) -> FoldTable:
    """Assign each patient to the fold in which all of its images are tested.

    Parameters
    ----------
    patient_id, label
        Patient and class of each image.
    n_folds
        Number of folds, from 2 to the number of patients.
    seed
        Seed of the shuffle.

    Raises
    ------
    RunError
        Fewer patients than folds, fewer than two folds, or fewer than two classes.
    """
    n_patients = len(set(patient_id))
    if n_folds < 2 or n_patients < n_folds:
        raise RunError(
            f"{n_patients} patients cannot be split into {n_folds} folds; pass --folds with a "
            f"number from 2 to {n_patients}"
        )
    _check_classes(label)
    # Sorted, so that the order of rows in a manifest cannot change the folds.
    rows = sorted(zip(patient_id, label, strict=True))
    groups, y = (np.array(column) for column in zip(*rows, strict=True))
    from sklearn.model_selection import StratifiedGroupKFold

    splitter = StratifiedGroupKFold(n_splits=n_folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # rare classes: `notes` says it in full
        try:
            parts = [test for _, test in splitter.split(np.zeros(len(y)), y, groups)]
        except ValueError as error:
            raise RunError(f"{error}; pass a smaller number as --folds") from None
    patients = {str(groups[row]): fold for fold, test in enumerate(parts) for row in test}
    return FoldTable(
        folds_id=folds_identity(patient_id, label, n_folds, seed),
        n_folds=n_folds,
        seed=seed,
        patients=dict(sorted(patients.items())),
        notes=fold_notes(patient_id, label, n_folds),
    )


def _check_classes(label: Sequence[str]) -> None:
    classes = sorted(set(label))
    if len(classes) < 2:
        raise RunError(f"one class only ({classes[0]!r}); a probe needs two or more")
    if len(classes) == len(label):
        raise RunError("every image has a class of its own; there is nothing to learn from them")


def folds_by_value(
    patient_id: Sequence[str], value: Sequence[str], label: Sequence[str], *, column: str
) -> FoldTable:
    """Make one fold of each value of a manifest column, such as the centre of an image.

    Parameters
    ----------
    patient_id, label
        Patient and class of each image.
    value
        Value of each image in the column, '' where it has none; folds are in the order of values.
    column
        Name of the column.

    Raises
    ------
    RunError
        An image has no value, all have one, or there are fewer than two classes.
    LeakageError
        A patient has images of two values.
    """
    _check_classes(label)
    n_empty = sum(not name for name in value)
    if n_empty:
        raise RunError(
            f"{n_empty} of {len(value)} training images have no '{column}' to make folds of; fill "
            f"the column, or leave them out with --where \"{column} <> ''\""
        )
    names = sorted(set(value))
    if len(names) < 2:
        raise RunError(
            f"every training image has the '{column}' '{names[0]}'; --folds-by needs a column of "
            "two or more values, and a probe three"
        )
    value_of = _values_of_patients(patient_id, value, column)
    made_of = ["by value", column, value_of]
    return FoldTable(
        folds_id=hashlib.sha256(canonical_json(made_of)).hexdigest()[:16],
        n_folds=len(names),
        seed=0,
        patients={patient: names.index(name) for patient, name in value_of.items()},
        values=tuple(names),
    )


def _values_of_patients(
    patient_id: Sequence[str], value: Sequence[str], column: str
) -> dict[str, str]:
    """Return the one value of each patient, sorted by patient; see `folds_by_value`."""
    values_of: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for patient, name in zip(patient_id, value, strict=True):
        values_of[patient][name] += 1
    torn = [counts for counts in values_of.values() if len(counts) > 1]
    if torn:
        first = " and ".join(f"{n} of '{name}'" for name, n in torn[0].most_common(2))
        raise LeakageError(
            f"{len(torn)} of {len(values_of)} patients have images of two or more values of "
            f"'{column}' (of the first, {first}); one patient belongs to one fold: mend the "
            "column, or leave images out with --where"
        )
    return {patient: next(iter(values_of[patient])) for patient in sorted(values_of)}


def fold_notes(patient_id: Sequence[str], label: Sequence[str], n_folds: int) -> tuple[str, ...]:
    """Return lines that a reader of the scores must know: rare classes, dominating patients."""
    per_class: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for patient, name in zip(patient_id, label, strict=True):
        per_class[name][patient] += 1
    notes = []
    for name, counts in sorted(per_class.items()):
        if len(counts) < n_folds:
            notes.append(
                f"class '{name}' has {len(counts)} patients, fewer than {n_folds} folds: some "
                "folds test none of it"
                + (", and one is trained without it" if len(counts) == 1 else "")
            )
        patient, most = counts.most_common(1)[0]
        share = most / counts.total()
        if share > 1 / n_folds and len(counts) >= n_folds:
            notes.append(
                f"one patient holds {share:.0%} of class '{name}' ({most} images): its fold "
                "weighs more than the others"
            )
    return tuple(notes)


def untrained_notes(table: FoldTable, patient_id: Sequence[str], label: Sequence[str]) -> list[str]:
    """Return a line on each class of several patients that one fold of a table has alone."""
    patients: defaultdict[str, set[str]] = defaultdict(set)
    for patient, name in zip(patient_id, label, strict=True):
        patients[name].add(patient)
    return [
        f"class '{name}' has its {len(members)} patients in one fold, which is trained without it"
        for name, members in sorted(patients.items())
        if len(members) > 1 and len({table.patients[patient] for patient in members}) == 1
    ]


def fold_gaps(n_folds: int, n_used: int) -> Iterator[str]:
    """Say how many folds of a table hold none of the images asked about."""
    if n_used < n_folds:
        yield f"{n_folds - n_used} of {n_folds} folds hold none of the images; {n_used} are used"


def given_identity(patients: Mapping[str, int]) -> str:
    """Return the digest of a table that was given: patients and the numbers of their folds."""
    given = dict(sorted(patients.items()))
    return hashlib.sha256(canonical_json(["given", given])).hexdigest()[:16]


def read_folds(file: Path) -> FoldTable:
    """Read a fold table made elsewhere: CSV with the columns patient_id and fold.

    Raises
    ------
    RunError
        No such file, a missing column, or fold numbers that do not run from 0 or 1 upwards.
    LeakageError
        A patient stands in two folds.
    """
    try:
        text = io.StringIO(read_regular(file).decode("utf-8-sig"), newline="")
        rows = [(row["patient_id"], int(row["fold"])) for row in csv.DictReader(text)]
    except OSError as error:
        raise RunError(
            f"{file}: no fold table: {error.strerror}; expected a CSV file (patient_id, fold)"
        ) from None
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(
            f"{file}: expected CSV columns 'patient_id' and 'fold' (whole numbers): {error}"
        ) from None
    patients: dict[str, int] = {}
    for number, (patient, fold) in enumerate(rows, 1):
        if patients.setdefault(patient, fold) != fold:
            raise LeakageError(
                f"{file}: the patient of row {number} stands in fold {patients[patient]} and in "
                f"fold {fold}; one patient belongs to one fold"
            )
    first = min(patients.values(), default=0)
    numbered = {patient: fold - first for patient, fold in sorted(patients.items())}
    n_folds = len(set(numbered.values()))
    if n_folds < 2 or set(numbered.values()) != set(range(n_folds)):
        raise RunError(f"{file}: folds must be numbered 0, 1, ... without a gap, two or more")
    return FoldTable(folds_id=given_identity(numbered), n_folds=n_folds, seed=0, patients=numbered)


@dataclass(frozen=True, slots=True)
class FoldSize:
    """Size of the part that one fold tests.

    Parameters
    ----------
    fold
        Number of the fold, from 0.
    n_patients, n_images
        Number of patients and of images that are tested.
    classes
        Number of tested images by class.
    value
        Value of a manifest column that the fold is of; None where folds are not by a column.
    """

    fold: int
    n_patients: int
    n_images: int
    classes: dict[str, int]
    value: str | None = None


def fold_sizes(table: FoldTable, patient_id: Sequence[str], label: Sequence[str]) -> list[FoldSize]:
    """Return patients, images, and images a class of each fold."""
    sizes = []
    for number in range(table.n_folds):
        rows = [i for i, patient in enumerate(patient_id) if table.patients[patient] == number]
        sizes.append(
            FoldSize(
                fold=number,
                n_patients=len({patient_id[i] for i in rows}),
                n_images=len(rows),
                classes=dict(sorted(Counter(label[i] for i in rows).items())),
                value=table.values[number] if table.values else None,
            )
        )
    return sizes
