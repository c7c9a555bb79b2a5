"""What one command has read: the manifest, the stores and the runs, each of them once."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from embedcache.audit.finding import AuditFinding, Scene
from embedcache.audit.identical import cheap_findings
from embedcache.catalog.query import select_images
from embedcache.data.claims import Claim, claim_files, read_claims
from embedcache.data.cohorts import Cohorts, choose_cohorts, label_column
from embedcache.data.embeddings import LabelledEmbeddings
from embedcache.data.fold_tables import store_fold_table, stored_folds
from embedcache.data.folds import (
    FoldTable,
    fold_notes,
    folds_by_value,
    read_folds,
    untrained_notes,
)
from embedcache.data.image_files import ImageFile
from embedcache.data.image_table import Images, image_files, load_images, remembered_images
from embedcache.data.manifest import Manifest, read_manifest
from embedcache.data.question import Question
from embedcache.data.snapshots import release_claims, save_snapshot
from embedcache.encoder_folders import plain_name, read_encoder_document, same_name
from embedcache.encoders.kept import check_not_trained_on
from embedcache.encoders.spec import EncoderSpec
from embedcache.errors import (
    MissingEmbeddingsError,
    StoreCorruptError,
    StoreMismatchError,
    StoreReadError,
)
from embedcache.files.backend import Location
from embedcache.files.digests import DigestCache, Stamp, file_stamp
from embedcache.runs.files import RunFiles
from embedcache.store.care import recorded_keys
from embedcache.store.embedding_store import EmbeddingStore
from embedcache.workspace import Workspace

_log = logging.getLogger(__name__)

ALL = "all"


@dataclass(frozen=True, slots=True)
class Study:
    """A question with its images: who trains, who tests, on which folds.

    Parameters
    ----------
    cohorts
        Images that train and images that test.
    folds
        Fold of each training patient.
    snapshot
        Content digest of the remembered manifest.
    findings
        Faults of the split that the table of images tells; see `embedcache.audit`.
    """

    cohorts: Cohorts
    folds: FoldTable
    snapshot: str
    findings: tuple[AuditFinding, ...] = ()

    @property
    def question(self) -> Question:
        """The question, on the folds of this study."""
        return self.cohorts.question.on_folds(self.folds)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the scores must know."""
        # The folds' own notes tell of rare classes.
        faults = (f.message for f in self.findings if f.kind != "rare-class")
        return (*self.cohorts.notes, *self.folds.notes, *faults)


def scene_of(cohorts: Cohorts, folds: FoldTable) -> Scene:
    """Return the images of a question as an audit sees them."""
    tested = [number for part in cohorts.external.values() for number in part]
    numbers = [*cohorts.train, *tested]
    keys = cohorts.images.keys
    names = [name for name, part in cohorts.parts.items() for _ in part]
    fold = folds.of(cohorts.column("patient_id", cohorts.train))
    return Scene(
        image_id=cohorts.column("image_id", numbers),
        patient_id=cohorts.column("patient_id", numbers),
        label=tuple(cohorts.labels[number] for number in numbers),
        cohort=tuple(names),
        key=tuple(keys[number] for number in numbers),
        fold=np.append(fold, np.full(len(tested), -1)),
    )


