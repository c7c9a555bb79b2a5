"""Files that are whole or absent: checksummed, flushed to disk, then given their name.

A file that is part of the truth (`publish`) is written once under a temporary name, flushed, and
linked to its final name, which fails if that exists. A derived file (`replace`) is renamed over
the old one. JSON documents carry their own checksum; Parquet files carry theirs in their name,
`<stem>.<crc32c>.parquet`, so that a flipped bit anywhere in either is found by whoever reads it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import google_crc32c

from embedcache.errors import StoreCorruptError, StoreWriteError

if TYPE_CHECKING:
    import pyarrow as pa

TEMPORARY: Final = ".tmp-"
_NO_HARD_LINKS: Final = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}


def crc32c(data: Any) -> int:
    """Return the CRC-32C (Castagnoli) of bytes or of a contiguous uint8 array."""
    return int(google_crc32c.value(data))


def canonical_json(value: Any) -> bytes:
    """Return the one JSON text that equal values share, as UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def new_id() -> str:
    """Return an identifier that sorts by time and is never given twice."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}-{secrets.token_hex(6)}"


def utc_now() -> str:
    """Return the time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def fsync(path: Path) -> None:
    """Flush one file or directory to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(root: Path) -> None:
    """Flush every file below `root`, then the directories, deepest first, then `root`'s parent."""
    for folder, _, names in os.walk(root, topdown=False):
        for name in names:
            fsync(Path(folder, name))
        fsync(Path(folder))
    fsync(root.parent)


def _write_temporary(folder: Path, write: Callable[[BinaryIO], object]) -> Path:
    temporary = folder / f"{TEMPORARY}{secrets.token_hex(8)}"
    try:
        with temporary.open("xb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
    except BaseException:  # an interruption too
        temporary.unlink(missing_ok=True)
        raise
    return temporary


@contextlib.contextmanager
def _unlinked_on_error(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError:
        path.unlink(missing_ok=True)
        raise


def publish(path: Path, data: bytes) -> None:
    """Create `path` with `data`, durably, so that a reader sees all of it or nothing.

    Raises
    ------
    FileExistsError
        Somebody published that name before; their file is untouched.
    StoreWriteError
        The file system refused; nothing was published.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _write_temporary(path.parent, lambda stream: stream.write(data))
        try:
            os.link(temporary, path)
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            # Without hard links (FAT, some network mounts): an exclusive create. A torn file then
            # fails its checksum, which readers treat as damage, never as data.
            with path.open("xb") as stream, _unlinked_on_error(path):
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
        with _unlinked_on_error(path):
            fsync(path.parent)
    except FileExistsError:
        raise
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def replace(path: Path, data: bytes) -> None:
    """Put `data` at `path` in one step; for derived files, where the last writer wins.

    A file that was there keeps its permissions.
    """
    replace_by(path, lambda stream: stream.write(data))


def replace_by(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Put what `write` puts into a stream at `path` in one step; see `replace`.

    Raises
    ------
    StoreWriteError
        The file system refused; what was at `path` is there still.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _write_temporary(path.parent, write)
        with _unlinked_on_error(temporary):
            if path.exists():
                shutil.copymode(path, temporary)
            temporary.replace(path)
    except OSError as error:
        raise write_error(path, error) from error


def remove_folder(folder: Path) -> None:
    """Remove a folder, first from sight, so that a kill leaves no half of it in its place."""
    aside = folder.with_name(f"{TEMPORARY}{folder.name}")
    shutil.rmtree(aside, ignore_errors=True)
    folder.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def write_error(path: Path, error: OSError) -> StoreWriteError:
    """Return the one-line error for a refused write."""
    way_out = (
        "free some space and run the same command again"
        if error.errno in {errno.ENOSPC, errno.EDQUOT}
        else "check that the folder is writable and run the same command again"
    )
    return StoreWriteError(
        f"{path}: {error.strerror or error}; everything finished before is safe; {way_out}"
    )


def seal_document(document: dict[str, Any]) -> bytes:
    """Return a JSON text of `document` that carries its own CRC-32C."""
    sealed = {**document, "crc32c": crc32c(canonical_json(document))}
    return json.dumps(sealed, indent=1, ensure_ascii=False).encode() + b"\n"


def read_document(path: Path) -> dict[str, Any]:
    """Return a sealed JSON document.

    Raises
    ------
    StoreCorruptError
        The file is missing, is no JSON, or does not match its checksum.
    """
    try:
        sealed = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise StoreCorruptError(f"{path} is missing; run `embedcache verify --repair`") from None
    except ValueError:
        sealed = None
    document = dict(sealed) if isinstance(sealed, dict) else {}
    if document.pop("crc32c", None) != crc32c(canonical_json(document)):
        raise StoreCorruptError(
            f"{path} does not match its checksum; run `embedcache verify --repair`"
        )
    return document


def publish_table(folder: Path, stem: str, table: pa.Table) -> Path:
    """Publish a Parquet file named by its checksum and return its path."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    data = sink.getvalue().to_pybytes()
    path = folder / f"{stem}.{crc32c(data):08x}.parquet"
    with contextlib.suppress(FileExistsError):  # equal content: already published
        publish(path, data)
    return path


def find_table(folder: Path, stem: str) -> Path | None:
    """Return the published Parquet file of that stem, if there is one."""
    return next(iter(sorted(folder.glob(f"{stem}.*.parquet"))), None)


def table_stem(path: Path) -> str:
    """Return the name that `publish_table` was given."""
    return path.name.rsplit(".", 2)[0]


def read_table(path: Path) -> pa.Table:
    """Return a published Parquet file.

    Raises
    ------
    StoreCorruptError
        The file is missing or does not match the checksum in its name.
    """
    return parse_table(check_named_file(path))


def parse_table(data: bytes) -> pa.Table:
    """Return the table in a Parquet file's bytes, read by one thread.

    These files are small, and Arrow's threads, where a process ends while they start, abort it.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    return pq.ParquetFile(pa.BufferReader(data), pre_buffer=False).read(use_threads=False)


def check_named_file(path: Path) -> bytes:
    """Return the bytes of a published Parquet file, checked against the checksum in its name."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise StoreCorruptError(f"{path} is missing; run `embedcache verify --repair`") from None
    if path.name.split(".")[-2] != f"{crc32c(data):08x}":
        raise StoreCorruptError(
            f"{path} does not match the checksum in its name; run `embedcache verify --repair`"
        )
    return data
