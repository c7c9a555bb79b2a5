"""Finding damage in a store, and mending what can be mended."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np

from embedcache.encoder_folders import (
    COMMITS,
    ENCODER_DOCUMENT,
    is_document_of,
    read_encoder_document,
)
from embedcache.errors import StoreCorruptError, StoreReadError
from embedcache.files.arrays import Codes, Rows
from embedcache.files.backend import Location
from embedcache.files.documents import seal
from embedcache.files.kinds import Damage, Mended
from embedcache.files.marks import withdraw
from embedcache.store import layout, segment
from embedcache.store.commits import lost_keys, publish_segment, read_records
from embedcache.store.layout import Record

# How often a folder is looked at that changes while it is looked at.
_MOST_LOOKS: Final = 5


def check_store(folder: Location) -> list[Damage]:
    """Compare everything in one encoder's folder with its checksums.

    Returns
    -------
    Damage of encoder.json, of records, of segments' files with the rows that are lost; records that
    others name but that are gone; complete segments without a record; rows that were lost earlier.
    """
    for _ in range(_MOST_LOOKS):
        files = layout.record_files(folder)
        damages = list(_check(folder, files))
        # What was replaced and swept while it was looked at is no damage.
        if not damages or layout.record_files(folder) == files:
            break
    return damages


def _check(folder: Location, files: Mapping[str, Location]) -> Iterator[Damage]:
    try:
        read_encoder_document(folder)
    except StoreCorruptError as error:
        yield Damage(folder / ENCODER_DOCUMENT, error.problem)
    live, errors = read_records(folder, files)
    for record_id, record_error in errors.items():
        yield Damage(files[record_id], record_error.problem)
    for record in live:
        yield from _check_segment(folder, record)
        for parent in _absent_parents(record, live, files):
            path = folder / COMMITS / parent
            yield Damage(path, "is missing, but a later record names it")
    for orphan in _check_orphans(folder, live, files):
        yield Damage(orphan, "holds rows that no record names: the record is missing")
    lost = sorted(lost_keys(live))
    if lost:
        yield Damage(
            folder, f"has lost {len(lost)} rows that are not encoded again yet", tuple(lost)
        )


def _check_segment(folder: Location, record: Record) -> Iterator[Damage]:
    problems = [(file.path, segment.check_file(folder, record, file)) for file in record.files]
    if not any(problem for _, problem in problems):
        return
    lost = np.setdiff1d(np.arange(len(record.keys)), segment.intact_rows(folder, record))
    for path, problem in problems:
        if problem:
            in_file = [record.keys[n] for n in lost if path == f"c/{n // record.chunk_rows}/0"]
            yield Damage(layout.segment_folder(folder, record.id) / path, problem, tuple(in_file))


def _absent_parents(record: Record, live: list[Record], files: Mapping[str, Location]) -> list[str]:
    void = {replaced for other in live for replaced in other.replaces}
    return [parent for parent in record.parents if parent not in files.keys() | void]


def _check_orphans(
    folder: Location, live: list[Record], files: Mapping[str, Location]
) -> list[Location]:
    """Return the segments that have lost their record, which a killed write's have not."""
    void = {replaced for record in live for replaced in record.replaces}
    orphans = {
        segment_id: array
        for segment_id, array in layout.segment_folders(folder).items()
        if segment_id not in files.keys() | void
        and not layout.intent_path(folder, segment_id).exists()
        and segment.is_complete(array)
    }
    # A commit that ended since the records were listed has its record now: an intent goes after
    # the record is there, so what has neither, in this order, has lost it.
    published = layout.record_files(folder) if orphans else {}
    return [array for segment_id, array in orphans.items() if segment_id not in published]


def live_records(folder: Location) -> list[Record]:
    """Return the live records of one encoder's folder, without those that cannot be read."""
    return read_records(folder, layout.record_files(folder))[0]


