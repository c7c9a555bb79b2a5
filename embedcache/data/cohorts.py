"""Which images train and which test: the cohorts of a question."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from embedcache.data.class_maps import read_class_map
from embedcache.data.image_table import Images
from embedcache.data.labels import looks_missing, separate_labels
from embedcache.data.question import Question
from embedcache.data.spelling import spelling_twins, twins_text
from embedcache.data.task_names import TaskName
from embedcache.errors import ManifestError, RunError

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, slots=True)
class Cohorts:
    """The labelled images of a question, by row number of the table of images.

    Parameters
    ----------
    images
        All images of the manifest.
    labels
        Class, number or labels of each image of the table; '' where it has none.
    question
        The question with nothing left open: cohorts are named, the class map is read.
    train
        Row numbers of the training cohort.
    external
        Row numbers of each external cohort, by name.
    notes
        Lines on images that were left out, and why.
    """

    images: Images = field(repr=False)
    labels: tuple[str, ...] = field(repr=False)
    question: Question
    train: tuple[int, ...] = field(repr=False)
    external: dict[str, tuple[int, ...]] = field(repr=False)
    notes: tuple[str, ...]

    @property
    def train_cohort(self) -> str:
        """Name of the training cohort."""
        return str(self.question.train_cohort)

    @property
    def parts(self) -> dict[str, tuple[int, ...]]:
        """Row numbers of every cohort, that of the training cohort first."""
        return {self.train_cohort: self.train, **self.external}

    @property
    def train_labels(self) -> list[str]:
        """Labels of the training images."""
        return [self.labels[number] for number in self.train]

    def column(self, name: str, numbers: Sequence[int]) -> tuple[str, ...]:
        """Return one column of the images with these row numbers."""
        return self.images.column(name, numbers)


def choose_cohorts(images: Images, question: Question, selected: Sequence[int]) -> Cohorts:
    """Decide which images train and which test.

    Parameters
    ----------
    images
        All images of the manifest.
    question
        The question, with names that may be open.
    selected
        Row numbers of the images for which `question.where` holds.

    Raises
    ------
    ManifestError
        There is no such label column or cohort, or no official split.
    RunError
        Nothing is left to train on, or a cohort that was named shares no class with it.
    """
    labels, classes = _labels(images, question)
    cohort_of = images.table["cohort"].to_pylist()
    check_cohort_names([question.train_cohort, *(question.external or ())], cohort_of)
    labelled = [number for number in selected if labels[number]]
    if not labelled:
        raise RunError(f"no image with a '{question.label}' is left; check --where and --class-map")
    train_cohort = question.train_cohort or _largest(images, labelled)
    train = [number for number in labelled if cohort_of[number] == train_cohort]
    if not train:
        raise RunError(f"no labelled image of cohort '{train_cohort}' is left; check --where")
    notes = []
    if len(labelled) < len(selected):
        notes.append(f"{len(selected) - len(labelled)} images without a class left out")
    names = question.external
    if names is None:
        present = dict.fromkeys(cohort_of[number] for number in labelled)
        names = tuple(name for name in present if name != train_cohort)
    others = {name: [n for n in labelled if cohort_of[n] == name] for name in names}
    external, left_out = _with_known_classes(question, labels, train_cohort, train, others)
    notes += left_out
    notes += _label_notes(question, [labels[number] for number in labelled])
    closed = replace(question, train_cohort=train_cohort, external=tuple(external), classes=classes)
    cohorts = Cohorts(images, tuple(labels), closed, tuple(train), external, tuple(notes))
    return _with_official_split(cohorts) if question.official_split else cohorts


def _with_known_classes(
    question: Question,
    labels: Sequence[str],
    train_cohort: str,
    train: Sequence[int],
    others: Mapping[str, Sequence[int]],
) -> tuple[dict[str, tuple[int, ...]], list[str]]:
    """Return of each other cohort the images whose classes the training cohort has, and notes."""
    external: dict[str, tuple[int, ...]] = {}
    notes = []
    train_classes = _classes(question.task, [labels[number] for number in train])
    for name, numbers in others.items():
        shared = [n for n in numbers if _classes(question.task, [labels[n]]) <= train_classes]
        if len(shared) < len(numbers):
            strange = _classes(question.task, [labels[n] for n in numbers]) - train_classes
            notes.append(
                f"{len(numbers) - len(shared)} images of '{name}' left out: "
                f"{', '.join(sorted(strange))} is no class of '{train_cohort}'"
            )
        if shared:
            external[name] = tuple(shared)
        elif question.external is not None:
            raise RunError(f"no image of cohort '{name}' has a class of '{train_cohort}'")
    return external, notes


def check_cohort_names(names: Sequence[str | None], cohort_of: Sequence[str]) -> None:
    """Check that the manifest has the cohorts that were named.

    Raises
    ------
    ManifestError
        It lacks one; names those it has.
    """
    for name in names:
        if name is not None and name not in cohort_of:
            there = ", ".join(sorted(set(cohort_of)))
            raise ManifestError(f"no cohort '{name}' in the manifest; it has {there}")


def _labels(images: Images, question: Question) -> tuple[list[str], Mapping[str, str] | None]:
    """Return the label of each image by the class map, and what that says."""
    column = label_column(images, question.label)
    classes = question.classes
    if classes is None and question.class_map:
        classes = dict(read_class_map(question.class_map))
    return (column if classes is None else [classes.get(name, "") for name in column]), classes


def _largest(images: Images, numbers: Sequence[int]) -> str:
    """Return the cohort with most patients among some images; of equals, the first."""
    cohort_of = images.table["cohort"].to_pylist()
    patient_of = images.table["patient_id"].to_pylist()
    patients: dict[str, set[str]] = {}
    for number in numbers:
        patients.setdefault(cohort_of[number], set()).add(patient_of[number])
    return max(patients, key=lambda name: len(patients[name]))


def _classes(task: TaskName, labels: Sequence[str]) -> frozenset[str]:
    """Return the classes that labels name; a number names none."""
    if task == "regression":
        return frozenset()
    if task == "multilabel":
        return frozenset[str]().union(*separate_labels(labels))
    return frozenset(labels)


def _with_official_split(cohorts: Cohorts) -> Cohorts:
    """Return the cohorts with the training cohort's own test images as the first external one."""
    split = label_column(cohorts.images, "split")
    parts = {
        part: tuple(number for number in cohorts.train if split[number] == part)
        for part in ("train", "test")
    }
    if not all(parts.values()) or sum(map(len, parts.values())) < len(cohorts.train):
        present = ", ".join(repr(name) for name in sorted({split[n] for n in cohorts.train}))
        raise ManifestError(
            f"column 'split' of cohort '{cohorts.train_cohort}' holds {present}; this protocol "
            "needs 'train' and 'test'"
        )
    test = {f"{cohorts.train_cohort}, test split": parts["test"]}
    return replace(cohorts, train=parts["train"], external=test | cohorts.external)


def _label_notes(question: Question, labels: Sequence[str]) -> Iterator[str]:
    """Say which classes may be one, and which may be none, before some are left out."""
    if question.task == "regression":
        return
    twins = spelling_twins(labels)
    if twins:
        yield f"classes differ in spelling only ({twins_text(twins)}); --class-map makes them one"
    empty = [label for label in labels if looks_missing(label)]
    if empty:
        yield (
            f"{len(empty)} images have the class '{empty[0]}', which looks like a missing value; "
            "leave the cell empty where there is none"
        )


def label_column(images: Images, column: str) -> list[str]:
    """Return one column as text, '' where a cell is empty.

    Raises
    ------
    ManifestError
        There is no such column.
    """
    if column not in images.table.column_names:
        raise ManifestError(
            f"no column '{column}' in the manifest; it has {', '.join(images.table.column_names)}"
        )
    return cell_texts(images.table[column])


def cell_texts(column: pa.ChunkedArray) -> list[str]:
    """Return the cells of a column as text, '' where one is empty."""
    return [("" if value is None else str(value)) for value in column.to_pylist()]
