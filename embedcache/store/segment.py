"""One immutable Zarr v3 array of rows: written through zarr, read straight from its chunks.

A chunk is `chunk_rows` rows, little-endian, followed by their CRC-32C; that is all there is to
Zarr's `bytes` and `crc32c` codecs. Reading such a file into the result is ten times cheaper than
zarr-python's way through its codec pipeline (benchmarks/bench_store.py), and a single row can be
read alone, against its own checksum.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from embedcache.encoder_folders import SEGMENTS
from embedcache.errors import StoreCorruptError
from embedcache.files.arrays import Codes, Rows
from embedcache.files.backend import Location
from embedcache.files.durable import crc32c
from embedcache.store.layout import FileSum, Record, segment_folder

if TYPE_CHECKING:
    from zarr import Array
    from zarr.core.buffer import Buffer

# Types of rows, with what a chunk that is not there reads as through zarr: NaN, which can never
# pass for a value. Bytes have no such thing; there size and existence, as recorded, must do.
DTYPES: Final = {"float32": ("<f4", float("nan")), "uint8": ("|u1", 0)}
MOST_CHUNK_ROWS: Final = 1024
_SUM_BYTES: Final = 4
# Disks and object stores make several files durable in little more time than one.
_PUTS_AT_ONCE: Final = 4
# A longer row is cheaper read alone than with its chunk, however many are wanted.
_LONG_ROW: Final = 1 << 15
_CHUNKS: Final = "c/"
_METADATA: Final = "zarr.json"
_REPAIR: Final = "run `embedcache verify --repair`"


def chunk_rows_for(n_rows: int) -> int:
    """Return rows a chunk: at most 1024, and such that the last chunk is nearly full."""
    n_chunks = max(1, -(-n_rows // MOST_CHUNK_ROWS))
    return max(1, -(-n_rows // n_chunks))


def write_segment(
    folder: Location, n_rows: int, dim: int, blocks: Iterable[Rows], *, dtype: str = "float32"
) -> tuple[FileSum, ...]:
    """Write an array durably, chunk by chunk, and return its files' checksums, by path.

    Parameters
    ----------
    folder
        Folder of the array alone; must not exist.
    n_rows, dim
        Shape of the array.
    blocks
        The rows in order, in blocks of shape (`chunk_rows_for(n_rows)`, dim), the last one shorter.
    dtype
        Type of the stored rows, one of `DTYPES`.

    Raises
    ------
    StoreWriteError
        The storage refused; what was written so far is there, and nothing names it.
    """
    rows = chunk_rows_for(n_rows)
    # zarr encodes into memory and each chunk goes from there to the storage, which alone knows how
    # to make it durable. Not more than a few chunks are in memory at a time.
    encoded: dict[str, Buffer] = {}
    array = _array_in_memory(encoded, (n_rows, dim), rows, dtype)
    sums: list[FileSum] = []
    with ThreadPoolExecutor(_PUTS_AT_ONCE) as pool:
        waiting = deque([pool.submit(_put, folder, _METADATA, encoded.pop(_METADATA))])
        for number, block in enumerate(blocks):
            array[number * rows : number * rows + len(block)] = block
            name = _chunk_name(number)
            waiting.append(pool.submit(_put, folder, name, encoded.pop(name)))
            if len(waiting) > _PUTS_AT_ONCE:
                sums.append(waiting.popleft().result())
        sums += [put.result() for put in waiting]
    return tuple(sorted(sums, key=lambda file: file.path))


def _array_in_memory(
    encoded: dict[str, Buffer], shape: tuple[int, int], chunk_rows: int, dtype: str
) -> Array[Any]:
    """Return an array whose metadata and chunks, as they are written, appear in `encoded`."""
    import zarr
    from zarr.codecs import Crc32cCodec
    from zarr.storage import MemoryStore

    code, fill_value = DTYPES[dtype]
    return zarr.create_array(
        store=MemoryStore(encoded),
        shape=shape,
        chunks=(chunk_rows, shape[1]),
        dtype=code,
        fill_value=fill_value,
        filters=None,
        compressors=[Crc32cCodec()],
        config={"write_empty_chunks": True},  # a black picture equals the fill value, and counts
    )


def _put(folder: Location, name: str, encoded: Buffer) -> FileSum:
    data = encoded.to_bytes()
    (folder / name).put(data)
    return FileSum(name, len(data), crc32c(_summed_bytes(name, data)))


def _chunk_name(number: int) -> str:
    return f"{_CHUNKS}{number}/0"


def _summed_bytes(name: str, data: bytes) -> NDArray[np.uint8]:
    """Return the bytes of a file that its recorded checksum is about."""
    return np.frombuffer(data, np.uint8)[: -_SUM_BYTES if name.startswith(_CHUNKS) else None]


def row_sums(rows: Rows) -> NDArray[np.uint32]:
    """Return the CRC-32C of each row's bytes, shape (n,)."""
    octets = np.ascontiguousarray(rows).view(np.uint8)
    return np.fromiter((crc32c(row) for row in octets), dtype=np.uint32, count=len(rows))


