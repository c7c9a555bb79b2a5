"""What lies where in one encoder's folder, and the commit record that makes rows exist.

    encoder.json                           which encoder this is; write-once
    seg/<id>.zarr/{zarr.json, c/...}       a (n, dim) array; never changed, id never reused
    commit/<id>.<crc32c>.parquet           which image each row is, and every checksum
    commit/.tmp-<id>                       a commit under way, or killed on its way
    LOCK                                   saves double work; correctness never rests on it

Rows exist when their record does: a segment without a record is an interrupted write.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embedcache.encoder_folders import COMMITS, SEGMENTS, is_document_of
from embedcache.files.backend import Location
from embedcache.files.documents import (
    known_shape,
    put_table,
    read_table,
    table_files,
    table_stem,
)
from embedcache.files.durable import TEMPORARY
from embedcache.files.shapes import is_mapping, is_positive, is_text, list_of, object_of

LOCK: Final = "LOCK"
_ID: Final = re.compile(r"\d{8}T\d{12}-[0-9a-f]{12}")
_SEGMENT_NAME: Final = re.compile(rf"(?P<id>{_ID.pattern})\.zarr/")
_METADATA: Final = b"embedcache"
_SCHEMA: Final = pa.schema(
    [
        ("key", pa.string()),  # sha256 of the image's bytes
        ("row", pa.int32()),  # in the segment; NULL where the image failed
        ("crc32c", pa.uint32()),  # of the row's bytes
        ("reason", pa.string()),  # why the image failed; NULL where it is stored
    ]
)

_IS_METADATA: Final = object_of(
    {
        "dim": is_positive,
        "chunk_rows": is_positive,
        "files": list_of(lambda entry: isinstance(entry, list) and len(entry) == 3),
        "replaces": list_of(is_text),
        "parents": list_of(is_text),
        "context": object_of({}, {"encoder": is_mapping, "seconds": is_mapping}),
    },
    {"id": is_text, "lost": list_of(is_text)},
)


@dataclass(frozen=True, slots=True)
class FileSum:
    """Size and checksum of one file of a segment.

    Parameters
    ----------
    path
        POSIX path of the file, relative to the segment.
    size
        Size of the file in bytes.
    crc32c
        CRC-32C of a chunk's values, which is also what the chunk's last four bytes say; of any
        other file, CRC-32C of all bytes.
    """

    path: str
    size: int
    crc32c: int


@dataclass(frozen=True, slots=True)
class Record:
    """One commit: a segment, what its rows are, and the images that failed on the way.

    Parameters
    ----------
    id
        Name that the record shares with its segment.
    keys
        SHA-256 of each row's image, n of them, in the order of the rows.
    sums
        CRC-32C of each row's bytes, uint32, shape (n,).
    dim, chunk_rows
        Shape of a chunk, (chunk_rows, dim); the last chunk is padded with NaN.
    files
        Size and checksum of every file of the segment.
    failures
        Reason for each image that could not be encoded, by the image's SHA-256.
    replaces
        Ids of records that this one makes void.
    parents
        Ids of the newest records that the writer saw, so that a lost record is noticed.
    context
        JSON values kept with the rows: the encoder's document, library versions, stage times.
    lost
        SHA-256 of each image whose row was stored once, and was lost or may have been.
    """

    id: str
    keys: tuple[str, ...] = field(repr=False)
    sums: NDArray[np.uint32] = field(repr=False)
    dim: int
    chunk_rows: int
    files: tuple[FileSum, ...]
    failures: dict[str, str]
    replaces: tuple[str, ...] = ()
    parents: tuple[str, ...] = ()
    context: dict[str, Any] = field(default_factory=dict)
    lost: tuple[str, ...] = ()

    @property
    def dtype(self) -> str:
        """Type of the rows."""
        return str(self.context.get("encoder", {}).get("identity", {}).get("dtype", "float32"))

    @property
    def size_bytes(self) -> int:
        """Bytes of the segment on disk."""
        return sum(file.size for file in self.files)


def intent_path(folder: Location, record_id: str) -> Location:
    """Return the mark that is there while a commit is under way.

    A whole segment without a record is the leftover of a killed write if the mark is there, and
    a segment that lost its record if it is not.
    """
    return folder / COMMITS / f"{TEMPORARY}{record_id}"


def intended_id(name: str) -> str | None:
    """Return the id of the commit whose mark has a name; None where it is no such mark."""
    record_id = name.removeprefix(TEMPORARY)
    return record_id if name.startswith(TEMPORARY) and _ID.fullmatch(record_id) else None


def segment_folder(folder: Location, record_id: str) -> Location:
    """Return the Zarr array of a record."""
    return folder / SEGMENTS / f"{record_id}.zarr"


def segment_folders(folder: Location) -> dict[str, Location]:
    """Return the Zarr arrays that are there by id, with a record or not, oldest first."""
    segments = folder / SEGMENTS
    matches = (_SEGMENT_NAME.fullmatch(entry.name) for entry in segments.list())
    return {match["id"]: segment_folder(folder, match["id"]) for match in matches if match}


def record_files(folder: Location) -> dict[str, Location]:
    """Return the records' files by id, oldest first."""
    files = table_files(folder / COMMITS)
    return {record_id: file for record_id, file in files.items() if _ID.fullmatch(record_id)}


