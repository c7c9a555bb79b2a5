"""How many processor cores there are to use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from threadpoolctl import threadpool_limits

_most: ContextVar[int | None] = ContextVar("_most", default=None)


@contextmanager
def at_most(n_threads: int | None) -> Iterator[None]:
    """Let what is inside use so many threads, of ours and of BLAS; None: every usable core."""
    token = _most.set(n_threads)
    try:
        with threadpool_limits(n_threads or usable_cores(), "blas"):
            yield
    finally:
        _most.reset(token)


def usable_cores() -> int:
    """Return how many cores this process may use, or was told to; see `at_most`."""
    most = _most.get()
    if most is not None:
        return most
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
