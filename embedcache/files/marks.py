"""Marks of writes that take several files, such as a segment and its record, or a run.

A mark is put before the first file and removed after the last. Its writer holds it, so that others
see that the writer lives. Who takes a writer for dead withdraws the write first and looks then
whether it has been completed; a writer completes it and looks then whether it was withdrawn. So one
of the two sees the other, whatever clocks, locks and pauses there are.
"""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Iterator
from typing import Final

from embedcache.files.backend import Location
from embedcache.files.durable import held
from embedcache.files.kinds import GRACE_S, Ages

_WITHDRAWN: Final = b"withdrawn"


@contextlib.contextmanager
def put_mark(mark: Location) -> Iterator[None]:
    """Put a mark, and hold it while the block writes; it stays when the block ends."""
    with contextlib.ExitStack() as stack:
        while True:
            # Whoever looks at it from another machine cannot see that it is held.
            mark.replace(platform.node().encode())
            stack.enter_context(held(mark.local_path))
            # A sweep may have come before it was held.
            if read_mark(mark) not in {None, _WITHDRAWN}:
                break
        yield


def read_mark(mark: Location) -> bytes | None:
    """Return what a mark holds; None where there is none."""
    try:
        return mark.read()
    except FileNotFoundError:
        return None


def withdraw(mark: Location) -> None:
    """Take a write from a writer that seems dead; should it live, it finds that out in time."""
    mark.replace(_WITHDRAWN)


def is_withdrawn(mark: Location) -> bool:
    """Tell whether a write was taken from its writer."""
    return read_mark(mark) == _WITHDRAWN


def is_left(mark: Location, ages: Ages, grace_s: float) -> bool:
    """Tell whether no living writer holds a mark, as far as can be seen from here.

    Parameters
    ----------
    mark
        Mark of a write; one that is gone counts as left.
    ages
        Ages of the files in the mark's folder.
    grace_s
        Age in seconds that the mark must have reached.
    """
    text = read_mark(mark)
    if text is None:
        return True
    if text not in {b"", _WITHDRAWN, platform.node().encode()}:
        grace_s = max(grace_s, GRACE_S)
    entries = mark.parent.list(hidden=True)
    changed_ns = max((e.modified_ns for e in entries if e.name == mark.name), default=0)
    return ages.is_left(mark, changed_ns, grace_s)
