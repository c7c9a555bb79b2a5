"""Regular files opened for reading: what waits for a writer, or has no end, is refused at once."""

from __future__ import annotations

import errno
import io
import os
import stat
from typing import Final

_NAMES: Final = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def open_regular(path: str | os.PathLike[str]) -> io.FileIO:
    """Open a file for reading, unbuffered.

    Raises
    ------
    OSError
        The system refuses; or the path leads to a folder, a pipe, a socket or a device, which
        `strerror` names.
    """
    # Looked at before it is opened: to open a device can have effects.
    check_regular(path, os.stat(path))  # noqa: PTH116 - one for each image
    stream = io.FileIO(path, opener=_open)
    try:
        check_regular(path, os.fstat(stream.fileno()))  # it may have been put there meanwhile
    except OSError:
        stream.close()
        raise
    return stream


def read_regular(path: str | os.PathLike[str]) -> bytes:
    """Return all bytes of a file; see `open_regular`."""
    with open_regular(path) as stream:
        return stream.readall()


def check_regular(path: str | os.PathLike[str], status: os.stat_result) -> None:
    """Refuse what is no regular file; see `open_regular`."""
    kind = stat.S_IFMT(status.st_mode)
    if kind == stat.S_IFDIR:
        raise IsADirectoryError(errno.EISDIR, "a folder, expected a file", os.fspath(path))
    if kind != stat.S_IFREG:
        name = _NAMES.get(kind, "no regular file")
        raise OSError(errno.EINVAL, f"{name}, expected a file", os.fspath(path))


def _open(path: str, flags: int) -> int:
    # O_NONBLOCK: a pipe that took the file's place is opened, and refused, without a writer.
    return os.open(path, flags | os.O_NONBLOCK)
