"""One process at a time: saves double work; correctness never rests on it.

Locks are files of this machine. Where a store is not on its disks, nobody is kept out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from secrets import token_hex
from typing import Final

import filelock

from embedcache.files.backend import Location
from embedcache.files.durable import access, make_folder, write_error

_MARK: Final = ".active-"
_GATE: Final = ".gate"


@contextmanager
def locked(file: Path | Location, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold a lock file while the block runs; the system lets go of it when the process ends.

    Parameters
    ----------
    file
        The lock file. A location that is no file of this machine has no
        lock: the block runs at once.
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
    try:
        make_folder(path.parent)  # or filelock would make one that anybody may read
        lock = filelock.FileLock(path, mode=access(path.parent))
        lock.acquire(timeout=0)
    except filelock.Timeout:
        on_wait()
        lock.acquire()
    except OSError as error:
        raise write_error(path, error) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def marked(folder: Path) -> Iterator[None]:
    """Let others see that a folder is in use while the block runs; any number may use it."""
    make_folder(folder)
    mark = folder / f"{_MARK}{token_hex(6)}"
    with ExitStack() as stack:
        with locked(folder / _GATE):
            stack.enter_context(locked(mark))
        try:
            yield
        finally:
            mark.unlink(missing_ok=True)


@contextmanager
def if_unmarked(folder: Path) -> Iterator[bool]:
    """Yield whether nobody uses a folder, and let nobody begin to while the block runs.

    What a killed process left does not count.
    """
    make_folder(folder)
    with locked(folder / _GATE):
        yield all(remove_if_free(mark) for mark in folder.glob(f"{_MARK}*"))


def remove_if_free(file: Path) -> bool:
    """Remove a lock file that nobody holds, and tell whether nobody held it."""
    try:
        with filelock.FileLock(file).acquire(timeout=0):
            file.unlink(missing_ok=True)
    except filelock.Timeout:
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
        with filelock.FileLock(file).acquire(timeout=0):
            return ""
    except filelock.Timeout:
        return _process_of(file) or "another machine, or another user's process"


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