def file_sizes(folder: Location) -> dict[str, int]:
    """Return the size in bytes of every file of an encoder's segments, by path below `seg`."""
    return {entry.name: entry.size for entry in (folder / SEGMENTS).list(deep=True)}


def check_sizes(folder: Location, record: Record, sizes: Mapping[str, int]) -> None:
    """Check that every file of a segment is there, in full size, and its metadata intact.

    Parameters
    ----------
    folder
        Folder of the encoder.
    record
        Record of the segment.
    sizes
        Size of every file, from `file_sizes`: one listing serves all segments.

    Raises
    ------
    StoreCorruptError
        A file is missing, has another size, or is damaged metadata.
    """
    for file in record.files:
        path = segment_folder(folder, record.id) / file.path
        size = sizes.get(f"{record.id}.zarr/{file.path}")
        if size is None:
            raise StoreCorruptError(f"{path} is missing; {_REPAIR}", is_missing=True)
        if size != file.size:
            raise StoreCorruptError(f"{path} has {size} bytes, expected {file.size}; {_REPAIR}")
        if not file.path.startswith(_CHUNKS) and check_file(folder, record, file):
            raise StoreCorruptError(f"{path} does not match its checksum; {_REPAIR}")


def check_file(folder: Location, record: Record, file: FileSum) -> str | None:
    """Return what is wrong with one file of a segment, or None."""
    try:
        data = (segment_folder(folder, record.id) / file.path).read()
    except FileNotFoundError:
        return "is missing"
    if len(data) != file.size:
        return f"has {len(data)} bytes, expected {file.size}"
    is_chunk = file.path.startswith(_CHUNKS)
    stated = int.from_bytes(data[-_SUM_BYTES:], "little") if is_chunk else file.crc32c
    if not crc32c(_summed_bytes(file.path, data)) == file.crc32c == stated:
        return "does not match its checksum"
    return None


