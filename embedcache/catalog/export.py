"""Embeddings in a file of their own: Parquet, NumPy or safetensors."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from embedcache.catalog.output import write_file
from embedcache.data.embeddings import LabelledEmbeddings
from embedcache.data.outputs import check_output
from embedcache.errors import RunError

_NAMES: Final = ("image_id", "patient_id", "cohort", "label")


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
    return [
        *write_file(file, sink.getvalue()),
        *write_file(_beside(file), text.getvalue().encode()),
    ]


def _beside(file: Path) -> Path:
    """Return the file that has the names of a matrix's rows."""
    return file.with_suffix(".rows.csv")


def _safetensors(rows: LabelledEmbeddings, file: Path) -> list[Path]:
    from safetensors.numpy import save

    # Metadata of a safetensors file are texts, so lists go in as JSON.
    names = {name: json.dumps(getattr(rows, name)) for name in _NAMES}
    return write_file(file, save({"embedding": rows.X}, metadata={**_origin(rows), **names}))


def _origin(rows: LabelledEmbeddings) -> dict[str, str]:
    return {"encoder": rows.encoder, "fingerprint": rows.fingerprint}


FORMATS: Final[Mapping[str, Callable[[LabelledEmbeddings, Path], list[Path]]]] = {
    "parquet": _parquet,
    "npy": _npy,
    "safetensors": _safetensors,
}


def write_embeddings(
    rows: LabelledEmbeddings, file: Path, kind: str | None = None, *, overwrite: bool = False
) -> list[Path]:
    """Write embeddings and return the files written; a pipe or a device is none.

    Parameters
    ----------
    rows
        Embeddings with the names of their images.
    file
        File to write; its suffix says the format unless `kind` does.
    kind
        'parquet': one row an image, `embedding` a fixed-size list. 'npy': the matrix, and the
        names beside it, suffix '.rows.csv'. 'safetensors': tensor `embedding`, names as JSON
        metadata.
    overwrite
        Whether a file that is no earlier output is replaced too; see `check_output`.

    Raises
    ------
    RunError
        No such format, or something else is in the way.
    StoreWriteError
        The file system refused.
    """
    kind = kind or file.suffix.removeprefix(".")
    if kind not in FORMATS:
        raise RunError(
            f"{file}: no format '{kind}'; expected {', '.join(FORMATS)} as suffix or --format"
        )
    check_output(file, kind, overwrite=overwrite)
    if kind == "npy":
        check_output(_beside(file), "csv", overwrite=overwrite)
    return FORMATS[kind](rows, file)