def put_record(folder: Location, record: Record) -> Location:
    """Make a record, and with it its rows, exist; return its file."""
    n_rows, failed = len(record.keys), list(record.failures)
    metadata = {
        "id": record.id,
        "dim": record.dim,
        "chunk_rows": record.chunk_rows,
        "files": [[file.path, file.size, file.crc32c] for file in record.files],
        "replaces": record.replaces,
        "parents": record.parents,
        "lost": record.lost,
        "context": record.context,
    }
    table = pa.table(
        [
            pa.array([*record.keys, *failed], pa.string()),
            # Rows first, then failures: a failure has no row, and a row has no reason.
            pa.array([*range(n_rows), *[None] * len(failed)], pa.int32()),
            pa.array([*record.sums.tolist(), *[None] * len(failed)], pa.uint32()),
            pa.array([*[None] * n_rows, *record.failures.values()], pa.string()),
        ],
        schema=_SCHEMA.with_metadata({_METADATA: json.dumps(metadata).encode()}),
    )
    return put_table(folder / COMMITS, record.id, table)


def is_record_of(folder: Location, record: Record) -> bool:
    """Tell whether a record's rows are those of the encoder that a folder is named after."""
    encoder = record.context.get("encoder")
    return encoder is None or is_document_of(folder, encoder)


def read_record(file: Location) -> Record:
    """Return a record from its file.

    Its id is the one that it was written under: in a copy under another name, not the file's.

    Raises
    ------
    StoreCorruptError
        The file is missing or damaged.
    StoreReadError
        It is whole, but no record that this release knows.
    """
    table = read_table(file)
    with known_shape(file):
        metadata = json.loads(table.schema.metadata[_METADATA])
        types = [table.schema.field(field.name).type for field in _SCHEMA]
        if types != _SCHEMA.types or not _IS_METADATA(metadata) or table["key"].null_count:
            raise TypeError("other types")
        stored = table.filter(table["reason"].is_null())
        failed = table.filter(table["reason"].is_valid())
        return Record(
            # Records of earlier releases do not say it.
            id=metadata.get("id", table_stem(file.name)),
            keys=tuple(stored["key"].to_pylist()),
            sums=stored["crc32c"].to_numpy().astype(np.uint32, copy=False),
            dim=metadata["dim"],
            chunk_rows=metadata["chunk_rows"],
            files=tuple(FileSum(*entry) for entry in metadata["files"]),
            failures=dict(
                zip(failed["key"].to_pylist(), failed["reason"].to_pylist(), strict=True)
            ),
            replaces=tuple(metadata["replaces"]),
            parents=tuple(metadata["parents"]),
            context=dict(metadata["context"]),
            lost=tuple(metadata.get("lost", ())),
        )
