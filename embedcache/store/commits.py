"""Making rows exist: a segment is written, and only then the record that names it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedcache.encoder_folders import COMMITS
from embedcache.errors import StoreCorruptError, StoreError, StoreWriteError
from embedcache.files.arrays import Rows
from embedcache.files.backend import Location
from embedcache.files.documents import find_table
from embedcache.files.durable import new_id
from embedcache.files.marks import is_withdrawn, put_mark
from embedcache.store import layout, segment
from embedcache.store.layout import Record


def publish_segment(
    folder: Location,
    document: Mapping[str, Any],
    keys: Sequence[str],
    blocks: Iterable[Rows],
    *,
    failures: Mapping[str, str],
    context: Mapping[str, Any],
    replaces: Sequence[str] = (),
    parents: Sequence[str] = (),
    lost: Sequence[str] = (),
) -> Record:
    """Write a segment durably, then the record that makes its rows exist.

    Parameters
    ----------
    folder, document
        Folder of the encoder, and content of its `encoder.json`.
    keys
        SHA-256 of each row's image.
    blocks
        The rows in order, in blocks of `chunk_rows_for(len(keys))`.
    failures, context, replaces, parents, lost
        Parts of the record.

    Raises
    ------
    StoreWriteError
        The storage refused; no row of this call exists.
    """
    record_id, dim = new_id(), int(document["identity"]["dim"])
    dtype = str(document["identity"].get("dtype", "float32"))
    sums: list[NDArray[np.uint32]] = [np.empty(0, np.uint32)]
    with _under_way(folder, record_id) as array:
        files = segment.write_segment(array, len(keys), dim, _summed(blocks, sums), dtype=dtype)
        record = Record(
            id=record_id,
            keys=tuple(keys),
            sums=np.concatenate(sums),
            dim=dim,
            chunk_rows=segment.chunk_rows_for(len(keys)),
            files=files,
            failures=dict(failures),
            replaces=tuple(replaces),
            parents=tuple(parents),
            context={**context, "encoder": dict(document)},
            lost=tuple(lost),
        )
        _check_not_withdrawn(folder, record, layout.put_record(folder, record))
    return record


def _summed(blocks: Iterable[Rows], sums: list[NDArray[np.uint32]]) -> Iterator[Rows]:
    """Yield blocks as they come, and add the checksums of their rows to `sums`.

    The blocks may be more than memory holds, so they cannot be read twice.
    """
    for block in blocks:
        sums.append(segment.row_sums(block))
        yield block


@contextlib.contextmanager
def _under_way(folder: Location, record_id: str) -> Iterator[Location]:
    """Mark a commit while it is made, and yield its array, which is removed if it fails."""
    array = layout.segment_folder(folder, record_id)
    intent = layout.intent_path(folder, record_id)
    try:
        with put_mark(intent):
            yield array
    except BaseException:  # an interruption too, lest it leaves rows that nothing names
        with contextlib.suppress(StoreError):
            # An interruption may come when the record is written: then the rows exist, and stay.
            if find_table(folder / COMMITS, record_id) is None:
                array.delete()
            intent.delete()  # last: rows without record and mark have lost their record
        raise
    with contextlib.suppress(StoreError):  # a mark that stays is swept one day
        intent.delete()


def _check_not_withdrawn(folder: Location, record: Record, file: Location) -> None:
    """Take a record back that was just put, if a sweep took its writer for dead.

    Asked only once the record is there: see `files/marks.py`.
    """
    intent, array = layout.intent_path(folder, record.id), layout.segment_folder(folder, record.id)
    # The mark first: a sweep that removes it meanwhile has removed the segment's files before.
    if is_withdrawn(intent) or _are_files_gone(array, record):
        file.delete()
        raise StoreWriteError(
            f"{array}: a clean-up took this write for a killed one's leftover; everything finished "
            "before is safe; run the same command again"
        )


def _are_files_gone(array: Location, record: Record) -> bool:
    names = {entry.name for entry in array.list(deep=True)}
    return any(file.path not in names for file in record.files)


def read_records(
    folder: Location, files: Mapping[str, Location]
) -> tuple[list[Record], dict[str, StoreCorruptError]]:
    """Return the live records, those that replaced others first, and what is wrong with the rest.

    Copies of records under other names count as absent.

    Parameters
    ----------
    folder
        Folder of the encoder.
    files
        The records' files by id, from `layout.record_files`; a later record is left out.

    Returns
    -------
    The live records, and by id the error of each record that cannot be read, or that is another
    encoder's, and that none replaces.
    """
    records, errors = {}, {}
    for record_id, file in files.items():
        try:
            record = layout.read_record(file)
        except StoreCorruptError as error:
            # Earlier releases, where there are no hard links, left a torn record and its intent.
            if not layout.intent_path(folder, record_id).exists():
                errors[record_id] = error
            continue
        if record.id != record_id:
            continue
        if layout.is_record_of(folder, record):
            records[record_id] = record
        else:
            encoder = record.context["encoder"]
            name, fingerprint = encoder.get("name"), str(encoder.get("fingerprint"))
            problem = f"holds rows of another encoder, {name}@{fingerprint[:12]}"
            errors[record_id] = StoreCorruptError(
                f"{file} {problem}; put it back where it was, or run `embedcache verify --repair`",
                problem=problem,
            )
    void = {replaced for record in records.values() for replaced in record.replaces}
    live = [record for record in records.values() if record.id not in void]
    live.sort(key=lambda record: (not record.replaces, record.id))
    return live, {key: error for key, error in errors.items() if key not in void}


def lost_keys(live: Iterable[Record]) -> frozenset[str]:
    """Return the SHA-256 of each image that live records count as lost and none of them settles."""
    records = list(live)
    settled = {key for record in records for key in (*record.keys, *record.failures)}
    return frozenset(key for record in records for key in record.lost) - settled
