"""Finding damage in a store, mending what can be mended, and sweeping what nothing needs."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np

from embedcache.errors import StoreCorruptError
from embedcache.files.arrays import Rows
from embedcache.files.backend import Location
from embedcache.files.documents import read_document, seal
from embedcache.files.durable import TEMPORARY
from embedcache.files.kinds import Damage, Mended, age_s, size_of, sweep_temporaries
from embedcache.store import layout, segment
from embedcache.store.commits import publish_segment, read_records
from embedcache.store.layout import Record
from embedcache.workspace import COMMITS, ENCODER_DOCUMENT, SEGMENTS

# Longer than any reader holds on to the records it listed.
GRACE_S: Final = 600.0


def check_store(folder: Location) -> Iterator[Damage]:
    """Compare everything in one encoder's folder with its checksums.

    Yields
    ------
    Damage of encoder.json, of records, of segments' files with the rows that are lost; records that
    others name but that are gone; complete segments without a record.
    """
    try:
        read_document(folder / ENCODER_DOCUMENT)
    except StoreCorruptError as error:
        yield Damage(folder / ENCODER_DOCUMENT, error.problem)
    files = layout.record_files(folder)
    live, errors = read_records(folder, files)
    for record_id, record_error in errors.items():
        yield Damage(files[record_id], record_error.problem)
    for record in live:
        yield from _check_segment(folder, record)
        for parent in _absent_parents(record, live, files):
            path = folder / COMMITS / parent
            yield Damage(path, "is missing, but a later record names it")
    for orphan in _segments_without_record(folder, live, files):
        yield Damage(orphan, "holds rows that no record names: the record is missing")


def _check_segment(folder: Location, record: Record) -> Iterator[Damage]:
    problems = [(file.path, segment.check_file(folder, record, file)) for file in record.files]
    if not any(problem for _, problem in problems):
        return
    intact, _ = segment.salvage(folder, record)
    lost = np.setdiff1d(np.arange(len(record.keys)), intact)
    for path, problem in problems:
        if problem:
            in_file = [record.keys[n] for n in lost if path == f"c/{n // record.chunk_rows}/0"]
            yield Damage(layout.segment_folder(folder, record.id) / path, problem, tuple(in_file))


def _absent_parents(record: Record, live: list[Record], files: Mapping[str, Location]) -> list[str]:
    void = {replaced for other in live for replaced in other.replaces}
    return [parent for parent in record.parents if parent not in files.keys() | void]


def _segments_without_record(
    folder: Location, live: list[Record], files: Mapping[str, Location]
) -> list[Location]:
    """Return the segments that have lost their record, which a killed write's have not."""
    void = {replaced for record in live for replaced in record.replaces}
    lost = {
        segment_id: array
        for segment_id, array in layout.segment_folders(folder).items()
        if segment_id not in files.keys() | void
        and not layout.intent_path(folder, segment_id).exists()
        and segment.is_complete(array)
    }
    # A commit that ended since the records were listed has its record now: an intent goes after
    # the record is there, so what has neither, in this order, has lost it.
    published = layout.record_files(folder) if lost else {}
    return [array for segment_id, array in lost.items() if segment_id not in published]


def live_records(folder: Location) -> list[Record]:
    """Return the live records of one encoder's folder, without those that cannot be read."""
    return read_records(folder, layout.record_files(folder))[0]


def recorded_keys(folder: Location) -> frozenset[str]:
    """Return the SHA-256 of each image that a readable record names, damaged rows included."""
    return frozenset(key for record in live_records(folder) for key in record.keys)


