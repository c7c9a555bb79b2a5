"""The five calls through which everything stored is read and written, and the local disk.

A store is a set of named byte strings. Names are POSIX paths, relative to the store's root. What is
part of the truth is put once and never changed (`put`); what is derived may be replaced; nothing
else exists. So a store can as well lie in an object store, which has no directories, locks, links
or renames, but can refuse to overwrite.
"""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from embedcache.files import durable
from embedcache.files.regular import open_regular


@dataclass(frozen=True, slots=True)
class Entry:
    """One item of a listing.

    Parameters
    ----------
    name
        POSIX path relative to the folder that was listed; a sub-folder's ends in '/'.
    size
        Size in bytes; 0 for a sub-folder.
    modified_ns
        Time of the last change by the clock of the storage, in nanoseconds since 1970.
    """

    name: str
    size: int
    modified_ns: int


class Backend(Protocol):
    """Storage of named byte strings; safe for any number of processes.

    A reader sees all bytes of a name or none, at any time and after a power cut. What `put` and
    `replace` have created survives that when the call returns. What `delete` did may be undone by
    it until something is put into the same folder: nothing may rest on its order.
    """

    def put(self, name: str, data: bytes) -> None:
        """Create `name`.

        Raises
        ------
        FileExistsError
            The name is taken; what it holds is untouched.
        StoreWriteError
            The storage refused; nothing was created.
        """

    def replace(self, name: str, data: bytes) -> None:
        """Create `name`, or replace what it holds in one step: for derived data.

        Raises
        ------
        StoreWriteError
            The storage refused; what was there is there still.
        """

    def list(self, folder: str, *, deep: bool = False) -> list[Entry]:
        """Return what lies in a folder, sorted by name; empty where there is no such folder.

        Names that begin with a dot are temporaries, marks and locks; they are listed too. A file
        that is deleted meanwhile may be left out.

        Parameters
        ----------
        folder
            Name of the folder; '' for the root.
        deep
            Whether items of sub-folders are listed instead of the sub-folders themselves. What
            lies behind a link to a folder is left out.

        Raises
        ------
        StoreReadError
            The storage refused.
        """

    def read(
        self,
        name: str,
        start: int = 0,
        length: int | None = None,
        *,
        into: memoryview | None = None,
    ) -> bytes | memoryview:
        """Return the bytes of a name, or at most `length` of them from `start` on.

        Parameters
        ----------
        name
            Name of the bytes.
        start
            Number of bytes to leave out at the beginning, at least 0.
        length
            Most bytes that are returned; None for all that follow `start`.
        into
            Buffer of single bytes that is filled instead of a new one; `length` is its length
            then, and the part of it that was filled is returned.

        Raises
        ------
        FileNotFoundError
            Nothing has that name; a folder is nothing.
        StoreReadError
            The storage refused.
        """

    def delete(self, name: str) -> None:
        """Remove a name, or a whole folder; what is absent already is no error.

        A folder goes from sight at once, so that a kill leaves no half of it in its place.

        Raises
        ------
        StoreWriteError
            The storage refused.
        """

    def address(self, name: str) -> str:
        """Return what a message calls a name: the file's path, or a URL."""

    def local_path(self, name: str) -> Path | None:
        """Return the file that a name is on this machine; None where it is none."""


class LocalBackend:
    """Files below one folder of a local or mounted disk.

    Parameters
    ----------
    root
        Folder of the store; made at the first write.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def __repr__(self) -> str:
        return f"LocalBackend({str(self.root)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LocalBackend) and self.root == other.root

    def __hash__(self) -> int:
        return hash(self.root)

    def local_path(self, name: str) -> Path:
        """Return the file of a name."""
        return self.root / name

    def address(self, name: str) -> str:
        """Return the path of a name's file."""
        return str(self.root / name)

    def put(self, name: str, data: bytes) -> None:
        """Create a file: written aside, flushed, then linked to its name."""
        durable.publish(self.root / name, data)

    def replace(self, name: str, data: bytes) -> None:
        """Create or replace a file: written aside, flushed, then renamed, and that flushed too."""
        path = self.root / name
        durable.replace(path, data)
        try:
            durable.fsync(path.parent)
        except FileNotFoundError:
            pass  # another process has removed it since, with its folder
        except OSError as error:
            raise durable.write_error(path, error) from error

    def list(self, folder: str, *, deep: bool = False) -> list[Entry]:
        """List a folder; a file that goes away meanwhile is left out."""
        path = self.root / folder
        try:
            return sorted(_scan(str(path), "", deep=deep), key=lambda entry: entry.name)
        except OSError as error:
            raise durable.read_error(path, error) from error

    def read(
        self,
        name: str,
        start: int = 0,
        length: int | None = None,
        *,
        into: memoryview | None = None,
    ) -> bytes | memoryview:
        """Read a file."""
        path = f"{self.root}/{name}"
        try:
            # Rows are read one by one: this takes half the time of Path.open.
            with open_regular(path) as stream:
                stream.seek(start)
                if into is not None:
                    return into[: _fill(stream, into)]
                return stream.readall() if length is None else _read_up_to(stream, length)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            raise FileNotFoundError(error.errno, error.strerror, path) from None
        except OSError as error:
            raise durable.read_error(Path(path), error) from error

    def delete(self, name: str) -> None:
        """Remove a file or a folder."""
        path = self.root / name
        try:
            if path.is_dir() and not path.is_symlink():
                durable.remove_folder(path)
            else:
                path.unlink()
        except (FileNotFoundError, NotADirectoryError):
            pass  # absent, or another process was first
        except OSError as error:
            raise durable.write_error(path, error) from error


