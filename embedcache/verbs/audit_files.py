"""What audits store: facts of decoded pictures, by digest of their bytes, and the last findings."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any, Final

import numpy as np
import pyarrow as pa

from embedcache.audit.pictures import PictureFacts, picture_facts
from embedcache.data.image_files import ImageFile, read_and_hash
from embedcache.data.images import decode_image
from embedcache.errors import ImageReadError, StoreCorruptError, StoreReadError
from embedcache.extract.report import Progress
from embedcache.files.backend import Location
from embedcache.files.cores import usable_cores
from embedcache.files.digests import DigestCache
from embedcache.files.documents import (
    known_shape,
    put_table,
    read_document,
    read_table,
    seal,
    table_files,
)
from embedcache.files.durable import new_id
from embedcache.verbs.result_files import ResultFiles, columns, typed_tables
from embedcache.workspace import AUDIT_DOCUMENT, Workspace

_log = logging.getLogger(__name__)

# Part of each table's name: facts that are measured in another way are measured anew.
_PICTURES: Final = "pictures-1-"
_ID: Final = "audit_id"
_SCHEMAS: Final = {
    "audits": columns(
        text=f"{_ID} created verdict label_column train_cohort encoders question",
        number="seconds",
        count="n_patients n_images",
    ),
    "audit": columns(
        text=f"{_ID} severity kind message image_id twin label predicted",
        number="similarity probability margin",
        count="n_images",
    ),
    "audit_scores": columns(
        text=f"{_ID} target source split",
        number="value low high chance",
        count="n_values n_patients n_images",
    ),
}
_SLICE: Final = 1000  # pictures that are decoded between two writes


def facts_of_pictures(
    workspace: Workspace,
    files: Sequence[ImageFile],
    keys: Sequence[str | None],
    digests: DigestCache,
    on_progress: Callable[[Progress], None],
) -> list[PictureFacts | None]:
    """Return the facts of each picture, None where it is not here or cannot be decoded.

    A picture is decoded once: its facts are stored by the digest of its bytes.

    Parameters
    ----------
    workspace
        Workspace of the images.
    files, keys
        The images as files, and the SHA-256 of each one's bytes; None where nobody knows it.
    digests
        Remembered digests of files.
    on_progress
        Called with how many pictures are decoded.
    """
    stored = _stored_facts(workspace)
    missing = {
        key: file for file, key in zip(files, keys, strict=True) if key and key not in stored
    }
    n_done = n_failed = 0
    items = list(missing.items())
    for first in range(0, len(items), _SLICE):
        part = items[first : first + _SLICE]
        with ThreadPoolExecutor(max(2, usable_cores())) as pool:
            decoded = pool.map(lambda item: _decode(item[1], item[0], digests), part)
            measured = {}
            for (key, _), facts in zip(part, decoded, strict=True):
                n_done, n_failed = n_done + 1, n_failed + (facts is None)
                on_progress(Progress(n_done, len(items), n_failed, "decode"))
                if facts is not None:
                    measured[key] = facts
        if measured:
            workspace.create_store()
            rows = [{"sha256": key, **asdict(facts)} for key, facts in measured.items()]
            put_table(workspace.audits, _PICTURES + new_id(), pa.Table.from_pylist(rows))
            stored |= measured
    return [stored.get(key) if key else None for key in keys]


def _decode(file: ImageFile, key: str, digests: DigestCache) -> PictureFacts | None:
    try:
        data, digest = read_and_hash(file.path, digests)
        if file.key_of(digest) != key:  # replaced while this command ran
            return None
        # Warnings are told by the pass that encodes the picture.
        return picture_facts(np.asarray(decode_image(data, file.frame, lambda _: None)))
    except (OSError, ImageReadError):
        return None


def _stored_facts(workspace: Workspace) -> dict[str, PictureFacts]:
    """Return the facts that are stored, by digest of the picture's bytes.

    The log tells of tables that cannot be read: their pictures are decoded again.
    """
    facts: dict[str, PictureFacts] = {}
    for stem, file in table_files(workspace.audits).items():
        if stem.startswith(_PICTURES):
            try:
                facts |= _read_facts(file)
            except (StoreCorruptError, StoreReadError) as error:
                _log.warning("pictures are decoded again: %s", error)
    return facts


def _read_facts(file: Location) -> dict[str, PictureFacts]:
    table = read_table(file)
    with known_shape(file):
        return {row.pop("sha256"): PictureFacts(**row) for row in table.to_pylist()}


def store_findings(workspace: Workspace, document: dict[str, Any]) -> None:
    """Store what an audit found in the place of what the one before found."""
    workspace.create_store()
    (workspace.audits / AUDIT_DOCUMENT).replace(seal(document))


def audit_tables(file: Location) -> dict[str, pa.Table]:
    """Return what the last audit found, as the tables of the catalog.

    Raises
    ------
    StoreCorruptError
        There was no audit, or the document does not match its checksum.
    StoreReadError
        It is whole, but none of an audit.
    """
    document = read_document(file)
    with known_shape(file):
        question = document["question"]
        summary = {
            **document,
            "label_column": question["label"],
            "train_cohort": question["train_cohort"],
            "encoders": json.dumps(document["encoders"]),
            "question": json.dumps(question),
        }
        findings = [
            {**finding, **suspect}
            for finding in document["findings"]
            # A finding that is of no single image has a row too.
            for suspect in finding["images"] or [{}]
        ]
        rows = {"audits": [summary], "audit": findings, "audit_scores": document["scores"]}
        return typed_tables(rows, _SCHEMAS, _ID, document[_ID])


class AuditFiles(ResultFiles):
    """What audits store, as one kind of artefact."""

    verb = "audit"

    @property
    def name(self) -> str:
        """Plural name of the kind."""
        return "audits"

    def items(self) -> Sequence[Location]:
        """Return the tables of facts, and the findings if there are some."""
        findings = self.folder / AUDIT_DOCUMENT
        tables = [
            file for stem, file in table_files(self.folder).items() if stem.startswith(_PICTURES)
        ]
        return [*tables, findings] if findings.exists() else tables

    def read(self, item: Location) -> object:
        """Return the findings, or facts of pictures."""
        return audit_tables(item) if item.name == AUDIT_DOCUMENT else _read_facts(item)
