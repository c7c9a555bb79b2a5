"""One immutable Zarr v3 array of rows: written through zarr, read straight from its chunks.

A chunk is `chunk_rows` rows, little-endian, followed by their CRC-32C; that is all there is to
Zarr's `bytes` and `crc32c` codecs. Reading such a file into the result is ten times cheaper than
zarr-python's way through its codec pipeline (benchmarks/bench_store.py), and a single row can be
read alone, against its own checksum.
"""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from embedcache.errors import StoreCorruptError
from embedcache.files.durable import crc32c, fsync_tree, write_error
from embedcache.store.layout import FileSum, Record, segment_path

Rows = NDArray[Any]  # float32, or uint8 where rows are pictures
# Types of rows, with what a chunk that is not there reads as through zarr: NaN, which can never
# pass for a value. Bytes have no such thing; there size and existence, as recorded, must do.
DTYPES: Final = {"float32": ("<f4", float("nan")), "uint8": ("|u1", 0)}
MOST_CHUNK_ROWS: Final = 1024
_SUM_BYTES: Final = 4
# A longer row is cheaper read alone than with its chunk, however many are wanted.
_LONG_ROW: Final = 1 << 15
_CHUNKS: Final = "c/"
_REPAIR: Final = "run `embedcache verify --repair`"


