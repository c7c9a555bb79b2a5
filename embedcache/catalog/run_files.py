"""Runs on disk: one write-once folder each, its tables checksummed by the record beside them."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from embedcache.durable import (
    TEMPORARY,
    crc32c,
    fsync_tree,
    parse_table,
    read_document,
    seal_document,
    write_error,
)
from embedcache.errors import StoreCorruptError
from embedcache.runs import Estimate, Predictions, Run

RECORD: Final = "run.json"
TABLES: Final = ("predictions", "metrics")

PREDICTIONS: Final = pa.schema(
    [
        ("run_id", pa.string()),
        ("image_id", pa.string()),
        ("patient_id", pa.string()),
        ("cohort", pa.string()),
        ("role", pa.string()),
        ("fold", pa.int32()),
        ("label", pa.string()),
        ("predicted", pa.string()),
        ("predicted_masked", pa.string()),
        ("probability", pa.float64()),
        ("p", pa.map_(pa.string(), pa.float64())),
        ("correct", pa.bool_()),
    ]
)
METRICS: Final = pa.schema(
    [
        ("run_id", pa.string()),
        ("cohort", pa.string()),
        ("role", pa.string()),
        ("scoring", pa.string()),
        ("metric", pa.string()),
        ("label", pa.string()),
        ("value", pa.float64()),
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("n_patients", pa.int32()),
        ("n_images", pa.int32()),
    ]
)


def write_run(
    root: Path, run: Run, predictions: Iterable[Predictions], estimates: Iterable[Estimate]
) -> Path:
    """Publish a run and return its folder; a run that is there already is left as it is.

    Raises
    ------
    StoreWriteError
        The file system refused; nothing was published.
    """
    folder = root / run.run_id
    aside = root / f"{TEMPORARY}{secrets.token_hex(8)}"
    tables = {
        "predictions": pa.concat_tables([_prediction_rows(run.run_id, one) for one in predictions]),
        "metrics": pa.Table.from_pylist(
            [
                {**asdict(one), "run_id": run.run_id, "label": one.label or None}
                for one in estimates
            ],
            schema=METRICS,
        ),
    }
    try:
        aside.mkdir(parents=True)
        sums = {}
        for name, table in tables.items():
            sink = pa.BufferOutputStream()
            pq.write_table(table, sink, compression="zstd")
            data = sink.getvalue().to_pybytes()
            (aside / f"{name}.parquet").write_bytes(data)
            sums[name] = [len(data), crc32c(data)]
        (aside / RECORD).write_bytes(seal_document({**asdict(run), "tables": sums}))
        fsync_tree(aside)
        if not folder.exists():
            aside.rename(folder)
    except OSError as error:
        # Somebody else may have published the same run in this very moment.
        if not folder.exists():
            raise write_error(folder, error) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


def _prediction_rows(run_id: str, predictions: Predictions) -> pa.Table:
    n, classes = len(predictions.image_id), predictions.classes
    best, best_masked = predictions.predicted(), predictions.predicted(masked=True)
    p = pa.MapArray.from_arrays(
        pa.array(range(0, n * len(classes) + 1, len(classes)), pa.int32()),
        pa.array(list(classes) * n, pa.string()),
        pa.array(predictions.probability.reshape(-1), pa.float64()),
    )
    columns = {
        "run_id": [run_id] * n,
        "image_id": predictions.image_id,
        "patient_id": predictions.patient_id,
        "cohort": predictions.cohort,
        "role": [predictions.role] * n,
        "fold": [None if fold < 0 else fold for fold in predictions.fold.tolist()],
        "label": predictions.label,
        "predicted": [classes[code] for code in best],
        "predicted_masked": [classes[code] for code in best_masked],
        "probability": predictions.probability.max(axis=1),
        "p": p,
        "correct": best == predictions.codes(),
    }
    return pa.table([columns[field.name] for field in PREDICTIONS], schema=PREDICTIONS)


def run_folders(root: Path) -> list[Path]:
    """Return the published runs' folders, by name."""
    return sorted(
        path for path in root.glob("*") if path.is_dir() and not path.name.startswith(".")
    )


def read_run(folder: Path) -> dict[str, Any]:
    """Return the record of a run.

    Raises
    ------
    StoreCorruptError
        It is missing or does not match its checksum.
    """
    return read_document(folder / RECORD)


def read_run_table(folder: Path, name: str) -> pa.Table:
    """Return the predictions or the metrics of a run, checked against its record.

    Raises
    ------
    StoreCorruptError
        The file is missing or does not match the checksum in the record.
    """
    return parse_table(_checked(folder, name, read_run(folder)["tables"]))


def _checked(folder: Path, name: str, sums: dict[str, list[int]]) -> bytes:
    path = folder / f"{name}.parquet"
    way_out = "run `embedcache verify --repair`, then the probe again"
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise StoreCorruptError(f"{path} is missing; {way_out}") from None
    if [len(data), crc32c(data)] != sums[name]:
        raise StoreCorruptError(f"{path} does not match its checksum; {way_out}")
    return data


def check_runs(root: Path) -> Iterator[tuple[Path, str]]:
    """Yield each file of a run that is damaged or missing, and what is wrong with it."""
    for folder in run_folders(root):
        try:
            sums = read_run(folder)["tables"]
        except StoreCorruptError as error:
            yield folder / RECORD, _problem(error)
            continue
        for name in TABLES:
            try:
                _checked(folder, name, sums)
            except StoreCorruptError as error:
                yield folder / f"{name}.parquet", _problem(error)


def _problem(error: StoreCorruptError) -> str:
    return "is missing" if "is missing" in str(error) else "does not match its checksum"
