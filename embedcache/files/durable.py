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
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Final

import google_crc32c

from embedcache.errors import StoreReadError, StoreWriteError

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


def access(folder: Path, *, to_folder: bool = False) -> int:
    """Return the mode of what is made in a folder: for its owner and the folder's group, no other.

    A store holds numbers of patients; whether the group reads it is said once, by its own folder.

    Parameters
    ----------
    folder
        Folder in which it is made.
    to_folder
        Whether a folder is made, not a file.
    """
    group = folder.stat().st_mode & 0o070
    return 0o700 | group if to_folder else 0o600 | group & 0o060


def make_folder(folder: Path, *, mode: int | None = None) -> None:
    """Make a folder, and the folders above it, so that they survive a power cut.

    Flushing a file leaves the entries of the folders above it unflushed.

    Parameters
    ----------
    folder
        Folder to make; one that is there stays as it is.
    mode
        Access to the folder itself, before the umask; None for that of `access`.
    """
    wanted, missing = folder, []
    while not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for path in reversed(missing):
        try:
            own_mode = mode if path == wanted else None
            path.mkdir(own_mode or access(path.parent, to_folder=True), exist_ok=True)
        except FileExistsError:  # a file; a caller would take this for its own name being taken
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from None
        fsync(path.parent)


def _create(path: Path) -> BinaryIO:
    return open(path, "xb", opener=partial(os.open, mode=access(path.parent)))


def _write_temporary(folder: Path, write: Callable[[BinaryIO], object]) -> Path:
    temporary = folder / f"{TEMPORARY}{secrets.token_hex(8)}"
    try:
        with _create(temporary) as stream:
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
            with _create(path) as stream, _unlinked_on_error(path):
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
