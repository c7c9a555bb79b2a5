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
from embedcache.files.flock import lock_open_file
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


@contextlib.contextmanager
def _write_temporary(folder: Path, write: Callable[[BinaryIO], object]) -> Iterator[Path]:
    """Yield a file that is flushed and has yet to get its name; it goes where it gets none."""
    temporary = folder / f"{TEMPORARY}{secrets.token_hex(8)}"
    try:
        with _create(temporary) as stream:
            _hold(stream.fileno())
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
            yield temporary
    finally:
        with contextlib.suppress(OSError):  # the first error is the one to tell
            temporary.unlink(missing_ok=True)


def _hold(descriptor: int) -> None:
    """Let `is_abandoned` see, as long as a file is open, that its writer lives."""
    with contextlib.suppress(OSError):  # a file system without such locks
        lock_open_file(descriptor)


@contextlib.contextmanager
def held(path: Path | None) -> Iterator[None]:
    """Let `is_abandoned` see, while the block runs, that a file's writer lives.

    Parameters
    ----------
    path
        A file that is there; None for what is no file of this machine.
    """
    with contextlib.ExitStack() as stack:
        if path is not None:
            with contextlib.suppress(OSError):
                _hold(stack.enter_context(path.open("r+b")).fileno())
        yield


def is_abandoned(path: Path | None) -> bool | None:
    """Tell whether no living process holds a file; None where nobody can tell.

    Parameters
    ----------
    path
        A file that its writer holds; None for what is no file of this machine.
    """
    if path is None:
        return None
    try:
        # Open for writing: NFS grants no other an exclusive lock.
        with path.open("r+b") as stream:
            lock_open_file(stream.fileno())
    except FileNotFoundError:
        return True
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


@contextlib.contextmanager
def _unlinked_on_error(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError:
        with contextlib.suppress(OSError):  # the first error is the one to tell
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
    try:
        make_folder(path.parent)
        with _write_temporary(path.parent, lambda stream: stream.write(data)) as temporary:
            try:
                os.link(temporary, path)
            except OSError as error:
                if error.errno not in _NO_HARD_LINKS:
                    raise
                _rename_to_free(temporary, path)
            with _unlinked_on_error(path):
                fsync(path.parent)
    except FileExistsError:
        raise
    except OSError as error:
        raise write_error(path, error) from error


def _rename_to_free(temporary: Path, path: Path) -> None:
    """Rename a file to a name that is free: where there are no hard links (FAT, some mounts).

    Of two writers at one moment the last one's file stands, whole. To create the name first and
    then write would show readers a torn file.
    """
    if path.exists():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    temporary.replace(path)


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
    for is_last in (False, False, True):
        try:
            make_folder(path.parent)
            with _write_temporary(path.parent, write) as temporary:
                if path.exists():
                    shutil.copymode(path, temporary)
                temporary.replace(path)
        except OSError as error:
            # A sweep has taken the folder, which was empty, for a leftover: it is made anew.
            if is_last or not isinstance(error, FileNotFoundError):
                raise write_error(path, error) from error
        else:
            return


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
