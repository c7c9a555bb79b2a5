"""What the file system of a folder can do, tried out with files that are gone afterwards."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from embedcache.files.durable import TEMPORARY, fsync
from embedcache.files.locks import lock_holder, locked

_MOUNTS: Final = Path("/proc/mounts")


@dataclass(frozen=True, slots=True)
class FileSystem:
    """What was found out about the file system of a folder.

    Parameters
    ----------
    folder
        The folder that was tried.
    kind
        Type of the file system, such as 'ext4' or 'nfs4'; '' where the machine does not say.
    free_bytes
        Bytes that may still be written.
    refusals
        Reason why each thing does not work, by the thing's name; '' where it works.
    clock_ahead_s
        Seconds by which the file system's clock is ahead of this machine's; None where no file can
        be written.
    """

    folder: Path
    kind: str
    free_bytes: int
    refusals: Mapping[str, str]
    clock_ahead_s: float | None


def nearest_folder(path: Path) -> Path:
    """Return a folder, or the nearest one above it that is there."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def try_folder(folder: Path) -> FileSystem:
    """Find out what can be done in a folder that is there.

    Raises
    ------
    OSError
        Its file system does not answer.
    """
    free = shutil.disk_usage(folder).free
    try:
        scratch = tempfile.TemporaryDirectory(prefix=f"{TEMPORARY}doctor-", dir=folder)
    except OSError as error:
        refusals = {"write": error.strerror or str(error)}
        return FileSystem(folder, _kind(folder), free, refusals, None)
    with scratch as name:
        place = Path(name)
        refusals = {what: _refusal(attempt, place) for what, attempt in _ATTEMPTS.items()}
        ahead = None if refusals["write"] else _clock_ahead(place)
    return FileSystem(folder, _kind(folder), free, refusals, ahead)


def _refusal(attempt: Callable[[Path], None], place: Path) -> str:
    try:
        attempt(place)
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _write(place: Path) -> None:
    file = place / "written"
    file.write_bytes(b"x" * 65536)
    fsync(file)
    fsync(place)


def _link(place: Path) -> None:
    file = place / "linked"
    file.touch()
    os.link(file, place / "link")
    try:
        os.link(file, place / "link")
    except FileExistsError:
        return
    raise OSError("a second link took the place of the first")


def _lock(place: Path) -> None:
    with locked(place / "lock"):
        if not lock_holder(place / "lock"):
            raise OSError("two at a time held one lock")


def _rename(place: Path) -> None:
    new, old = place / "new", place / "old"
    new.write_bytes(b"new")
    old.write_bytes(b"old")
    new.replace(old)
    if old.read_bytes() != b"new":
        raise OSError("a file renamed over another did not take its place")


def _tell_case(place: Path) -> None:
    (place / "case").touch()
    if (place / "CASE").exists():
        raise OSError("names that differ in case only are one file")


_ATTEMPTS: Final[Mapping[str, Callable[[Path], None]]] = {
    "write": _write,
    "hard links": _link,
    "locks": _lock,
    "rename": _rename,
    "case": _tell_case,
}


def _clock_ahead(place: Path) -> float:
    before = time.time()
    (place / "time").touch()
    return (place / "time").stat().st_mtime - (before + time.time()) / 2


def _kind(folder: Path) -> str:
    """Return the type of the file system that a folder is on; '' where Linux does not say."""
    try:
        mounts = [line.split()[1:3] for line in _MOUNTS.read_text(encoding="utf-8").splitlines()]
    except OSError:
        return ""
    above = {str(place) for place in (folder.resolve(), *folder.resolve().parents)}
    # Linux writes a space in a path as \040.
    points = [(point.replace("\\040", " "), kind) for point, kind in mounts]
    kinds = [(len(point), kind) for point, kind in points if point in above]
    return max(kinds)[1] if kinds else ""
