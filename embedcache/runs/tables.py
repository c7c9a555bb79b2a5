"""What a run predicted and how it scored, as the tables that SQL reads, and back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any, Final, get_args

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embedcache.data.predictions import Answers, LabelSets, Measurements, Predictions, Role
from embedcache.data.task_names import TaskName
from embedcache.scoring.choices import Level, Scoring
from embedcache.scoring.estimates import Estimate

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
# Tables of a run; the answers of each fold's probe about external cohorts came with version 2.
SCHEMAS: Final = {
    "predictions": PREDICTIONS,
    "metrics": METRICS,
    "fold_predictions": PREDICTIONS,
}
# Columns without which a row says nothing; NULL elsewhere means that a task has no such value.
_NEVER_NULL: Final = {
    PREDICTIONS: ("image_id", "patient_id", "cohort", "role", "label"),
    METRICS: ("cohort", "role", "scoring", "level", "metric", "value", "n_patients", "n_images"),
}
# Content of columns that a run does not have because it was written before they were there.
_ABSENT: Final = {"level": "image"}


def with_all_columns(table: pa.Table, name: str) -> pa.Table:
    """Return a stored table with every column of its schema, in its order and of its type.

    Raises
    ------
    ValueError
        A column that every row needs has NULL, as where it is missing.
    """
    schema = SCHEMAS[name]
    for field in schema:
        if field.name not in table.column_names:
            values = pa.array([_ABSENT.get(field.name)] * len(table), field.type)
            table = table.append_column(field.name, values)
    for column in _NEVER_NULL[schema]:
        if table[column].null_count:
            raise ValueError(f"column {column} has NULL")
    return table.select(schema.names).cast(schema)


def with_run_id(table: pa.Table, run_id: str) -> pa.Table:
    """Return a table of a run with that name of the run in every row."""
    names = pa.repeat(pa.scalar(run_id), len(table))
    return table.set_column(table.column_names.index("run_id"), "run_id", names)


def metrics_table(run_id: str, estimates: Iterable[Estimate]) -> pa.Table:
    """Return the scores of a run as a table."""
    rows = [
        {**asdict(score), "run_id": run_id, "label": score.label or None} for score in estimates
    ]
    return pa.Table.from_pylist(rows, schema=METRICS)


def estimates_of(table: pa.Table) -> tuple[Estimate, ...]:
    """Return the scores in a table of metrics."""
    rows = table.drop_columns(["run_id"]).to_pylist()
    for column, words in (("role", Role), ("scoring", Scoring), ("level", Level)):
        if unknown := {row[column] for row in rows} - set(get_args(words)):
            raise ValueError(f"no {column} {unknown.pop()!r}")
    return tuple(Estimate(**{**row, "label": row["label"] or ""}) for row in rows)


def predictions_table(run_id: str, answers: Iterable[Answers]) -> pa.Table:
    """Return the answers about several cohorts as one table, a row an image."""
    return pa.concat_tables(
        [PREDICTIONS.empty_table(), *(_cohort_table(run_id, cohort) for cohort in answers)]
    )


def _cohort_table(run_id: str, answers: Answers) -> pa.Table:
    """Return the rows of one cohort; a column that has no meaning for the task is NULL."""
    n = len(answers.image_id)
    columns = {
        "run_id": [run_id] * n,
        "image_id": answers.image_id,
        "patient_id": answers.patient_id,
        "cohort": answers.cohort,
        "role": [answers.role] * n,
        "fold": [None if fold < 0 else fold for fold in answers.fold.tolist()],
        **_answer_columns(answers),
    }
    return pa.table(
        [columns.get(field.name, pa.nulls(n, field.type)) for field in PREDICTIONS],
        schema=PREDICTIONS,
    )


def _answer_columns(answers: Answers) -> dict[str, Any]:
    if isinstance(answers, Measurements):
        values = answers.value.tolist()
        return {
            "label": [_number(truth) for truth in answers.truth.tolist()],
            "predicted": [f"{value:g}" for value in values],
            "value": values,
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


def _number(value: float) -> str:
    """Return the shortest text that reads back as the very number."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


def _joined(names: Sequence[str], has: NDArray[np.bool_]) -> list[str]:
    return ["|".join(np.array(names)[row].tolist()) or "-" for row in has]


def _map(names: Sequence[str], values: NDArray[np.float64]) -> pa.MapArray:
    n, width = values.shape
    return pa.MapArray.from_arrays(
        # Offsets of the rows in the two flat arrays: all have the same keys.
        pa.array(range(0, n * width + 1, width), pa.int32()),
        pa.array(list(names) * n, pa.string()),
        pa.array(values.reshape(-1), pa.float64()),
    )


def _temperatures(predictions: Predictions) -> pa.Array:
    if predictions.temperature is None:
        return pa.nulls(len(predictions.image_id), pa.float64())
    # `from_pandas` turns NaN, where a fold has no temperature, into NULL.
    return pa.array(predictions.temperature, pa.float64(), from_pandas=True)


def answers_of(table: pa.Table, task: TaskName) -> tuple[Answers, ...]:
    """Return the answers in a table of predictions, a cohort each, in the order of the table."""
    if unknown := set(table["role"].to_pylist()) - set(get_args(Role)):
        raise ValueError(f"no role {unknown.pop()!r}")
    cohorts = list(zip(*(table[name].to_pylist() for name in ("role", "cohort")), strict=True))
    return tuple(
        _cohort_answers(table.filter(pa.array([cohort == key for cohort in cohorts])), task)
        for key in dict.fromkeys(cohorts)
    )


def _cohort_answers(table: pa.Table, task: TaskName) -> Answers:
    names = ("image_id", "patient_id", "cohort")
    about: dict[str, Any] = {
        "role": table["role"][0].as_py(),
        **{name: tuple(table[name].to_pylist()) for name in names},
        # NULL in SQL and -1 in memory: of no fold, as external cohorts are.
        "fold": table["fold"].fill_null(-1).to_numpy().astype(np.int64),
    }
    label = table["label"].to_pylist()
    if task == "regression":
        truth = np.array([float(text) for text in label])
        return Measurements(truth=truth, value=table["value"].to_numpy(), **about)
    p = table["p"].combine_chunks()
    # Each row names all classes, in one order; see `_map`.
    width = len(p.items) // len(table)
    classes = tuple(p.keys[:width].to_pylist())
    probability = p.items.to_numpy().reshape(len(table), width)
    if task == "multilabel":
        sets = [frozenset(text.split("|")) for text in label]
        truth = np.array([[name in labels for name in classes] for labels in sets], bool)
        return LabelSets(names=classes, truth=truth, probability=probability, **about)
    if unknown := set(label) - set(classes):
        raise ValueError(f"label {unknown.pop()!r} is none of its classes")
    temperature = table["temperature"].to_numpy()
    return Predictions(
        classes=classes,
        label=tuple(label),
        probability=probability,
        temperature=None if np.isnan(temperature).all() else temperature,
        **about,
    )