def _fill(stream: io.FileIO, buffer: memoryview) -> int:
    # One call reads at most 2 GiB on Linux.
    n_read = 0
    while n_read < len(buffer) and (step := stream.readinto(buffer[n_read:])):
        n_read += step
    return n_read


def _read_up_to(stream: io.FileIO, length: int) -> bytes:
    data = stream.read(length)
    while len(data) < length and (more := stream.read(length - len(data))):
        data += more
    return data


def _scan(folder: str, prefix: str, *, deep: bool) -> Iterator[Entry]:
    try:
        items = list(os.scandir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return
    for item in items:
        # A link to a folder is listed as one and never gone into: it may lead round in a circle.
        if deep and item.is_dir(follow_symlinks=False):
            yield from _scan(item.path, f"{prefix}{item.name}/", deep=True)
            continue
        status = _status(item)
        if status is None or (deep and stat.S_ISDIR(status.st_mode)):
            continue
        if stat.S_ISDIR(status.st_mode):
            yield Entry(f"{prefix}{item.name}/", 0, status.st_mtime_ns)
        else:
            yield Entry(f"{prefix}{item.name}", status.st_size, status.st_mtime_ns)


def _status(item: os.DirEntry[str]) -> os.stat_result | None:
    """Return the status of what an item of a folder leads to; None where that is nothing."""
    try:
        return item.stat()
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:  # a link to itself
            return None
        raise


@dataclass(frozen=True, slots=True)
class Location:
    """A name in a backend: what a path is to a disk.

    Parameters
    ----------
    backend
        Storage that holds the name.
    path
        The name, a POSIX path; '' for the storage's root.

    Examples
    --------
    >>> store = Location(LocalBackend(Path("data/.embedcache")))
    >>> str(store / "runs" / "probe-1")
    'data/.embedcache/runs/probe-1'
    """

    backend: Backend
    path: str = ""

    def __truediv__(self, name: str) -> Location:
        return Location(self.backend, f"{self.path}/{name}" if self.path else name)

    def __str__(self) -> str:
        return self.backend.address(self.path)

    def __fspath__(self) -> str:
        if self.local_path is None:
            raise TypeError(f"{self} is no file of this machine")
        return str(self.local_path)

    @property
    def local_path(self) -> Path | None:
        """The file of this machine that the name is; None where it is none."""
        return self.backend.local_path(self.path)

    @property
    def name(self) -> str:
        """Last part of the name."""
        return self.path.rpartition("/")[2]

    @property
    def parent(self) -> Location:
        """The folder that holds the name."""
        return Location(self.backend, self.path.rpartition("/")[0])

    def put(self, data: bytes) -> None:
        """Create the name; see `Backend.put`."""
        self.backend.put(self.path, data)

    def replace(self, data: bytes) -> None:
        """Create or replace the name; see `Backend.replace`."""
        self.backend.replace(self.path, data)

    def list(self, *, deep: bool = False, hidden: bool = False) -> list[Entry]:
        """Return what lies below the name; see `Backend.list`.

        Parameters
        ----------
        deep
            Whether items of sub-folders are listed instead of the sub-folders.
        hidden
            Whether names that begin with a dot are listed.
        """
        entries = self.backend.list(self.path, deep=deep)
        return entries if hidden else [entry for entry in entries if not entry.name.startswith(".")]

    def folders(self) -> tuple[Location, ...]:
        """Return the sub-folders, by name; those that begin with a dot are left out."""
        return tuple(self / entry.name[:-1] for entry in self.list() if entry.name.endswith("/"))

    def read(self, start: int = 0, length: int | None = None) -> bytes:
        """Return the bytes of the name; see `Backend.read`."""
        return bytes(self.backend.read(self.path, start, length))

    def read_into(self, buffer: memoryview, start: int = 0) -> int:
        """Fill a buffer with the bytes of the name; see `Backend.read`.

        Parameters
        ----------
        buffer
            Buffer of single bytes.
        start
            Number of bytes to leave out at the beginning.

        Returns
        -------
        Number of bytes that were put into the buffer.
        """
        return len(self.backend.read(self.path, start, into=buffer))

    def exists(self) -> bool:
        """Tell whether bytes have this name; a folder has none."""
        try:
            self.read(0, 0)
        except FileNotFoundError:
            return False
        return True

    def delete(self) -> None:
        """Remove the name, or the folder of that name; see `Backend.delete`."""
        self.backend.delete(self.path)


def on_disk(folder: Path) -> Location:
    """Return the root of a store in a folder of this machine."""
    return Location(LocalBackend(folder))
