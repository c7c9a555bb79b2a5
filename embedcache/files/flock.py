"""Locks on open files (`flock`), which the system lets go of when their process ends."""

from __future__ import annotations

import errno


def lock_open_file(descriptor: int, *, wait: bool = False) -> None:
    """Lock an open file against all who opened it anew, this process included.

    Parameters
    ----------
    descriptor
        Descriptor of the file; the lock goes when it is closed.
    wait
        Whether to wait until the file is free.

    Raises
    ------
    BlockingIOError
        Somebody else holds it.
    OSError
        The file system, or this system, has no such locks.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        raise OSError(errno.ENOSYS, "this system has no flock") from None
    fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
