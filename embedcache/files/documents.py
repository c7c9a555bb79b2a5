"""Stored files that carry their own checksum: sealed JSON documents, and Parquet tables by name.

A JSON document holds the CRC-32C of its other keys. A table's name ends in its own CRC-32C,
`<stem>.<crc32c>.parquet`. So a flipped bit anywhere in either is found by whoever reads it.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from embedcache.errors import EmbedcacheError, StoreCorruptError, StoreReadError
from embedcache.files.backend import Location
from embedcache.files.durable import canonical_json, crc32c
from embedcache.files.shapes import DOCUMENTS, is_mapping

if TYPE_CHECKING:
    import pyarrow as pa

_REPAIR: Final = "run `embedcache verify --repair`"
_TABLE_NAME: Final = re.compile(r"(?P<stem>.+)\.(?P<crc32c>[0-9a-f]{8})\.parquet")


def seal(document: dict[str, Any]) -> bytes:
    """Return a JSON text of `document` that carries its own CRC-32C."""
    sealed = {**document, "crc32c": crc32c(canonical_json(document))}
    return json.dumps(sealed, indent=1, ensure_ascii=False).encode() + b"\n"


def unseal(data: bytes, name: object) -> dict[str, Any]:
    """Return the document in a sealed JSON text; `name` is what an error calls the file.

    Raises
    ------
    StoreCorruptError
        The text is no JSON, or does not match its checksum.
    """
    document: dict[str, Any] = {}
    try:
        document = json.loads(data)
        is_whole = document.pop("crc32c") == crc32c(canonical_json(document))
    # No JSON, or no object, or one without a checksum, or one nested too deep to be one of ours.
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError):
        is_whole = False
    if not is_whole:
        raise StoreCorruptError(f"{name} does not match its checksum; {_REPAIR}")
    return document


def read_stored(file: Location) -> bytes:
    """Return the bytes of a file that ought to be there.

    Raises
    ------
    StoreCorruptError
        The file is missing.
    """
    try:
        return file.read()
    except FileNotFoundError:
        raise StoreCorruptError(f"{file} is missing; {_REPAIR}", is_missing=True) from None


def read_document(file: Location) -> dict[str, Any]:
    """Return a sealed JSON document.

    Raises
    ------
    StoreCorruptError
        The file is missing, is no JSON, or does not match its checksum.
    StoreReadError
        It is whole, and of another shape than documents of its name.
    """
    document = unseal(read_stored(file), file)
    with known_shape(file):
        if not DOCUMENTS.get(file.name, is_mapping)(document):
            raise ValueError("keys or values are missing")
    return document


@contextlib.contextmanager
def known_shape(name: object) -> Iterator[None]:
    """Turn what goes wrong where something whole is not as this release expects into one line.

    Parameters
    ----------
    name
        Name of the file in the message.

    Raises
    ------
    StoreReadError
        The block has met another shape.
    """
    try:
        yield
    except EmbedcacheError:
        raise
    # Arrow's own errors are among them.
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise StoreReadError(
            f"{name}: of a shape that this release does not know ({error!r}); read it with the "
            "release that wrote it"
        ) from None


def table_bytes(table: pa.Table) -> bytes:
    """Return the bytes of a table as a Parquet file."""
    import pyarrow as pa  # late: a query on a fresh catalog reads documents, but no table
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue().to_pybytes())


def parse_table(data: bytes) -> pa.Table:
    """Return the table in a Parquet file's bytes, read by one thread.

    These files are small, and Arrow's threads, where a process ends while they start, abort it.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    return pq.ParquetFile(pa.BufferReader(data), pre_buffer=False).read(use_threads=False)


def put_table(folder: Location, stem: str, table: pa.Table) -> Location:
    """Put a table under a name with its checksum and return that name."""
    data = table_bytes(table)
    file = folder / f"{stem}.{crc32c(data):08x}.parquet"
    with contextlib.suppress(FileExistsError):  # equal content: put before
        file.put(data)
    return file


def table_files(folder: Location) -> dict[str, Location]:
    """Return the tables of a folder by stem, sorted by name; files of other names are left out."""
    tables: dict[str, Location] = {}
    for entry in folder.list():
        if match := _TABLE_NAME.fullmatch(entry.name):
            tables.setdefault(match["stem"], folder / entry.name)
    return tables


def find_table(folder: Location, stem: str) -> Location | None:
    """Return the table of a stem, if there is one."""
    return table_files(folder).get(stem)


def table_stem(name: str) -> str:
    """Return the stem that `put_table` was given for a name."""
    return name.rsplit(".", 2)[0]


def checked_bytes(file: Location) -> bytes:
    """Return the bytes of a table, checked against the checksum in its name.

    Raises
    ------
    StoreCorruptError
        The file is missing or does not match.
    """
    data = read_stored(file)
    if file.name.split(".")[-2] != f"{crc32c(data):08x}":
        raise StoreCorruptError(f"{file} does not match the checksum in its name; {_REPAIR}")
    return data


def read_table(file: Location) -> pa.Table:
    """Return a table that `put_table` has put.

    Raises
    ------
    StoreCorruptError
        The file is missing or does not match the checksum in its name.
    StoreReadError
        It is whole, and no table.
    """
    data = checked_bytes(file)
    with known_shape(file):
        return parse_table(data)
