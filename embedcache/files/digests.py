"""SHA-256 of files, remembered by their size, inode and times, as git's index does.

An entry counts only while size, inode, modification and change time are what they were. A file
that was touched less than two seconds before it was hashed is not remembered: a second write
within the clock's granularity would leave no trace (git's 'racy' entries).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from embedcache.errors import StoreWriteError
from embedcache.files.backend import Location, on_disk
from embedcache.files.durable import crc32c, replace
from embedcache.files.kinds import ArtefactKind, Damage, Mended
from embedcache.files.regular import open_regular, read_regular

RACY_WINDOW_NS: Final = 2_000_000_000

Stamp = tuple[int, int, int, int]  # size in bytes, inode, mtime_ns, ctime_ns


def stamp_of(status: os.stat_result) -> Stamp:
    """Return the facts that stay equal as long as a file counts as unchanged."""
    return status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns


def file_stamp(path: Path) -> Stamp | None:
    """Return the stamp of a file; None where there is none."""
    try:
        return stamp_of(path.stat())
    except OSError:
        return None


def sha256(data: bytes) -> str:
    """Return the SHA-256 of bytes, 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


class DigestCache:
    """Digests of files by absolute path; derived, so a damaged or missing file means 'unknown'.

    Parameters
    ----------
    file
        File that keeps the entries between runs; None keeps them in memory only.

    Attributes
    ----------
    is_damaged
        Whether the file is there but cannot be read or does not match its checksum; it counts as
        empty then.
    """

    def __init__(self, file: Path | None = None) -> None:
        self._file = file
        self._changed = False
        self._entries: dict[str, tuple[Stamp, str]] = {}
        self.is_damaged = False
        try:
            if file is not None and file.is_file():
                self._load(read_regular(file))
        except OSError:
            self.is_damaged = True

    def _load(self, data: bytes) -> None:
        head, _, body = data.partition(b"\n")
        if head != _head(body):
            self.is_damaged = True
            return
        try:
            for line in body.decode().splitlines():
                digest, size, inode, mtime, ctime, path = line.split("\t", 5)
                self._entries[path] = (int(size), int(inode), int(mtime), int(ctime)), digest
        except ValueError:  # of another release
            self._entries.clear()

    def get(self, path: str, stamp: Stamp) -> str | None:
        """Return the digest of an unchanged file, or None where the file must be read."""
        entry = self._entries.get(path)
        return entry[1] if entry is not None and entry[0] == stamp else None

    def put(self, path: str, stamp: Stamp, digest: str) -> None:
        """Remember a digest, unless the file is too young to tell a later write from this one."""
        young = time.time_ns() - max(stamp[2], stamp[3]) < RACY_WINDOW_NS
        if not young and path.isprintable():
            self._entries[path] = stamp, digest
            self._changed = True

    def file_digest(self, path: Path) -> str:
        """Return the SHA-256 of a file, which is read only if its digest is not remembered."""
        key = str(path.absolute())
        with open_regular(path) as stream:
            stamp = stamp_of(os.fstat(stream.fileno()))
            digest = self.get(key, stamp)
            if digest is None:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
                self.put(key, stamp, digest)
        return digest

    def save(self) -> None:
        """Write the entries back, if there are new ones, where possible: they save time."""
        if not self._changed or self._file is None:
            return
        lines = (
            "\t".join((digest, *map(str, stamp), path))
            for path, (stamp, digest) in sorted(self._entries.items())
        )
        body = "\n".join(lines).encode()
        with contextlib.suppress(StoreWriteError):
            replace(self._file, _head(body) + b"\n" + body)
        self._changed = False


class DigestFiles(ArtefactKind):
    """The remembered digests of a workspace as one kind of artefact: one file, or none.

    Parameters
    ----------
    file
        File of a `DigestCache`.
    """

    def __init__(self, file: Path) -> None:
        self._file = file

    @property
    def name(self) -> str:
        """Plural name of the kind."""
        return "digests of image files"

    @property
    def folder(self) -> Location:
        """The folder in which the file lies, beside other kinds."""
        return on_disk(self._file.parent)

    def items(self) -> Sequence[Location]:
        """Return the file, if it is there."""
        file = self.folder / self._file.name
        return [file] if file.exists() else []

    def check(self, item: Location) -> Iterator[Damage]:
        """Compare the file with the checksum in its first line."""
        if DigestCache(self._file).is_damaged:
            yield Damage(item, "is damaged or cannot be read (derived: it is ignored)")

    def mend(self, item: Location) -> Mended:
        """Remove the file: images are read again."""
        item.delete()
        return Mended(f"{item} removed; the next command reads the images again")

    def sweep(self, grace_s: float) -> int:
        """Delete nothing."""
        del grace_s
        return 0

    def strangers(self) -> Iterable[str]:
        """Return nothing: other kinds, and whatever else, lie in the same folder."""
        return ()


def _head(body: bytes) -> bytes:
    return f"{crc32c(body):08x}".encode()
