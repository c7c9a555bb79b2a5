"""One process at a time: saves double work; correctness never rests on it.

Locks are files of this machine, locked by the system (`flock`), which lets go of them when their
process ends. Where a store is not on its disks, or its file system has no locks, nobody is kept
out.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from secrets import token_hex
from typing import Final

from embedcache.files.backend import Location
from embedcache.files.durable import access, make_folder, write_error
from embedcache.files.flock import lock_open_file

_log = logging.getLogger(__name__)

_MARK: Final = ".active-"
_GATE: Final = ".gate"
# What a file system without locks says: some network drives, some of FUSE.
_NO_LOCKS: Final = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}


@contextmanager
def locked(file: Path | Location, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold a lock file while the block runs; the system lets go of it when the process ends.

    Parameters
    ----------
    file
        The lock file. A location that is no file of this machine has no lock: the block runs at
        once.
    on_wait
        Function called once, before waiting, if another process holds the lock.

    Raises
    ------
    StoreWriteError
        The file cannot be written.
    """
    path = file.local_path if isinstance(file, Location) else file
    if path is None:
        yield
        return
    with ExitStack() as stack:
        try:
            make_folder(path.parent)
            stack.callback(os.close, _acquire(path, on_wait))
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise write_error(path, error) from error
            _warn_of_no_locks(os.strerror(error.errno))
        yield


def _acquire(path: Path, on_wait: Callable[[], None] | None) -> int:
    """Return the descriptor of a lock that is held now.

    Raises
    ------
    BlockingIOError
        Another process holds it, and `on_wait` is None.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, access(path.parent))
        try:
            try:
                lock_open_file(descriptor)
            except BlockingIOError:
                if on_wait is None:
                    raise
                on_wait()
                lock_open_file(descriptor, wait=True)
            # Whoever held it before may have removed the file: then nobody else would meet it.
            if os.fstat(descriptor).st_nlink:
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


@functools.cache  # once is enough
def _warn_of_no_locks(reason: str) -> None:
    _log.warning(
        "the store's file system has no locks (%s): two commands may do the same work twice",
        reason,
    )


@contextmanager
def marked(folder: Path) -> Iterator[None]:
    """Let others see that a folder is in use while the block runs; any number may use it."""
    mark = folder / f"{_MARK}{token_hex(6)}"
    with ExitStack() as stack:
        with locked(folder / _GATE):
            stack.enter_context(locked(mark))
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # whoever asks next removes it
                mark.unlink()


@contextmanager
def if_unmarked(folder: Path) -> Iterator[bool]:
    """Yield whether nobody uses a folder, and let nobody begin to while the block runs.

    What a killed process left does not count.
    """
    with locked(folder / _GATE):
        yield all(remove_if_free(mark) for mark in folder.glob(f"{_MARK}*"))


def remove_if_free(file: Path) -> bool:
    """Remove a lock file that nobody holds, and tell whether nobody held it.

    Where there are no locks, nobody can tell.
    """
    try:
        descriptor = _acquire(file, None)
        try:
            file.unlink(missing_ok=True)
        finally:
            os.close(descriptor)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise write_error(file, error) from error
        return False
    return True


def lock_holder(file: Path) -> str:
    """Return who holds a lock file, in a few words; '' where nobody does.

    Raises
    ------
    OSError
        The file cannot be opened.
    """
    try:
        os.close(_acquire(file, None))
    except BlockingIOError:
        return _process_of(file) or "another machine, or another user's process"
    return ""


def _process_of(file: Path) -> str:
    """Return the process of this machine that has locked a file; '' where Linux does not say."""
    try:
        number = f":{file.stat().st_ino}"
        lines = Path("/proc/locks").read_text(encoding="ascii").splitlines()
        process = next(line.split()[4] for line in lines if line.split()[5].endswith(number))
        name = Path(f"/proc/{process}/comm").read_text(encoding="utf-8").strip()
    except (OSError, StopIteration, IndexError):
        return ""
    return f"process {process} ({name})"
