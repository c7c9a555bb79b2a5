"""The result of a query as rows, as text and as a file's bytes."""

from __future__ import annotations

import csv
import errno
import io
import json
import math
import os
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedcache.errors import CatalogError, StoreWriteError
from embedcache.files.durable import replace, write_error

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, slots=True)
class QueryRows:
    """The result of a query as values that JSON can hold.

    Parameters
    ----------
    columns
        Names of the columns, unique but for case.
    rows
        One tuple a row, in the order of the query.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]

    def __len__(self) -> int:
        return len(self.rows)


def write_file(file: Path, data: bytes) -> list[Path]:
    """Put `data` at `file` in one step; a pipe, a device or a link is written into as it stands.

    Returns
    -------
    The file, or nothing where it is none.

    Raises
    ------
    StoreWriteError
        The file system refused.
    """
    # A rename into place would put a file where a pipe, a device or a link was.
    if not file.exists() or (file.is_file() and not file.is_symlink()):
        replace(file, data)
        return [file]
    try:
        # Opened for waiting, a pipe that no program reads would wait for one for ever.
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NONBLOCK, 0o600)
        os.set_blocking(descriptor, True)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
    except OSError as error:
        if error.errno == errno.ENXIO and file.is_fifo():
            raise StoreWriteError(
                f"{file}: a pipe that no program reads; start the reader first"
            ) from None
        raise write_error(file, error) from error
    return []


def text_bytes(result: QueryRows, kind: str) -> bytes:
    """Return a query's result as the bytes of a text file.

    Parameters
    ----------
    result
        Columns and rows.
    kind
        'csv', nested values as JSON, or 'json', a list of objects.
    """
    if kind == "json":
        objects = [dict(zip(result.columns, row, strict=True)) for row in result.rows]
        return json.dumps(objects, indent=1, ensure_ascii=False).encode() + b"\n"
    # The csv writer ends the lines itself; the stream must leave them as they are.
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(result.columns)
    for row in result.rows:
        writer.writerow(
            json.dumps(v, ensure_ascii=False) if isinstance(v, list | dict) else v for v in row
        )
    return text.getvalue().encode()


def parquet_bytes(table: pa.Table) -> bytes:
    """Return a query's result as the bytes of a Parquet file, which keeps the types.

    Raises
    ------
    CatalogError
        A column that Parquet cannot hold: a struct or a map of nothing, a time out of range.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    try:
        pq.write_table(table, sink, compression="zstd")
    except pa.ArrowException as error:
        raise CatalogError(
            f"the result cannot be Parquet: {error}; CAST the column to VARCHAR, or leave it out"
        ) from None
    return bytes(sink.getvalue().to_pybytes())


def plain_value(value: Any) -> Any:
    """Return a value as one that JSON can hold.

    A whole Decimal, which the sum of a BIGINT column is, is an int; a number that is not finite,
    None.
    """
    if isinstance(value, Decimal):
        return int(value) if value.as_tuple().exponent == 0 else float(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {name: plain_value(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain_value(inner) for inner in value]
    return value
