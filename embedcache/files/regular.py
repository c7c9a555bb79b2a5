"""Regular files opened for reading: what waits for a writer, or has no end, is refused at once."""

from __future__ import annotations

import errno
import io
import os
import stat
from typing import Final

_NAMES: Final = {
    stat.S_IFDIR: "a folder",
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
    _check(path, os.stat(path))  # noqa: PTH116 - one for each image
    stream = io.FileIO(path, opener=_open)
    try:
        _check(path, os.fstat(stream.fileno()))  # it may have been put there meanwhile
    except OSError:
        stream.close()
        raise
    return stream


def read_regular(path: str | os.PathLike[str]) -> bytes:
    """Return all bytes of a file; see `open_regular`."""
    with open_regular(path) as stream:
        return stream.readall()


def kind_of(path: str | os.PathLike[str]) -> str:
    """Return what a path leads to, as 'a folder' or 'a device'; '' for a regular file or nothing.

    What cannot be looked at counts as nothing.
    """
    try:
        return _kind(os.stat(path))  # noqa: PTH116 - as above
    except OSError as error:
        return "a link that leads to itself" if error.errno == errno.ELOOP else ""


def _kind(status: os.stat_result) -> str:
    kind = stat.S_IFMT(status.st_mode)
    return "" if kind == stat.S_IFREG else _NAMES.get(kind, "no regular file")


def _check(path: str | os.PathLike[str], status: os.stat_result) -> None:
    if kind := _kind(status):
        error = IsADirectoryError if stat.S_ISDIR(status.st_mode) else OSError
        number = errno.EISDIR if error is IsADirectoryError else errno.EINVAL
        raise error(number, f"{kind}, not a file", os.fspath(path))


def _open(path: str, flags: int) -> int:
    # O_NONBLOCK: a pipe that took the file's place is opened, and refused, without a writer.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # which Windows lacks
