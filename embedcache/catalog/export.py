"""Embeddings in a file of their own: Parquet, NumPy or safetensors."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from embedcache.data.embeddings import LabelledEmbeddings
from embedcache.errors import RunError
from embedcache.files.durable import replace, write_error

_NAMES: Final = ("image_id", "patient_id", "cohort", "label")


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
    if not file.exists() or (file.is_file() and not file.is_symlink()):
        replace(file, data)
        return [file]
    try:
        file.write_bytes(data)
    except OSError as error:
        raise write_error(file, error) from error
    return []


def _parquet(rows: LabelledEmbeddings, file: Path) -> list[Path]:
    vector = pa.FixedSizeListArray.from_arrays(pa.array(rows.X.reshape(-1)), rows.X.shape[1])
    columns = {name: pa.array(getattr(rows, name), pa.string()) for name in _NAMES}
    table = pa.table({**columns, "embedding": vector}).replace_schema_metadata(_origin(rows))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return write_file(file, sink.getvalue().to_pybytes())


def _npy(rows: LabelledEmbeddings, file: Path) -> list[Path]:
    sink = io.BytesIO()
    np.save(sink, rows.X, allow_pickle=False)
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_NAMES)
    writer.writerows(zip(*(getattr(rows, name) for name in _NAMES), strict=True))
    beside = file.with_suffix(".rows.csv")
    return [
        *write_file(file, sink.getvalue()),
        *write_file(beside, text.getvalue().encode()),
    ]


def _safetensors(rows: LabelledEmbeddings, file: Path) -> list[Path]:
    from safetensors.numpy import save

    names = {name: json.dumps(getattr(rows, name)) for name in _NAMES}
    return write_file(file, save({"embedding": rows.X}, metadata={**_origin(rows), **names}))


def _origin(rows: LabelledEmbeddings) -> dict[str, str]:
    return {"encoder": rows.encoder, "fingerprint": rows.fingerprint}


FORMATS: Final[Mapping[str, Callable[[LabelledEmbeddings, Path], list[Path]]]] = {
    "parquet": _parquet,
    "npy": _npy,
    "safetensors": _safetensors,
}


def write_embeddings(rows: LabelledEmbeddings, file: Path, kind: str | None = None) -> list[Path]:
    """Write embeddings and return the files written; a pipe or a device is none.

    Parameters
    ----------
    rows
        What to write.
    file
        Where; its suffix says the format unless `kind` does.
    kind
        'parquet': one row an image, `embedding` a fixed-size list. 'npy': the matrix, and the
        names beside it, suffix '.rows.csv'. 'safetensors': tensor `embedding`, names as JSON
        metadata.

    Raises
    ------
    RunError
        No such format.
    StoreWriteError
        The file system refused.
    """
    kind = kind or file.suffix.removeprefix(".")
    if kind not in FORMATS:
        raise RunError(
            f"{file}: no format '{kind}'; expected {', '.join(FORMATS)} as suffix or --format"
        )
    return FORMATS[kind](rows, file)


def table_bytes(table: pa.Table, kind: str) -> bytes:
    """Return a query's result as a file's bytes.

    Parameters
    ----------
    table
        The result.
    kind
        'csv' and 'json' (a list of objects) are text, nested values as JSON; 'parquet' keeps types.
    """
    if kind == "parquet":
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        return bytes(sink.getvalue().to_pybytes())
    rows = plain_rows(table)
    if kind == "json":
        return json.dumps(rows, indent=1, ensure_ascii=False, default=str).encode() + b"\n"
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table.column_names)
    for row in rows:
        writer.writerow(
            json.dumps(v, ensure_ascii=False, default=str) if isinstance(v, list | dict) else v
            for v in row.values()
        )
    return text.getvalue().encode()


def plain_rows(table: pa.Table) -> list[dict[str, Any]]:
    """Return a table's rows as plain values, nested ones included."""
    return [{name: plain_value(value) for name, value in row.items()} for row in table.to_pylist()]


def plain_value(value: Any) -> Any:
    """Return a value as one that JSON can hold.

    A MAP, which Arrow hands over as pairs, is a dict; a whole Decimal, which the sum of a BIGINT
    column is, an int; a number that is not finite, None.
    """
    if isinstance(value, Decimal):
        return int(value) if value.as_tuple().exponent == 0 else float(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): plain_value(one) for key, one in value.items()}
    if isinstance(value, list):
        pairs = bool(value) and all(isinstance(one, tuple) for one in value)
        return plain_value(dict(value)) if pairs else [plain_value(one) for one in value]
    return value
