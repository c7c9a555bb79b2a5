"""Deleting what nothing needs any more: replaced records, their segments, leftovers of writers."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

from embedcache.encoder_folders import COMMITS, SEGMENTS
from embedcache.errors import StoreCorruptError, StoreReadError
from embedcache.files.backend import Entry, Location
from embedcache.files.documents import find_table
from embedcache.files.durable import TEMPORARY
from embedcache.files.kinds import GRACE_S, Ages, size_of, sweep_temporaries
from embedcache.files.marks import is_left, withdraw
from embedcache.store import layout, segment
from embedcache.store.layout import Record


def sweep(folder: Location, *, grace_s: float = GRACE_S) -> int:
    """Delete what no reader can need any more, and nothing of a commit under way.

    Parameters
    ----------
    folder
        Folder of one encoder.
    grace_s
        Age in seconds that a file must have reached to be deleted, by the clock of the storage.

    Returns
    -------
    Number of bytes freed.
    """
    ages = Ages(folder)
    # Segments before records: one that is listed here and has no record there has none at all.
    segments = layout.segment_folders(folder)
    files = layout.record_files(folder)
    records = _readable_records(files)
    # Whatever subset of the void records a power cut brings back stays void: the live record that
    # replaced them names all of them, and nobody reads their segments. The next record that is put
    # makes their deletion last.
    void = _void_ids(folder, files, records, ages, grace_s)
    for record_id in [name for name in files if name in void]:
        files.pop(record_id).delete()
    freed = 0
    for segment_id, array in segments.items():
        is_old = segment_id not in files and ages.is_over(_changed_ns(array), grace_s)
        # One that has lost its record is damage, which is not ours to hide.
        if is_old and (segment_id in void or not _is_orphan(folder, segment_id, array)):
            freed += _sweep_segment(folder, array, segment_id, ages, grace_s)
        else:  # what was refused while the segment was written
            freed += sum(sweep_temporaries(place, grace_s) for place in _unclean_folders(array))
    _sweep_intents(folder, records, ages, grace_s)
    intents = {entry.name for entry in _intents(folder)}
    freed += sweep_temporaries(folder / COMMITS, grace_s, spared=intents)
    freed += sweep_temporaries(folder / SEGMENTS, grace_s)
    return freed + sweep_temporaries(folder, grace_s)


def _unclean_folders(array: Location) -> list[Location]:
    """Return the folders of a segment that hold a temporary, the segment's own among them."""
    parts = (entry.name.rpartition("/") for entry in array.list(deep=True, hidden=True))
    below = dict.fromkeys(folder for folder, _, name in parts if name.startswith(TEMPORARY))
    return [array / folder if folder else array for folder in below]


def _readable_records(files: Mapping[str, Location]) -> dict[str, Record]:
    records = {}
    for record_id, file in files.items():
        with contextlib.suppress(StoreCorruptError, StoreReadError):
            records[record_id] = layout.read_record(file)
    return records


def _void_ids(
    folder: Location,
    files: Mapping[str, Location],
    records: Mapping[str, Record],
    ages: Ages,
    grace_s: float,
) -> set[str]:
    """Return the ids that were replaced at least `grace_s` ago, but for what is not ours.

    Copies of records were put here by somebody; records of other encoders came by mistake, and
    there may be no others of them.
    """
    changed_ns = {entry.name: entry.modified_ns for entry in (folder / COMMITS).list()}
    void = {
        replaced
        for record_id, record in records.items()
        if record.replaces
        and ages.is_over(changed_ns.get(files[record_id].name, ages.now_ns), grace_s)
        for replaced in record.replaces
    }
    strange = {
        record_id
        for record_id, record in records.items()
        if record.id != record_id or not layout.is_record_of(folder, record)
    }
    return void - strange


def _is_orphan(folder: Location, segment_id: str, array: Location) -> bool:
    return not layout.intent_path(folder, segment_id).exists() and segment.is_complete(array)


def _sweep_segment(
    folder: Location, array: Location, segment_id: str, ages: Ages, grace_s: float
) -> int:
    """Delete a segment without a record, unless it is still being written."""
    intent = layout.intent_path(folder, segment_id)
    if not is_left(intent, ages, grace_s):
        return 0
    # Also where it is gone, for another sweep may have removed that of a living writer.
    withdraw(intent)
    # The writer may have put the record meanwhile. If it does so after this it finds that it was
    # withdrawn, and takes the record back.
    if find_table(folder / COMMITS, segment_id) is not None:
        return 0
    size = size_of(array)
    array.delete()
    intent.delete()  # last: whole rows without record and mark have lost their record
    return size


def _intents(folder: Location) -> list[Entry]:
    entries = (folder / COMMITS).list(hidden=True)
    return [entry for entry in entries if layout.intended_id(entry.name) is not None]


def _sweep_intents(
    folder: Location, records: Mapping[str, Record], ages: Ages, grace_s: float
) -> None:
    """Delete the marks of commits that have ended, well or not."""
    for entry in _intents(folder):
        record_id = str(layout.intended_id(entry.name))
        # Beside a record that cannot be read the mark tells that it was never acknowledged.
        is_ended = record_id in records or not layout.segment_folder(folder, record_id).list()
        intent = layout.intent_path(folder, record_id)
        if is_ended and is_left(intent, ages, grace_s):
            intent.delete()


def _changed_ns(array: Location) -> int:
    """Return when a segment was last written to, in nanoseconds since 1970."""
    newest = max((e.modified_ns for e in array.list(deep=True, hidden=True)), default=0)
    if not newest:  # folders alone, where a write was killed at once
        siblings = array.parent.list()
        newest = max((e.modified_ns for e in siblings if e.name == f"{array.name}/"), default=0)
    return newest
