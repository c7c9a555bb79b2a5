"""Runs on disk: one write-once folder each, its tables checksummed by the record beside them."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from embedcache.data.predictions import Answers, LabelSets, Measurements, Predictions
from embedcache.errors import StoreCorruptError
from embedcache.files.backend import Location, on_disk
from embedcache.files.documents import parse_table, read_document, seal
from embedcache.files.durable import TEMPORARY, crc32c, fsync_tree, write_error
from embedcache.runs.record import Run
from embedcache.scoring.estimates import Estimate

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
        ("temperature", pa.float64()),
        ("correct", pa.bool_()),
        ("value", pa.float64()),
    ]
)
METRICS: Final = pa.schema(
    [
        ("run_id", pa.string()),
        ("cohort", pa.string()),
        ("role", pa.string()),
        ("scoring", pa.string()),
        ("level", pa.string()),
        ("metric", pa.string()),
        ("label", pa.string()),
        ("value", pa.float64()),
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("n_patients", pa.int32()),
        ("n_images", pa.int32()),
    ]
)
SCHEMAS: Final = dict(zip(TABLES, (PREDICTIONS, METRICS), strict=True))
# What a run says that was written before a column was there.
_BEFORE: Final = {"temperature": None, "value": None, "level": "image"}


def write_run(
    root: Path | Location, run: Run, predictions: Iterable[Answers], estimates: Iterable[Estimate]
) -> Path:
    """Publish a run and return its folder; a run that is there already is left as it is.

    Raises
    ------
    StoreWriteError
        The file system refused; nothing was published.
    """
    root = Path(root)
    folder = root / run.run_id
    aside = root / f"{TEMPORARY}{secrets.token_hex(8)}"
    tables = {
        "predictions": pa.concat_tables(
            [PREDICTIONS.empty_table(), *(_rows(run.run_id, one) for one in predictions)]
        ),
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
        (aside / RECORD).write_bytes(seal({**asdict(run), "tables": sums}))
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


def _rows(run_id: str, answers: Answers) -> pa.Table:
    """Return the rows of one cohort; a column that says nothing there is NULL."""
    n = len(answers.image_id)
    columns = {
        "run_id": [run_id] * n,
        "image_id": answers.image_id,
        "patient_id": answers.patient_id,
        "cohort": answers.cohort,
        "role": [answers.role] * n,
        "fold": [None if fold < 0 else fold for fold in answers.fold.tolist()],
        **_said(answers),
    }
    return pa.table(
        [columns.get(field.name, pa.nulls(n, field.type)) for field in PREDICTIONS],
        schema=PREDICTIONS,
    )


def _said(answers: Answers) -> dict[str, Any]:
    if isinstance(answers, Measurements):
        said = answers.value.tolist()
        return {
            "label": [f"{one:g}" for one in answers.truth.tolist()],
            "predicted": [f"{one:g}" for one in said],
            "value": said,
        }
    if isinstance(answers, LabelSets):
        called = answers.called()
        return {
            "label": _joined(answers.names, answers.truth),
            "predicted": _joined(answers.names, called),
            "p": _map(answers.names, answers.probability),
            "correct": (called == answers.truth).all(axis=1),
        }
    classes, best = answers.classes, answers.predicted()
    return {
        "label": answers.label,
        "predicted": [classes[code] for code in best],
        "predicted_masked": [classes[code] for code in answers.predicted(masked=True)],
        "probability": answers.probability.max(axis=1),
        "p": _map(classes, answers.probability),
        "temperature": _temperatures(answers),
        "correct": best == answers.codes(),
    }


def _joined(names: Sequence[str], has: NDArray[np.bool_]) -> list[str]:
    return ["|".join(np.array(names)[row].tolist()) or "-" for row in has]


def _map(names: Sequence[str], values: NDArray[np.float64]) -> pa.MapArray:
    n, width = values.shape
    return pa.MapArray.from_arrays(
        pa.array(range(0, n * width + 1, width), pa.int32()),
        pa.array(list(names) * n, pa.string()),
        pa.array(values.reshape(-1), pa.float64()),
    )


def _temperatures(predictions: Predictions) -> pa.Array:
    if predictions.temperature is None:
        return pa.nulls(len(predictions.image_id), pa.float64())
    return pa.array(predictions.temperature, pa.float64(), from_pandas=True)


def run_folders(root: Path | Location) -> list[Path]:
    """Return the published runs' folders, by name."""
    return sorted(
        path for path in Path(root).glob("*") if path.is_dir() and not path.name.startswith(".")
    )


def read_run(folder: Path | Location) -> dict[str, Any]:
    """Return the record of a run.

    Raises
    ------
    StoreCorruptError
        It is missing or does not match its checksum.
    """
    return read_document(on_disk(Path(folder)) / RECORD)


def read_run_table(folder: Path | Location, name: str) -> pa.Table:
    """Return the predictions or the metrics of a run, checked against its record.

    Raises
    ------
    StoreCorruptError
        The file is missing or does not match the checksum in the record.
    """
    table = parse_table(_checked(folder, name, read_run(folder)["tables"]))
    for column in SCHEMAS[name].names:
        if column not in table.column_names:
            said = pa.array([_BEFORE[column]] * len(table), SCHEMAS[name].field(column).type)
            table = table.append_column(column, said)
    return table.select(SCHEMAS[name].names)


def read_predictions(folder: Path | Location) -> list[Predictions]:
    """Return what a run predicted, one for each cohort, in the order in which they were written.

    Raises
    ------
    StoreCorruptError
        As `read_run_table`.
    """
    table = read_run_table(folder, "predictions")
    cohorts = list(zip(*(table[name].to_pylist() for name in ("role", "cohort")), strict=True))
    return [
        _read_cohort(table.filter(pa.array([one == key for one in cohorts])), key[0])
        for key in dict.fromkeys(cohorts)
    ]


def _read_cohort(table: pa.Table, role: Any) -> Predictions:
    p = table["p"].combine_chunks()
    n_classes = len(p.items) // len(table)
    names = ("image_id", "patient_id", "cohort", "label")
    temperature = table["temperature"].to_numpy()
    return Predictions(
        role=role,
        classes=tuple(p.keys[:n_classes].to_pylist()),
        **{name: tuple(table[name].to_pylist()) for name in names},
        fold=table["fold"].fill_null(-1).to_numpy().astype(np.int64),
        probability=p.items.to_numpy().reshape(len(table), n_classes),
        temperature=None if np.isnan(temperature).all() else temperature,
    )


def _checked(folder: Path | Location, name: str, sums: dict[str, list[int]]) -> bytes:
    path = Path(folder) / f"{name}.parquet"
    way_out = "run `embedcache verify --repair`, then the probe again"
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise StoreCorruptError(f"{path} is missing; {way_out}", is_missing=True) from None
    if [len(data), crc32c(data)] != sums[name]:
        raise StoreCorruptError(f"{path} does not match its checksum; {way_out}")
    return data


def check_runs(root: Path | Location) -> Iterator[tuple[Path, str]]:
    """Yield each file of a run that is damaged or missing, and what is wrong with it."""
    for folder in run_folders(root):
        try:
            sums = read_run(folder)["tables"]
        except StoreCorruptError as error:
            yield folder / RECORD, error.problem
            continue
        for name in TABLES:
            try:
                _checked(folder, name, sums)
            except StoreCorruptError as error:
                yield folder / f"{name}.parquet", error.problem


def _problem(error: StoreCorruptError) -> str:
    return "is missing" if "is missing" in str(error) else "does not match its checksum"