def chunk_rows_for(n_rows: int) -> int:
    """Return rows a chunk: at most 1024, and such that the last chunk is nearly full."""
    n_chunks = max(1, -(-n_rows // MOST_CHUNK_ROWS))
    return max(1, -(-n_rows // n_chunks))


def write_segment(
    folder: Path, n_rows: int, dim: int, blocks: Iterable[Rows], *, dtype: str = "float32"
) -> tuple[FileSum, ...]:
    """Write an array, flush it to the disk, and return its files' checksums as read back.

    Parameters
    ----------
    folder
        The array's own folder; must not exist.
    n_rows, dim
        Its shape.
    blocks
        The rows, `chunk_rows_for(n_rows)` at a time.
    dtype
        One of `DTYPES`.

    Raises
    ------
    StoreWriteError
        The file system refused; what was written of the array is removed again.
    """
    import zarr
    from zarr.codecs import Crc32cCodec

    rows = chunk_rows_for(n_rows)
    code, fill_value = DTYPES[dtype]
    try:
        array = zarr.create_array(
            store=folder,
            shape=(n_rows, dim),
            chunks=(rows, dim),
            dtype=code,
            fill_value=fill_value,
            filters=None,
            compressors=[Crc32cCodec()],
        )
        for number, block in enumerate(blocks):
            array[number * rows : number * rows + len(block)] = block
        fsync_tree(folder)
        return _sums(folder)
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise write_error(folder, error) from error


def _sums(folder: Path) -> tuple[FileSum, ...]:
    sums = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        data = path.read_bytes()
        values = data[:-_SUM_BYTES] if name.startswith(_CHUNKS) else data
        sums.append(FileSum(name, len(data), crc32c(values)))
    return tuple(sums)


def row_sums(rows: Rows) -> NDArray[np.uint32]:
    """Return the CRC-32C of each row's bytes, shape (n,)."""
    octets = np.ascontiguousarray(rows).view(np.uint8)
    return np.fromiter((crc32c(row) for row in octets), dtype=np.uint32, count=len(rows))


def check_file(folder: Path, record: Record, file: FileSum) -> str | None:
    """Return what is wrong with one file of a segment, or None."""
    path = segment_path(folder, record.id) / file.path
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if len(data) != file.size:
        return f"has {len(data)} bytes, expected {file.size}"
    is_chunk = file.path.startswith(_CHUNKS)
    values = data[:-_SUM_BYTES] if is_chunk else data
    said = int.from_bytes(data[-_SUM_BYTES:], "little") if is_chunk else file.crc32c
    if not crc32c(values) == file.crc32c == said:
        return "does not match its checksum"
    return None


def check_sizes(folder: Path, record: Record) -> None:
    """Check that every file of a segment is there, in full size, and its metadata intact.

    Raises
    ------
    StoreCorruptError
    """
    root = segment_path(folder, record.id)
    for file in record.files:
        path = f"{root}/{file.path}"
        try:
            size = os.stat(path).st_size  # noqa: PTH116 - thousands of files; a Path costs as much
        except OSError:
            raise StoreCorruptError(f"{path} is missing; {_REPAIR}") from None
        if size != file.size:
            raise StoreCorruptError(f"{path} has {size} bytes, expected {file.size}; {_REPAIR}")
        if not file.path.startswith(_CHUNKS) and check_file(folder, record, file):
            raise StoreCorruptError(f"{path} does not match its checksum; {_REPAIR}")


def read_rows(
    folder: Path, record: Record, rows: NDArray[np.int64], out: Rows, at: NDArray[np.int64]
) -> None:
    """Copy rows of a segment into an array, checked.

    Parameters
    ----------
    folder
        The encoder's folder.
    record
        The segment's record.
    rows
        Rows wanted, ascending, shape (k,).
    out
        Shape (n, dim), of the segment's type, C-contiguous.
    at
        Where in `out` each goes, shape (k,).

    Raises
    ------
    StoreCorruptError
        A file is missing, short, or does not match its checksum.
    """
    chunks = rows // record.chunk_rows
    for chunk in np.unique(chunks):
        first, last = np.searchsorted(chunks, [chunk, chunk + 1])
        where, target = rows[first:last] - chunk * record.chunk_rows, at[first:last]
        # One row costs a seek and a checksum call, a whole chunk is read at memory speed: the two
        # meet at about one row in sixteen.
        is_long = record.dim * out.itemsize > _LONG_ROW
        if is_long or 16 * len(where) < record.chunk_rows:
            _read_single_rows(folder, record, int(chunk), where, out, target)
        else:
            _read_chunk(folder, record, int(chunk), where, out, target)


def _chunk_file(record: Record, chunk: int) -> FileSum:
    name = f"{_CHUNKS}{chunk}/0"
    return next(file for file in record.files if file.path == name)


def _read_chunk(
    folder: Path,
    record: Record,
    chunk: int,
    where: NDArray[np.int64],
    out: Rows,
    target: NDArray[np.int64],
) -> None:
    file, rows = _chunk_file(record, chunk), record.chunk_rows
    start, n_rows = int(target[0]), len(where)
    # All of a chunk, in order, to one place: the usual full read, straight into the result.
    direct = n_rows == rows and bool(np.all(np.diff([where, target]) == 1))
    values = out[start : start + rows] if direct else np.empty((rows, record.dim), out.dtype)
    octets = values.reshape(-1).view(np.uint8)
    path = segment_path(folder, record.id) / file.path
    with _opened(path) as stream:
        n_read = stream.readinto(octets.data)
        said = int.from_bytes(stream.read(_SUM_BYTES + 1), "little")
    if n_read != octets.size or not crc32c(octets) == file.crc32c == said:
        raise StoreCorruptError(
            f"{path} does not match its checksum; {n_rows} wanted rows lie in it, first image "
            f"{record.keys[chunk * rows + int(where[0])][:12]}...; {_REPAIR}"
        )
    if not direct:
        out[target] = values[where]


def _read_single_rows(
    folder: Path,
    record: Record,
    chunk: int,
    where: NDArray[np.int64],
    out: Rows,
    target: NDArray[np.int64],
) -> None:
    path = segment_path(folder, record.id) / _chunk_file(record, chunk).path
    octets = out.view(np.uint8)
    n_bytes = record.dim * out.itemsize
    with _opened(path) as stream:
        for row, place in zip(where.tolist(), target.tolist(), strict=True):
            number = chunk * record.chunk_rows + row
            stream.seek(row * n_bytes)
            n_read = stream.readinto(octets[place].data)
            if n_read != n_bytes or crc32c(octets[place]) != record.sums[number]:
                raise StoreCorruptError(
                    f"{path}: row {row}, image {record.keys[number][:12]}..., does not match its "
                    f"checksum; {_REPAIR}"
                )


def _opened(path: Path) -> io.FileIO:
    try:
        return path.open("rb", buffering=0)
    except FileNotFoundError:
        raise StoreCorruptError(f"{path} is missing; {_REPAIR}") from None


def salvage(folder: Path, record: Record) -> tuple[NDArray[np.int64], Rows]:
    """Return the rows of a damaged segment that match their own checksum, and their numbers."""
    good, rows = [], np.empty((len(record.keys), record.dim), record.dtype)
    for number in range(len(record.keys)):
        one, place = np.array([number]), np.array([number])
        chunk = number // record.chunk_rows
        try:
            _read_single_rows(folder, record, chunk, one - chunk * record.chunk_rows, rows, place)
        except (StoreCorruptError, StopIteration):
            continue
        good.append(number)
    kept = np.array(good, dtype=np.int64)
    return kept, rows[kept]