def copied_records(folder: Location) -> Iterator[Location]:
    """Yield the files that are copies of commit records under other names: they are not read."""
    for record_id, file in layout.record_files(folder).items():
        with contextlib.suppress(StoreCorruptError, StoreReadError):
            if layout.read_record(file).id != record_id:
                yield file


def recorded_keys(folder: Location) -> frozenset[str]:
    """Return the SHA-256 of each image that a readable record names, damaged rows included."""
    return frozenset(key for record in live_records(folder) for key in record.keys)


def mend_store(folder: Location, image_keys: Callable[[], Iterable[str]] = tuple) -> Mended:
    """Make one encoder's folder whole again, without the rows that are lost.

    Damaged segments and unreadable records are replaced by a record of the rows that still match
    their own checksum. It names the lost images, so that they are remembered until they are there.

    Parameters
    ----------
    folder
        Folder of the encoder.
    image_keys
        Function that returns the SHA-256 of each image that may have had a row; called where a
        lost record leaves no other list.

    Raises
    ------
    StoreCorruptError
        Neither `encoder.json` nor any record says which encoder this was.
    """
    document = _mend_document(folder)
    files = layout.record_files(folder)
    live, errors = read_records(folder, files)
    damaged = [record for record in live if any(_check_segment(folder, record))]
    intact = [(record, segment.intact_rows(folder, record)) for record in damaged]
    keys = [record.keys[row] for record, rows in intact for row in rows]
    # What is gone or unreadable is named as replaced, so that nothing asks for it again.
    void = [name for record in damaged for name in (record.id, *record.replaces)]
    absent = [name for record in live for name in _absent_parents(record, live, files)]
    orphans = [array.name.removesuffix(".zarr") for array in _check_orphans(folder, live, files)]
    sound = [record for record in live if record not in damaged]
    lost = {*lost_keys(live), *(key for record in damaged for key in record.keys)}
    if errors or absent or orphans:  # nobody knows which rows they named, so any image may be
        lost |= set(image_keys())
    lost -= {*keys, *(key for record in sound for key in record.keys)}
    lost -= {key for record in live for key in record.failures}
    if void or errors or absent or orphans:
        publish_segment(
            folder,
            document,
            keys,
            _blocks(folder, intact),
            failures={key: why for record in damaged for key, why in record.failures.items()},
            context={},
            replaces=[*void, *errors, *absent],
            parents=[record.id for record in sound],
            lost=sorted(lost),
        )
    for segment_id in orphans:  # which are leftovers from now on
        withdraw(layout.intent_path(folder, segment_id))
    return Mended(f"{folder.name}: {len(keys)} rows of damaged segments saved", frozenset(lost))


def _blocks(folder: Location, kept_rows: Sequence[tuple[Record, Codes]]) -> Iterator[Rows]:
    """Yield the rows of damaged segments that are whole, in blocks as a segment takes them."""
    step = segment.chunk_rows_for(sum(len(rows) for _, rows in kept_rows))
    waiting: list[Rows] = []
    for record, rows in kept_rows:
        for first in range(0, len(rows), step):
            waiting.append(segment.salvaged_rows(folder, record, rows[first : first + step]))
            if sum(map(len, waiting)) >= step:
                block = np.concatenate(waiting)
                yield block[:step]
                waiting = [block[step:]]
    if any(map(len, waiting)):
        yield np.concatenate(waiting)


def _mend_document(folder: Location) -> dict[str, Any]:
    """Return the encoder's document, written again where it is lost: every record repeats it."""
    file = folder / ENCODER_DOCUMENT
    try:
        return read_encoder_document(folder)
    except StoreCorruptError as error:
        for record in read_records(folder, layout.record_files(folder))[0]:
            document = record.context.get("encoder", {})
            if is_document_of(folder, document):
                file.replace(seal(document))
                return dict(document)
        raise StoreCorruptError(
            f"{file} {error.problem} and no record repeats it; put it back, or move the folder "
            f"{folder} away and extract again",
            problem=error.problem,
        ) from None