def is_complete(segment: Location) -> bool:
    """Tell a segment that lost its record from half a segment whose write a power cut ended."""
    try:
        metadata = json.loads((segment / _METADATA).read())
        n_rows = int(metadata["shape"][0])
        chunk_rows = int(metadata["chunk_grid"]["configuration"]["chunk_shape"][0])
    except (FileNotFoundError, ValueError, KeyError, TypeError, IndexError):
        return False
    names = {entry.name for entry in segment.list(deep=True)}
    return names >= {_chunk_name(number) for number in range(-(-n_rows // chunk_rows))}


def read_rows(folder: Location, record: Record, rows: Codes, out: Rows, places: Codes) -> None:
    """Copy rows of a segment into an array, checked.

    Parameters
    ----------
    folder
        Folder of the encoder.
    record
        Record of the segment.
    rows
        Numbers of the wanted rows in the segment, ascending, shape (k,).
    out
        Array to be filled, shape (n, dim), of the segment's type, C-contiguous.
    places
        Row of `out` that each wanted row goes to, shape (k,).

    Raises
    ------
    StoreCorruptError
        A file is missing, short, or does not match its checksum.
    """
    chunks = rows // record.chunk_rows
    for chunk in np.unique(chunks):
        first, last = np.searchsorted(chunks, [chunk, chunk + 1])
        wanted, targets = rows[first:last] - chunk * record.chunk_rows, places[first:last]
        # One row costs a seek and a checksum call, a whole chunk is read at memory speed: the two
        # meet at about one row in sixteen.
        is_long = record.dim * out.itemsize > _LONG_ROW
        if is_long or 16 * len(wanted) < record.chunk_rows:
            _read_single_rows(folder, record, int(chunk), wanted, out, targets)
        else:
            _read_chunk(folder, record, int(chunk), wanted, out, targets)


def _read_chunk(
    folder: Location,
    record: Record,
    chunk: int,
    wanted: Codes,
    out: Rows,
    targets: Codes,
) -> None:
    name, n_rows = _chunk_name(chunk), record.chunk_rows
    start = int(targets[0])
    # All of a chunk, in order, to one place: the usual full read, straight into the result.
    is_direct = len(wanted) == n_rows and bool(np.all(np.diff([wanted, targets]) == 1))
    values = out[start : start + n_rows] if is_direct else np.empty((n_rows, record.dim), out.dtype)
    octets = values.reshape(-1).view(np.uint8)
    path = segment_folder(folder, record.id) / name
    expected = next((file.crc32c for file in record.files if file.path == name), None)
    if _read_into(path, octets.data) != octets.size or crc32c(octets) != expected:
        raise StoreCorruptError(
            f"{path} does not match its checksum; {len(wanted)} wanted rows lie in it, first image "
            f"{record.keys[chunk * n_rows + int(wanted[0])][:12]}...; {_REPAIR}"
        )
    if not is_direct:
        out[targets] = values[wanted]


def _read_single_rows(
    folder: Location,
    record: Record,
    chunk: int,
    wanted: Codes,
    out: Rows,
    targets: Codes,
) -> None:
    path = segment_folder(folder, record.id) / _chunk_name(chunk)
    octets = out.view(np.uint8)
    n_bytes = record.dim * out.itemsize
    for row, place, n_rows in _neighbours(wanted.tolist(), targets.tolist()):
        block = octets[place : place + n_rows]
        n_read = _read_into(path, block.reshape(-1).data, row * n_bytes)
        first = chunk * record.chunk_rows + row
        for number, one_row in enumerate(block, first):
            if (number - first + 1) * n_bytes > n_read or crc32c(one_row) != record.sums[number]:
                raise StoreCorruptError(
                    f"{path}: row {row + number - first}, image {record.keys[number][:12]}..., "
                    f"does not match its checksum; {_REPAIR}"
                )


def _neighbours(rows: list[int], places: list[int]) -> Iterator[tuple[int, int, int]]:
    """Yield first row, first place and number of rows that lie side by side in both."""
    start = 0
    for end in range(1, len(rows) + 1):
        is_next = end < len(rows) and (
            rows[end] - rows[end - 1] == 1 and places[end] - places[end - 1] == 1
        )
        if not is_next:
            yield rows[start], places[start], end - start
            start = end


def _read_into(file: Location, buffer: memoryview, start: int = 0) -> int:
    try:
        return file.read_into(buffer, start)
    except FileNotFoundError:
        raise StoreCorruptError(f"{file} is missing; {_REPAIR}", is_missing=True) from None


def intact_rows(folder: Location, record: Record) -> Codes:
    """Return the numbers of a segment's rows that match their own checksum, ascending, shape (k,).

    One chunk at a time is in memory.
    """
    block = np.empty((record.chunk_rows, record.dim), record.dtype)
    octets = block.view(np.uint8)
    n_bytes, intact = octets.shape[1], []
    for first in range(0, len(record.keys), record.chunk_rows):
        file = segment_folder(folder, record.id) / _chunk_name(first // record.chunk_rows)
        try:
            n_read = file.read_into(octets.reshape(-1).data)
        except FileNotFoundError:
            continue
        n_rows = min(len(block), len(record.keys) - first, n_read // n_bytes)
        intact += [first + n for n in range(n_rows) if crc32c(octets[n]) == record.sums[first + n]]
    return np.array(intact, dtype=np.int64)


def salvaged_rows(folder: Location, record: Record, rows: Codes) -> Rows:
    """Return rows of a damaged segment, each against its own checksum, shape (k, dim).

    Parameters
    ----------
    folder
        Folder of the encoder.
    record
        Record of the segment.
    rows
        Numbers of the wanted rows, ascending, shape (k,); see `intact_rows`.

    Raises
    ------
    StoreCorruptError
        One of them is damaged by now.
    """
    out = np.empty((len(rows), record.dim), record.dtype)
    chunks = rows // record.chunk_rows
    for chunk in np.unique(chunks):
        targets = np.flatnonzero(chunks == chunk)
        wanted = rows[targets] - chunk * record.chunk_rows
        _read_single_rows(folder, record, int(chunk), wanted, out, targets)
    return out
