"""A storage in memory: what a store asks of an object store, without one."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from embedcache.files.backend import Entry


class MemoryBackend:
    """A storage backend that keeps everything in a dictionary, for one process.

    It has no folders, locks or files: a folder is there as long as a name lies below it.

    Attributes
    ----------
    files
        Bytes and time of the last change, in nanoseconds since 1970, by name.
    """

    def __init__(self) -> None:
        self.files: dict[str, tuple[bytes, int]] = {}
        self._lock = threading.Lock()

    def put(self, name: str, data: bytes) -> None:
        """Create `name`."""
        with self._lock:
            if name in self.files:
                raise FileExistsError(f"{self.address(name)} is taken")
            self.files[name] = bytes(data), time.time_ns()

    def replace(self, name: str, data: bytes) -> None:
        """Create `name`, or replace what it holds."""
        with self._lock:
            self.files[name] = bytes(data), time.time_ns()

    def list(self, folder: str, *, deep: bool = False) -> list[Entry]:
        """Return what lies in a folder, sorted by name."""
        prefix = f"{folder}/" if folder else ""
        entries: dict[str, Entry] = {}
        with self._lock:
            files = list(self.files.items())
        for name, (data, modified_ns) in files:
            if not name.startswith(prefix):
                continue
            first, slash, _ = name.removeprefix(prefix).partition("/")
            if deep or not slash:
                relative = name.removeprefix(prefix)
                entries[relative] = Entry(relative, len(data), modified_ns)
            else:
                earlier = entries.get(f"{first}/")
                newest = max(modified_ns, earlier.modified_ns if earlier else 0)
                entries[f"{first}/"] = Entry(f"{first}/", 0, newest)
        return sorted(entries.values(), key=lambda entry: entry.name)

    def read(
        self,
        name: str,
        start: int = 0,
        length: int | None = None,
        *,
        into: memoryview | None = None,
    ) -> bytes | memoryview:
        """Return the bytes of a name, or some of them."""
        try:
            data, _ = self.files[name]
        except KeyError:
            raise FileNotFoundError(f"{self.address(name)}: no such name") from None
        if into is None:
            return data[start : None if length is None else start + length]
        part = data[start : start + len(into)]
        into[: len(part)] = part
        return into[: len(part)]

    def delete(self, name: str) -> None:
        """Remove a name, or all names of a folder."""
        with self._lock:
            for other in [n for n in self.files if n == name or n.startswith(f"{name}/")]:
                del self.files[other]

    def address(self, name: str) -> str:
        """Return what a message calls a name."""
        return f"memory:{name}"

    def local_path(self, name: str) -> Path | None:
        """Return None: nothing here is a file."""
        del name
        return None
