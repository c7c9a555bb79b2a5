"""Which images a question is about, and their embeddings."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pyarrow as pa

from embedcache.catalog.query import select_images
from embedcache.data.class_maps import read_class_map
from embedcache.data.embeddings import LabelledEmbeddings
from embedcache.errors import ManifestError, MissingEmbeddingsError, RunError
from embedcache.probes.multilabel import separate_labels
from embedcache.store.embedding_store import EmbeddingStore
from embedcache.verbs import state
from embedcache.workspace import Workspace

Task = Literal["classification", "regression", "multilabel"]


@dataclass(frozen=True, slots=True)
class CohortOptions:
    """What is asked of the embeddings.

    Parameters
    ----------
    label
        The manifest column that holds the class, the number, or the labels.
    task
        'classification', 'regression' or 'multilabel': which of these it holds.
    train_cohort
        None: the cohort with most patients.
    external
        None: every other cohort that shares a class with the training cohort.
    where
        A SQL predicate over manifest columns; it holds for all cohorts.
    class_map
        A CSV file (label, class) or the name of a built-in map; labels it lacks are left out.
    folds
        How many, or a CSV file (patient_id, fold).
    seed
        Of the folds and of the bootstrap.
    """

    label: str = "label"
    task: Task = "classification"
    train_cohort: str | None = None
    external: tuple[str, ...] | None = None
    where: str | None = None
    class_map: str | None = None
    folds: int | Path = 5
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Cohorts:
    """The labelled images of a question, by number in the workspace's table.

    Parameters
    ----------
    images
        All images.
    labels
        The class of each image of the table; '' where it has none.
    train_cohort, train
        Name and numbers of the training cohort.
    external
        Name and numbers of each external cohort.
    class_map
        What the class map says: label to class; None without one.
    notes
        What was left out, and why, and which images leak.
    """

    images: state.Images
    labels: tuple[str, ...]
    train_cohort: str
    train: tuple[int, ...]
    external: dict[str, tuple[int, ...]]
    class_map: dict[str, str] | None
    notes: tuple[str, ...]

    def column(self, name: str, numbers: Sequence[int]) -> tuple[str, ...]:
        """Return one column of some images."""
        values = self.images.table[name].to_pylist()
        return tuple(values[number] for number in numbers)


def choose_cohorts(images: state.Images, options: CohortOptions) -> Cohorts:
    """Decide which images train and which test.

    Raises
    ------
    ManifestError
        No such label column or cohort.
    RunError
        Nothing is left to train on, or a cohort that was named shares no class with it.
    CatalogError
        A predicate that cannot be evaluated.
    """
    table = images.table
    raw = label_column(images, options.label)
    mapping = dict(read_class_map(options.class_map)) if options.class_map else None
    labels = [mapping.get(name, "") for name in raw] if mapping is not None else raw
    kept = select_images(table, options.where)
    cohort, patient = table["cohort"].to_pylist(), table["patient_id"].to_pylist()
    for asked in (options.train_cohort, *(options.external or ())):
        if asked is not None and asked not in cohort:
            there = ", ".join(sorted(set(cohort)))
            raise ManifestError(f"no cohort '{asked}' in the manifest; it has {there}")
    labelled = [number for number in kept if labels[number]]
    if not labelled:
        raise RunError(f"no image with a '{options.label}' is left; check --where and --class-map")
    patients = {
        name: {patient[number] for number in labelled if cohort[number] == name}
        for name in dict.fromkeys(cohort[number] for number in labelled)
    }
    train_cohort = options.train_cohort or max(patients, key=lambda name: len(patients[name]))
    train = [number for number in labelled if cohort[number] == train_cohort]
    if not train:
        raise RunError(f"no labelled image of cohort '{train_cohort}' is left; check --where")
    others = [name for name in patients if name != train_cohort]
    external: dict[str, tuple[int, ...]] = {}
    notes = []
    if len(labelled) < len(kept):
        notes.append(f"{len(kept) - len(labelled)} images without a class left out")
    classes = _classes(options.task, [labels[number] for number in train])
    for name in options.external if options.external is not None else others:
        numbers = [number for number in labelled if cohort[number] == name]
        known = [n for n in numbers if _classes(options.task, [labels[n]]) <= classes]
        if len(known) < len(numbers):
            strange = sorted(_classes(options.task, [labels[n] for n in numbers]) - classes)
            notes.append(
                f"{len(numbers) - len(known)} images of '{name}' left out: {', '.join(strange)} "
                f"is no class of '{train_cohort}'"
            )
        if known:
            external[name] = tuple(known)
        elif options.external is not None:
            raise RunError(f"no image of cohort '{name}' has a class of '{train_cohort}'")
    notes += _doubles(images, train, external)
    return Cohorts(
        images, tuple(labels), train_cohort, tuple(train), external, mapping, tuple(notes)
    )


def _classes(task: Task, labels: Sequence[str]) -> frozenset[str]:
    """Return the classes that labels name; a number names none."""
    if task == "regression":
        return frozenset()
    if task == "multilabel":
        return frozenset[str]().union(*separate_labels(labels))
    return frozenset(labels)


def official_split(cohorts: Cohorts) -> Cohorts:
    """Return the cohorts with the training cohort's own test images as the first external one.

    Raises
    ------
    ManifestError
        The manifest has no column `split`, or it is not 'train' and 'test' for the cohort's images.
    """
    split = label_column(cohorts.images, "split")
    parts = {
        part: tuple(number for number in cohorts.train if split[number] == part)
        for part in ("train", "test")
    }
    if not all(parts.values()) or sum(map(len, parts.values())) < len(cohorts.train):
        found = ", ".join(repr(name) for name in sorted({split[n] for n in cohorts.train}))
        raise ManifestError(
            f"column 'split' of cohort '{cohorts.train_cohort}' holds {found}; this protocol needs "
            "'train' and 'test'"
        )
    test = {f"{cohorts.train_cohort}, test split": parts["test"]}
    return replace(cohorts, train=parts["train"], external=test | cohorts.external)


def _doubles(
    images: state.Images, train: Sequence[int], external: Mapping[str, Sequence[int]]
) -> Iterator[str]:
    """Say how many images have the bytes of a training image of somebody else."""
    keys, patient = images.keys, images.table["patient_id"].to_pylist()
    owners: defaultdict[str | None, set[str]] = defaultdict(set)
    for number in train:
        owners[keys[number]].add(patient[number])
    owners.pop(None, None)
    inside = sum(len(owners.get(keys[number], ())) > 1 for number in train)
    counts = {"training images": (inside, "one of another patient's")}
    for name, numbers in external.items():
        n_double = sum(keys[number] in owners for number in numbers)
        counts[f"images of '{name}'"] = n_double, "a training image"
    for what, (n_double, of) in counts.items():
        if n_double:
            yield (
                f"{n_double} {what} are byte-identical to {of}; `embedcache manifest check --json` "
                "lists them"
            )


def load_embeddings(
    store: EmbeddingStore,
    images: state.Images,
    labels: Sequence[str],
    numbers: Sequence[int],
    *,
    cohort: str | None = None,
) -> LabelledEmbeddings:
    """Return the embeddings of some images; those that could not be encoded are left out.

    Parameters
    ----------
    cohort
        Name that they go by; None: the manifest's.

    Raises
    ------
    MissingEmbeddingsError
        Images that are here and were never encoded; names the first and the command.
    """
    keys, name = images.keys, images.table["image_id"].to_pylist()
    settled = {None, *store.row_keys(), *store.failures}
    missing = [n for n in numbers if keys[n] not in settled and n not in images.absent]
    if missing:
        raise MissingEmbeddingsError(
            f"{len(missing)} of {len(numbers)} images have no '{store.name}' embedding, first "
            f"'{name[missing[0]]}'; run `embedcache extract --model {store.name}`"
        )
    held = [number for number in numbers if keys[number] in store]
    columns = {
        column: tuple(images.table[column].take(pa.array(held, pa.int64())).to_pylist())
        for column in ("image_id", "patient_id", "cohort")
    }
    if cohort is not None:
        columns["cohort"] = (cohort,) * len(held)
    return LabelledEmbeddings(
        encoder=store.name,
        fingerprint=store.fingerprint,
        X=store.read([str(keys[number]) for number in held]),
        label=tuple(labels[number] for number in held),
        n_failed=len(numbers) - len(held),
        **columns,
    )


def select_embeddings(
    workspace: Workspace, model: str, *, where: str | None = None, label: str = "label"
) -> LabelledEmbeddings:
    """Return one model's rows, in manifest order; images recorded as failed are left out."""
    images = state.load_images(workspace)
    labels = label_column(images, label)
    numbers = select_images(images.table, where)
    store = state.find_store(workspace, model)
    return load_embeddings(store, images, labels, numbers)


def label_column(images: state.Images, column: str) -> list[str]:
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
    return [("" if v is None else str(v)) for v in images.table[column].to_pylist()]
