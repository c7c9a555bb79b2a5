"""Files of this machine that are whole or absent: flushed to the disk, then given their name.

A file that is part of the truth (`publish`) is written once under a temporary name, flushed, and
linked to its final name, which fails if that exists. Any other file (`replace`) is renamed over
the old one.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Final

import google_crc32c

from embedcache.errors import StoreReadError, StoreWriteError
from embedcache.files.regular import kind_of

TEMPORARY: Final = ".tmp-"
_NO_HARD_LINKS: Final = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}


def crc32c(data: Any) -> int:
    """Return the CRC-32C (Castagnoli) of bytes or of a contiguous uint8 array."""
    return int(google_crc32c.value(data))


def canonical_json(value: Any) -> bytes:
    """Return the one JSON text that equal values share, as UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def new_id() -> str:
    """Return an identifier that sorts by time and is never given twice."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}-{secrets.token_hex(6)}"


def utc_now() -> str:
    """Return the time in UTC, ISO 8601, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def fsync(path: Path) -> None:
    """Flush one file or directory to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(root: Path) -> None:
    """Flush every file below `root`, then the directories, deepest first, then `root`'s parent."""
    for folder, _, names in os.walk(root, topdown=False):
        for name in names:
            fsync(Path(folder, name))
        fsync(Path(folder))
    fsync(root.parent)


def make_folder(folder: Path) -> None:
    """Make a folder, and the folders above it, so that they survive a power cut.

    Flushing a file leaves the entries of the folders above it unflushed.
    """
    missing = []
    while not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for path in reversed(missing):
        try:
            path.mkdir(exist_ok=True)
        except FileExistsError:  # a file; a caller would take this for its own name being taken
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from None
        fsync(path.parent)


def _write_temporary(folder: Path, write: Callable[[BinaryIO], object]) -> Path:
    temporary = folder / f"{TEMPORARY}{secrets.token_hex(8)}"
    try:
        with temporary.open("xb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
    except BaseException:  # an interruption too
        temporary.unlink(missing_ok=True)
        raise
    return temporary


@contextlib.contextmanager
def _unlinked_on_error(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError:
        path.unlink(missing_ok=True)
        raise


def publish(path: Path, data: bytes) -> None:
    """Create `path` with `data`, durably, so that a reader sees all of it or nothing.

    Raises
    ------
    FileExistsError
        Somebody published that name before; their file is untouched.
    StoreWriteError
        The file system refused; nothing was published.
    """
    temporary = None
    try:
        make_folder(path.parent)
        temporary = _write_temporary(path.parent, lambda stream: stream.write(data))
        try:
            os.link(temporary, path)
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            # Without hard links (FAT, some network mounts): an exclusive create. A torn file then
            # fails its checksum, which readers treat as damage, never as data.
            with path.open("xb") as stream, _unlinked_on_error(path):
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
        with _unlinked_on_error(path):
            fsync(path.parent)
    except FileExistsError:
        raise
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def replace(path: Path, data: bytes) -> None:
    """Put `data` at `path` in one step; the last writer wins, a power cut may bring the old back.

    A file that was there keeps its permissions.
    """
    replace_by(path, lambda stream: stream.write(data))


def replace_by(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Put what `write` puts into a stream at `path` in one step; see `replace`.

    Raises
    ------
    StoreWriteError
        The file system refused; what was at `path` is there still.
    """
    _check_kind(path)
    try:
        make_folder(path.parent)
        temporary = _write_temporary(path.parent, write)
        with _unlinked_on_error(temporary):
            if path.exists():
                shutil.copymode(path, temporary)
            temporary.replace(path)
    except OSError as error:
        raise write_error(path, error) from error


def remove_folder(folder: Path) -> None:
    """Remove a folder, first from sight, so that a kill leaves no half of it in its place."""
    aside = folder.with_name(f"{TEMPORARY}{folder.name.removeprefix(TEMPORARY)}")
    if aside != folder:
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def _check_kind(path: Path) -> None:
    if kind := kind_of(path):
        raise StoreWriteError(f"{path}: {kind}, which no file can replace; name another path")


def write_error(path: Path, error: OSError) -> StoreWriteError:
    """Return the one-line error for a refused write."""
    way_out = (
        "free some space and run the same command again"
        if error.errno in {errno.ENOSPC, errno.EDQUOT}
        else "check that the folder is writable and run the same command again"
    )
    return StoreWriteError(
        f"{path}: {error.strerror or error}; everything finished before is safe; {way_out}"
    )


def read_error(path: Path, error: OSError) -> StoreReadError:
    """Return the one-line error for a refused read."""
    return StoreReadError(
        f"{path}: {error.strerror or error}; check that the file and its folder can be read"
    )
