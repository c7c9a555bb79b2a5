"""One process at a time: saves double work; correctness never rests on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from embedcache.durable import write_error


@contextmanager
def locked(path: Path, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold a lock file while the block runs; the system lets go of it when the process ends.

    Parameters
    ----------
    path
        The file; its folder must exist.
    on_wait
        Called once if another process holds it, before waiting for that.

    Raises
    ------
    StoreWriteError
        The file cannot be written.
    """
    lock = filelock.FileLock(path)
    try:
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
