"""Probes of `doctor` that look at a manifest, a store and the disk below it."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from embedcache.data.manifest import read_manifest
from embedcache.errors import EmbedcacheError
from embedcache.files.durable import TEMPORARY
from embedcache.files.filesystem import nearest_folder, try_folder
from embedcache.files.kinds import ArtefactKind
from embedcache.files.locks import lock_holder
from embedcache.verbs.artefacts import artefact_kinds
from embedcache.verbs.observations import Observation, Place, Status
from embedcache.verbs.session import Session

_LOCK: Final = re.compile(r"(.*/)?(LOCK|\.lock-[^/]*|\.active-[^/]*)")
_NETWORK_KINDS: Final = re.compile(r"nfs|cifs|smb|fuse|9p|lustre|beegfs|gpfs|ceph")
_SCARCE_BYTES: Final = 500e6  # below it nothing works
_SHORT_BYTES: Final = 5e9
_CLOCK_S: Final = 2.0
# What happens where the file system cannot do a thing, and what to do.
_WITHOUT: Final[dict[str, tuple[Status, str]]] = {
    "write": ("problem", "choose another --store, or a folder that you may write to"),
    "hard links": ("warning", "nothing to do: files are created exclusively in their place"),
    "locks": ("warning", "run one command at a time, or put the store on a local disk"),
    "rename": ("problem", "put the store on another file system"),
    "case": ("warning", "let no names of the store differ in case only"),
}


def manifest(place: Place) -> Iterator[Observation]:
    """Look at the manifest, not at its images."""
    file = place.workspace.manifest
    if not file.exists():
        remedy = "write one with `embedcache manifest folder --root DIR`, or pass --manifest FILE"
        yield Observation("manifest", "manifest", "ok", f"none at {file}", remedy)
        return
    remedy = "mend the file; `embedcache manifest check` looks at its images too"
    if not file.is_file():  # a pipe would be waited for
        yield Observation("manifest", "manifest", "problem", f"{file}: no regular file", remedy)
        return
    try:
        n_images = len(read_manifest(file))
    except EmbedcacheError as error:
        yield Observation("manifest", "manifest", "problem", str(error), remedy)
    else:
        yield Observation("manifest", "manifest", "ok", f"{n_images} images", is_public=True)


def store(place: Place) -> Iterator[Observation]:
    """Look what the store holds, kind by kind; checksums are for `verify`."""
    workspace = place.workspace
    if not _is_there(place):
        yield Observation("store", "store", "ok", f"none yet at {workspace.store}")
        return
    if not workspace.local.is_dir():
        remedy = "name the folder of a store as --store"
        yield Observation("store", "store", "problem", f"{workspace.store}: no folder", remedy)
        return
    workspace.check_store()
    if not workspace.has_store():
        yield Observation("store", "store", "ok", "empty", is_public=True)
        return
    mend = "run `embedcache verify`, then `embedcache verify --repair`"
    try:
        message = f"version {workspace.check_format()}, which this release reads"
        yield Observation("store", "format", "ok", message, is_public=True)
    except EmbedcacheError as error:
        yield Observation("store", "format", "problem", str(error), mend)
    for kind in artefact_kinds(Session(workspace)):
        try:
            yield _held(kind)
        except (EmbedcacheError, OSError) as error:
            yield Observation("store", kind.name, "problem", str(error), mend)
    names = [entry.name for entry in workspace.store.list(deep=True, hidden=True)]
    n_left = sum(f"/{TEMPORARY}" in f"/{name}" for name in names)
    if n_left:
        remedy = "`embedcache gc` removes them once they are old enough"
        message = f"{n_left} files of killed or running commands"
        yield Observation("store", "leftovers", "warning", message, remedy, is_public=True)


def _held(kind: ArtefactKind) -> Observation:
    message = f"{len(kind.items())}, {kind.size() / 1e6:.1f} MB"
    return Observation("store", kind.name, "ok", message, is_public=True)


def _is_there(place: Place) -> bool:
    folder = place.workspace.store.local_path
    return folder is not None and folder.exists()


def disk(place: Place) -> Iterator[Observation]:
    """Try out the file system of the store, or of the folder where it would be."""
    facts = try_folder(nearest_folder(place.workspace.local))
    kind = facts.kind or "type not known"
    is_remote = bool(_NETWORK_KINDS.match(facts.kind))
    remedy = "one machine at a time writes; a local disk is faster" if is_remote else ""
    status: Status = "warning" if is_remote else "ok"
    yield Observation("disk", "file system", status, kind, remedy, is_public=True)
    free = f"{facts.free_bytes / 1e9:.1f} GB"
    if facts.free_bytes < _SHORT_BYTES:
        status = "problem" if facts.free_bytes < _SCARCE_BYTES else "warning"
        remedy = "free some space; `embedcache gc` drops what no manifest wants"
        yield Observation("disk", "free", status, free, remedy, is_public=True)
    else:
        yield Observation("disk", "free", "ok", free, is_public=True)
    for ability, refusal in facts.refusals.items():
        if not refusal:
            yield Observation("disk", ability, "ok", "works", is_public=True)
            continue
        status, remedy = _WITHOUT[ability]
        if ability == "write" and _is_there(place):
            status, remedy = "warning", "reading works; to write, run it as the store's owner"
        yield Observation("disk", ability, status, refusal, remedy, is_public=True)
    if facts.clock_ahead_s is not None:
        yield _clock(facts.clock_ahead_s)


def _clock(ahead_s: float) -> Observation:
    message = f"the store's clock is {ahead_s:+.1f} s from this machine's"
    if abs(ahead_s) < _CLOCK_S:
        return Observation("disk", "clock", "ok", message, is_public=True)
    remedy = "set both clocks by NTP; ages of leftovers and the order of runs go by them"
    return Observation("disk", "clock", "warning", message, remedy, is_public=True)


def locks(place: Place) -> Iterator[Observation]:
    """Look which locks are held, and by whom."""
    n_files = n_held = 0
    for entry in place.workspace.store.list(deep=True, hidden=True):
        file = (place.workspace.store / entry.name).local_path
        if file is None or not _LOCK.fullmatch(entry.name):
            continue
        n_files += 1
        try:
            holder = lock_holder(file)
        except OSError as error:
            holder = f"nobody knows whom ({error.strerror})"
        if holder:
            n_held += 1
            remedy = "wait for it, or end it with `kill` (what it has finished is kept)"
            yield Observation("locks", file.parent.name, "ok", f"held by {holder}", remedy)
    yield Observation("locks", "locks", "ok", f"{n_held} of {n_files} held", is_public=True)


def permissions(place: Place) -> Iterator[Observation]:
    """Look who else can read what names patients."""
    for subject, path in (("store", place.workspace.local), ("manifest", place.workspace.manifest)):
        if path.exists():
            yield _readers(subject, path)


def _readers(subject: str, path: Path) -> Observation:
    facts = path.stat()
    mode = stat.S_IMODE(facts.st_mode)
    if mode & stat.S_IRWXO:
        message = f"mode {mode:04o}: every user of this machine can look at it"
        remedy = f"run `chmod o= {path}`"
        return Observation("permissions", subject, "warning", message, remedy)
    if hasattr(os, "getuid") and facts.st_uid != os.getuid():
        return Observation("permissions", subject, "ok", f"mode {mode:04o}, of another owner")
    return Observation("permissions", subject, "ok", f"mode {mode:04o}", is_public=True)