class Session:
    """A workspace as one command sees it.

    Parameters
    ----------
    workspace
        Manifest, data root and store.

    Attributes
    ----------
    runs
        The stored runs.
    digests
        Digests of files that are known by their time stamps.
    """

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.runs = RunFiles(workspace)
        self._stores: dict[Location, EmbeddingStore] = {}

    @cached_property
    def digests(self) -> DigestCache:
        """Digests of files, remembered between commands."""
        return DigestCache(self.workspace.digests)

    @cached_property
    def manifest(self) -> Manifest:
        """The checked manifest, parsed once.

        Raises
        ------
        ManifestError
            There is no manifest, or it cannot be used.
        """
        # Taken before the file is read, so that an edit in between is noticed later.
        _ = self.manifest_stamp, self.earlier_claims
        return read_manifest(self.workspace.manifest)

    @cached_property
    def manifest_stamp(self) -> Stamp | None:
        """Size, inode and time stamps of the manifest before it was read; None without one."""
        return file_stamp(self.workspace.manifest)

    @cached_property
    def earlier_claims(self) -> list[Claim]:
        """What claims said before the manifest was read: see `embedcache/data/claims.py`."""
        return read_claims(claim_files(self.workspace))

    @cached_property
    def image_files(self) -> tuple[ImageFile, ...]:
        """The images of the manifest as files, in its order; reads none of them."""
        return image_files(self.manifest, self.workspace.data_root)

    @cached_property
    def images(self) -> Images:
        """The images of the manifest with their digests.

        Raises
        ------
        ManifestError
            There is neither a manifest nor a store that remembers one.
        """
        if not self.workspace.manifest.is_file():
            return remembered_images(self.workspace)
        return load_images(self.workspace, self.manifest, self.image_files, self.digests)

    def forget_images(self) -> None:
        """Take the digests of the images anew when they are asked for next: a pass read files."""
        for name in ("images", "snapshot"):  # where a cached property keeps its value
            self.__dict__.pop(name, None)

    @cached_property
    def snapshot(self) -> str:
        """Content digest of the manifest, which is remembered in the store."""
        content = save_snapshot(self.workspace, self.images.table)
        if self.workspace.manifest.is_file():  # which is more than its last snapshot
            release_claims(self.workspace, self.earlier_claims, content)
        return content

    # Stores

    @cached_property
    def encoder_documents(self) -> dict[Location, dict[str, Any]]:
        """The content of each `encoder.json` that can be read, by its encoder's folder."""
        return self.workspace.encoder_documents()

    def open_store(self, folder: Location) -> EmbeddingStore:
        """Return the store in a folder, opened at the first call."""
        if folder not in self._stores:
            self._stores[folder] = EmbeddingStore(folder)
        return self._stores[folder]

    def create_store(self, folder: Location, document: Mapping[str, Any]) -> EmbeddingStore:
        """Return the store of an encoder, made where there is none; see `open_or_create`."""
        if folder not in self._stores:
            self._stores[folder] = EmbeddingStore.open_or_create(folder, document)
            self.__dict__.pop("encoder_documents", None)  # they are one more now
        return self._stores[folder]

    def stores(self) -> list[EmbeddingStore]:
        """Return the store of every encoder fingerprint; the log tells of unreadable ones."""
        self.workspace.check_readable()
        stores = []
        for folder in self.encoder_documents:
            try:
                stores.append(self.open_store(folder))
            except (StoreCorruptError, StoreReadError) as error:
                _log.warning("encoder '%s' is left out: %s", folder.name, error)
        return stores

    def find_store(self, model: str) -> EmbeddingStore:
        """Return the store of `name`, or of `name@fingerprint` where there are several.

        Raises
        ------
        MissingEmbeddingsError
            The store holds nothing of that name.
        StoreMismatchError
            It holds several fingerprints of it; lists them.
        StoreCorruptError
            What it holds of that name is damaged.
        """
        name, _, prefix = model.partition("@")
        documents = self.encoder_documents
        matches = {
            folder: str(document["fingerprint"])
            for folder, document in documents.items()
            if same_name(str(document["name"]), name)
            and str(document["fingerprint"]).startswith(prefix)
        }
        if not matches:
            self._check_unread(name, prefix)
            names = ", ".join(sorted({str(document["name"]) for document in documents.values()}))
            raise MissingEmbeddingsError(
                f"no embeddings of '{model}' in {self.workspace.store}; it holds "
                f"{names or 'none'}; run `embedcache extract --model {name}`"
            )
        if len(matches) > 1:
            choices = ", ".join(f"{name}@{match[:12]}" for match in matches.values())
            raise StoreMismatchError(f"'{model}' has several fingerprints; name one of {choices}")
        [folder] = matches
        return self.open_store(folder)

    def _check_unread(self, name: str, prefix: str) -> None:
        """Raise what is wrong with an encoder that cannot be read and, by its folder, is meant."""
        for folder in self.workspace.encoder_folders():
            is_meant = same_name(folder.name[:-13], plain_name(name))
            is_meant = is_meant and folder.name[-12:].startswith(prefix[:12])
            if is_meant and folder not in self.encoder_documents:
                read_encoder_document(folder)

    def model_names(self, models: Sequence[str]) -> list[str]:
        """Return the models meant: 'all' is every fingerprint that the store holds."""
        if ALL not in models:
            return list(dict.fromkeys(models))
        # Of all that there are, also of those that are left out, a name must tell one.
        names = [str(document["name"]) for document in self.encoder_documents.values()]
        return [
            store.name if names.count(store.name) == 1 else f"{store.name}@{store.fingerprint[:12]}"
            for store in self.stores()
        ]

    def count_rows(self, folder: Location) -> int:
        """Return how many images the readable records of an encoder's folder hold."""
        return len(recorded_keys(folder))

    # Questions

    def study(self, question: Question) -> Study:
        """Return the images and folds of a question; folds and manifest are stored now.

        Raises
        ------
        ManifestError
            There is no such column or cohort.
        RunError
            Nothing is left to train on, or it cannot be split into folds.
        CatalogError
            The predicate cannot be evaluated.
        """
        selected = select_images(self.images.table, question.where)
        cohorts = choose_cohorts(self.images, question, selected)
        folds = self._folds(cohorts)
        findings = cheap_findings(scene_of(cohorts, folds), folds.n_folds, question.task)
        return Study(cohorts, folds, self.snapshot, tuple(findings))

    def _folds(self, cohorts: Cohorts) -> FoldTable:
        """Return the folds of the training cohort: given, stored, or assigned and stored now."""
        from embedcache.protocol.tasks import strata  # late: what only looks fits nothing

        question = cohorts.question
        patient_id = cohorts.column("patient_id", cohorts.train)
        classes = strata(question.task, cohorts.train_labels)
        table = question.folds
        if question.folds_by is not None and not isinstance(table, FoldTable):
            column = label_column(cohorts.images, question.folds_by)
            values = [column[number] for number in cohorts.train]
            table = folds_by_value(patient_id, values, classes, column=question.folds_by)
        elif isinstance(table, int):
            table = stored_folds(self.workspace, patient_id, classes, table, question.seed)
        elif isinstance(table, Path):
            table = read_folds(table)
        assert table is not None  # no question lacks both a column and a number
        # Those of a file too: a record names its folds, and `verify` looks for them.
        store_fold_table(self.workspace, table.folds_id, table.patients, table.values)
        # In other tasks the strata are no classes, and notes on them would say nothing.
        if question.task != "classification":
            return replace(table, notes=())
        notes = fold_notes(patient_id, classes, table.n_folds)
        return replace(table, notes=(*notes, *untrained_notes(table, patient_id, classes)))

    def rows(self, study: Study, store: EmbeddingStore) -> list[LabelledEmbeddings]:
        """Return an encoder's rows of the training cohort, then of each external one.

        Raises
        ------
        LeakageError
            The encoder was fine-tuned on one of their patients or images.
        MissingEmbeddingsError
            Images that are here were never encoded.
        """
        cohorts = study.cohorts
        numbers = [number for part in cohorts.parts.values() for number in part]
        spec = EncoderSpec.from_document(store.document["spec"])
        keys = cohorts.images.keys
        check_not_trained_on(
            self.workspace,
            spec,
            cohorts.column("patient_id", numbers),
            cohorts.column("image_id", numbers),
            [keys[number] for number in numbers],
        )
        return [
            self.labelled_rows(store, cohorts.labels, part, cohort=name)
            for name, part in cohorts.parts.items()
        ]

    def labelled_rows(
        self,
        store: EmbeddingStore,
        labels: Sequence[str],
        numbers: Sequence[int],
        *,
        cohort: str | None = None,
    ) -> LabelledEmbeddings:
        """Return the embeddings of some images; those that could not be encoded are left out.

        Parameters
        ----------
        store
            Rows of one encoder.
        labels
            Label of every image of the table.
        numbers
            Row numbers of the images wanted.
        cohort
            Name of their cohort; None for that of the manifest.

        Raises
        ------
        MissingEmbeddingsError
            Images that are here and were never encoded; names the first and the command.
        """
        images = self.images
        keys = images.keys
        settled = {None, *store.row_keys(), *store.failures}  # None: a file that nobody has seen
        missing = [n for n in numbers if keys[n] not in settled and n not in images.absent]
        if missing:
            first = images.table["image_id"][missing[0]].as_py()
            raise MissingEmbeddingsError(
                f"{len(missing)} of {len(numbers)} images have no '{store.name}' embedding, first "
                f"'{first}'; run `embedcache extract --model {store.name}`"
            )
        stored = [number for number in numbers if keys[number] in store]
        columns = {
            name: images.column(name, stored) for name in ("image_id", "patient_id", "cohort")
        }
        if cohort is not None:
            columns["cohort"] = (cohort,) * len(stored)
        return LabelledEmbeddings(
            encoder=store.name,
            fingerprint=store.fingerprint,
            X=store.read([str(keys[number]) for number in stored]),
            label=tuple(labels[number] for number in stored),
            n_failed=len(numbers) - len(stored),
            **columns,
        )

    def embeddings(
        self, model: str, *, where: str | None = None, label: str = "label"
    ) -> LabelledEmbeddings:
        """Return one model's rows, in manifest order; images recorded as failed are left out."""
        labels = label_column(self.images, label)
        numbers = select_images(self.images.table, where)
        return self.labelled_rows(self.find_store(model), labels, numbers)
