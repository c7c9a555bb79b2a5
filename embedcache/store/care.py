"""Finding damage in a store, mending what can be mended, and sweeping what nothing needs."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from embedcache.errors import StoreCorruptError
from embedcache.files.durable import TEMPORARY, fsync, read_document, replace, seal_document
from embedcache.store import layout, segment
from embedcache.store.embedding_store import commit, read_records
from embedcache.store.layout import Record

# Longer than any reader holds on to the records it listed.
GRACE_S: Final = 600.0


@dataclass(frozen=True, slots=True)
class Damage:
    """One thing that is wrong.

    Parameters
    ----------
    path
        The file.
    problem
        What is wrong with it.
    keys
        SHA-256 of the images whose rows are lost with it.
    """

    path: Path
    problem: str
    keys: tuple[str, ...] = ()


def check_store(folder: Path) -> Iterator[Damage]:
    """Hold everything in one encoder's folder against its checksums.

    Yields
    ------
    What is wrong: encoder.json, records, segments' files with the rows that are lost, records that
    others name but that are gone, and complete segments without a record.
    """
    try:
        read_document(folder / layout.DOCUMENT)
    except StoreCorruptError as error:
        yield Damage(folder / layout.DOCUMENT, _after_path(error))
    live, unreadable = read_records(folder)
    files = layout.record_files(folder)
    for record_id, message in unreadable.items():
        yield Damage(files[record_id], message.split("; ")[0].removeprefix(f"{files[record_id]} "))
    for record in live:
        yield from _check_segment(folder, record)
        yield from _check_parents(folder, record, live, set(files))
    yield from _check_orphans(folder, live, set(files))


def _after_path(error: StoreCorruptError) -> str:
    return "is missing" if "is missing" in str(error) else "does not match its checksum"


def _check_segment(folder: Path, record: Record) -> Iterator[Damage]:
    wrong = [(file, segment.check_file(folder, record, file)) for file in record.files]
    broken = [(file, problem) for file, problem in wrong if problem]
    if not broken:
        return
    kept, _ = segment.salvage(folder, record)
    lost = np.setdiff1d(np.arange(len(record.keys)), kept)
    for file, problem in broken:
        in_file = [
            record.keys[row] for row in lost if file.path == f"c/{row // record.chunk_rows}/0"
        ]
        yield Damage(
            layout.segment_path(folder, record.id) / file.path, str(problem), tuple(in_file)
        )


def _check_parents(
    folder: Path, record: Record, live: list[Record], present: set[str]
) -> Iterator[Damage]:
    void = {gone for other in live for gone in other.replaces}
    for parent in record.parents:
        if parent not in present | void:
            path = folder / "commit" / f"{parent}.*.parquet"
            yield Damage(path, "is missing, but a later record names it")


def _check_orphans(folder: Path, live: list[Record], present: set[str]) -> Iterator[Damage]:
    void = {gone for record in live for gone in record.replaces}
    for path in sorted((folder / "seg").glob("*.zarr")):
        interrupted = layout.intent_path(folder, path.stem).exists()
        if path.stem not in present | void and not interrupted and _is_complete(path):
            yield Damage(path, "holds rows that no record names: the record is missing")


def _is_complete(path: Path) -> bool:
    """Tell a segment that lost its record from half a segment whose write a power cut ended."""
    import zarr

    try:
        array = zarr.open_array(path, mode="r")
        return bool(array.nchunks_initialized == array.nchunks)
    except (OSError, ValueError, KeyError):
        return False


def count_rows(folder: Path) -> int:
    """Return how many images the readable records hold."""
    return len(known_keys(folder))


def known_keys(folder: Path) -> set[str]:
    """Return the digests of the images that the readable records hold, damaged rows included."""
    live, _ = read_records(folder)
    return {key for record in live for key in record.keys}


def named_in_context(folder: Path, name: str) -> set[str]:
    """Return the values that live records keep under a name in their context."""
    live, _ = read_records(folder)
    return {str(record.context[name]) for record in live if name in record.context}


def mend_store(folder: Path) -> int:
    """Make one encoder's folder whole again, without the rows that are lost.

    Damaged segments and unreadable records are replaced by a record of the rows that still match
    their own checksum. The lost images are then missing, and the next extraction encodes them.

    Returns
    -------
    Number of rows that were saved from damaged segments.

    Raises
    ------
    StoreCorruptError
        Neither `encoder.json` nor any record says which encoder this was.
    """
    live, unreadable = read_records(folder)
    present = set(layout.record_files(folder))
    document = _mend_document(folder, live)
    damaged = [record for record in live if any(_check_segment(folder, record))]
    keys: list[str] = []
    rows = [np.empty((0, int(document["identity"]["dim"])), np.float32)]
    for record in damaged:
        kept, values = segment.salvage(folder, record)
        keys += [record.keys[row] for row in kept]
        rows.append(values)
    void = [gone for record in damaged for gone in (record.id, *record.replaces)]
    absent = [p for r in live for p in r.parents if any(_check_parents(folder, r, live, present))]
    if void or unreadable or absent:
        commit(
            folder,
            document,
            keys,
            _blocks(np.concatenate(rows)),
            failures={key: why for record in damaged for key, why in record.failures.items()},
            context={},
            replaces=[*void, *unreadable, *absent],
            parents=[record.id for record in live if record not in damaged],
        )
    live, _ = read_records(folder)
    for orphan in list(_check_orphans(folder, live, set(layout.record_files(folder)))):
        shutil.rmtree(orphan.path)
    return len(keys)


def _blocks(rows: segment.Rows) -> Iterator[segment.Rows]:
    step = segment.chunk_rows_for(len(rows))
    return (rows[i : i + step] for i in range(0, len(rows), step))


def _mend_document(folder: Path, live: list[Record]) -> dict[str, Any]:
    path = folder / layout.DOCUMENT
    try:
        return read_document(path)
    except StoreCorruptError:
        if not live:
            raise StoreCorruptError(
                f"{path} is lost and no record repeats it; delete the folder {folder} and extract "
                "again"
            ) from None
        document = dict(live[0].context["encoder"])
        replace(path, seal_document(document))
        return document


def sweep(folder: Path, *, grace_s: float = GRACE_S) -> int:
    """Delete what no reader can need any more: replaced records, their segments, leftovers.

    Parameters
    ----------
    folder
        One encoder's folder.
    grace_s
        Nothing younger is touched, in seconds.

    Returns
    -------
    Bytes freed.
    """
    files = layout.record_files(folder)
    for record_id in _void_for(files, grace_s):
        files.pop(record_id).unlink(missing_ok=True)
    if (folder / "commit").is_dir():
        fsync(folder / "commit")
    freed = 0
    for path in (folder / "seg").glob("*.zarr"):
        if path.stem not in files and _is_old(path, grace_s):
            with contextlib.suppress(FileNotFoundError):  # of another sweep's making
                freed += sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
                shutil.rmtree(path)
    for leftover in (folder / "commit").glob(f"{TEMPORARY}*"):
        segment_is_gone = not (folder / "seg" / f"{leftover.name[len(TEMPORARY) :]}.zarr").exists()
        if segment_is_gone and _is_old(leftover, grace_s):
            leftover.unlink(missing_ok=True)
    return freed


def _void_for(files: dict[str, Path], grace_s: float) -> list[str]:
    """Return the ids of records that were replaced at least `grace_s` ago, oldest first."""
    void = set()
    for path in files.values():
        with contextlib.suppress(StoreCorruptError):
            if _is_old(path, grace_s):
                void |= set(layout.read_record(path).replaces)
    return [record_id for record_id in files if record_id in void]


def _is_old(path: Path, grace_s: float) -> bool:
    try:
        return time.time() - path.stat().st_mtime > grace_s
    except FileNotFoundError:
        return False  # published or swept by another process since it was listed