def mend_store(folder: Location) -> Mended:
    """Make one encoder's folder whole again, without the rows that are lost.

    Damaged segments and unreadable records are replaced by a record of the rows that still match
    their own checksum. The lost images are then missing, and the next extraction encodes them.

    Raises
    ------
    StoreCorruptError
        Neither `encoder.json` nor any record says which encoder this was.
    """
    files = layout.record_files(folder)
    live, errors = read_records(folder, files)
    before = frozenset(key for record in live for key in record.keys)
    document = _mend_document(folder, live)
    damaged = [record for record in live if any(_check_segment(folder, record))]
    keys: list[str] = []
    identity = document["identity"]
    rows = [np.empty((0, int(identity["dim"])), identity.get("dtype", "float32"))]
    for record in damaged:
        intact, values = segment.salvage(folder, record)
        keys += [record.keys[row] for row in intact]
        rows.append(values)
    # What is gone or unreadable is named as replaced, so that nothing asks for it again.
    void = [name for record in damaged for name in (record.id, *record.replaces)]
    absent = [name for record in live for name in _absent_parents(record, live, files)]
    if void or errors or absent:
        publish_segment(
            folder,
            document,
            keys,
            _blocks(np.concatenate(rows)),
            failures={key: why for record in damaged for key, why in record.failures.items()},
            context={},
            replaces=[*void, *errors, *absent],
            parents=[record.id for record in live if record not in damaged],
        )
    orphans = _segments_without_record(folder, live_records(folder), layout.record_files(folder))
    for orphan in orphans:
        orphan.delete()
    # Nobody knows which rows a lost record named: all images have to be looked at again.
    is_record_lost = bool(errors or absent or orphans)
    return Mended(
        f"{folder.name}: {len(keys)} rows of damaged segments saved",
        None if is_record_lost else before - recorded_keys(folder),
    )


def _blocks(rows: Rows) -> Iterator[Rows]:
    step = segment.chunk_rows_for(len(rows))
    return (rows[i : i + step] for i in range(0, len(rows), step))


def _mend_document(folder: Location, live: list[Record]) -> dict[str, Any]:
    file = folder / ENCODER_DOCUMENT
    try:
        return read_document(file)
    except StoreCorruptError:
        if not live:
            raise StoreCorruptError(
                f"{file} is lost and no record repeats it; delete the folder {folder} and extract "
                "again"
            ) from None
        # Every record repeats the document, for this case.
        document = dict(live[0].context["encoder"])
        file.replace(seal(document))
        return document


def sweep(folder: Location, *, grace_s: float = GRACE_S) -> int:
    """Delete what no reader can need any more: replaced records, their segments, leftovers.

    Parameters
    ----------
    folder
        Folder of one encoder.
    grace_s
        Age in seconds that a file must have reached to be deleted.

    Returns
    -------
    Number of bytes freed.
    """
    files = layout.record_files(folder)
    # Whatever subset of the void records a power cut brings back stays void: the live record that
    # replaced them names all of them, and nobody reads their segments. The next record that is put
    # makes their deletion last.
    for record_id in _void_records(folder, files, grace_s):
        files.pop(record_id).delete()
    freed = 0
    for segment_id, array in layout.segment_folders(folder).items():
        if segment_id not in files and _unchanged_s(array) > grace_s:
            freed += size_of(array)
            array.delete()
    marks = folder / COMMITS
    for entry in marks.list(hidden=True):
        is_mark = entry.name.startswith(TEMPORARY) and age_s(entry) > grace_s
        array = layout.segment_folder(folder, entry.name.removeprefix(TEMPORARY))
        if is_mark and not array.list():
            (marks / entry.name).delete()
    freed += sweep_temporaries(folder / SEGMENTS, grace_s)
    return freed + sweep_temporaries(folder, grace_s)


def _void_records(folder: Location, files: Mapping[str, Location], grace_s: float) -> list[str]:
    """Return the ids of records that were replaced at least `grace_s` ago, oldest first."""
    entries = (folder / COMMITS).list()
    old = {entry.name for entry in entries if age_s(entry) > grace_s}
    void: set[str] = set()
    for file in files.values():
        if file.name in old:
            with contextlib.suppress(StoreCorruptError):
                void |= set(layout.read_record(file).replaces)
    return [record_id for record_id in files if record_id in void]


def _unchanged_s(array: Location) -> float:
    """Return how long ago a segment was last written to, in seconds."""
    newest = max((e.modified_ns for e in array.list(deep=True, hidden=True)), default=0)
    if not newest:  # folders alone, where a write was killed at once
        siblings = array.parent.list()
        newest = max((e.modified_ns for e in siblings if e.name == f"{array.name}/"), default=0)
    return time.time() - newest / 1e9
