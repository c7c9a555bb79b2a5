"""The record of a run: its request, what was chosen on the way, and when it was made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Final, cast

from embedcache.data.fold_tables import read_fold_table
from embedcache.data.folds import FoldTable
from embedcache.data.question import Question
from embedcache.data.task_names import TaskName
from embedcache.files.shapes import fits
from embedcache.runs import shapes
from embedcache.runs.legacy import request_of_version_1
from embedcache.runs.methods import (
    FinetuneMethod,
    Method,
    ProbeMethod,
    UnknownMethod,
    method_from_document,
)
from embedcache.runs.request import RunData, RunRequest
from embedcache.workspace import Workspace

_FINAL: Final = "final_"
_UNKNOWN: Final = "unknown"


@dataclass(frozen=True, slots=True)
class TableFile:
    """A Parquet file of a run.

    Parameters
    ----------
    name
        Name of the file, beside the record.
    size
        Size in bytes.
    crc32c
        CRC-32C of its bytes.
    """

    name: str
    size: int
    crc32c: int


@dataclass(frozen=True, slots=True)
class TrainingCost:
    """What the training of one fold took.

    Parameters
    ----------
    seconds
        Duration of the fold.
    peak_memory_bytes
        Most memory held at a time.
    device
        Name of the device.
    devices
        Number of devices.
    parameters, parameters_trained
        Number of parameters of the model, and of those that training moves.
    """

    seconds: float
    peak_memory_bytes: int
    device: str
    devices: int
    parameters: int
    parameters_trained: int


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A run as it is kept: enough to repeat it.

    Parameters
    ----------
    request
        What was asked for, and of which data.
    results
        What was chosen on the way, by name; see docs/format.md.
    notes
        What a reader of the scores must know.
    n_skipped
        Number of images left out because they could not be read.
    created
        Time at which the run was made, UTC.
    seconds
        Duration of the run.
    tables
        Parquet files beside the record, by table name.
    stored_id
        Name that the run is stored under; None for that of the request.
    """

    request: RunRequest
    results: Mapping[str, Any]
    notes: tuple[str, ...]
    n_skipped: int
    created: str
    seconds: float
    tables: Mapping[str, TableFile]
    stored_id: str | None = None

    @property
    def run_id(self) -> str:
        """Name of the run."""
        return self.stored_id or self.request.run_id

    @property
    def kind(self) -> str:
        """Kind of run, such as 'probe' or 'finetune'."""
        return self.request.kind

    @property
    def encoder(self) -> str:
        """Name of the encoder."""
        return self.request.encoder

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the encoder's rows."""
        return self.request.fingerprint

    @property
    def task(self) -> TaskName:
        """Kind of label: 'classification', 'regression' or 'multilabel'."""
        return self.request.question.task

    @property
    def method(self) -> Method:
        """What was done to answer the question."""
        return self.request.method

    @property
    def regime(self) -> str:
        """Regime of a training; elsewhere the kind of run."""
        return self.method.regime if isinstance(self.method, FinetuneMethod) else self.kind

    @property
    def label(self) -> str:
        """What was done with the encoder, in a few words."""
        is_usual = isinstance(self.method, ProbeMethod | FinetuneMethod) and self.kind != "control"
        return self.method.label if is_usual else self.kind

    @property
    def train_cohort(self) -> str | None:
        """Name of the training cohort; None where nothing was trained."""
        return self.request.question.train_cohort

    @property
    def seed(self) -> int:
        """Seed of folds, of a training, and of what a score draws; repeats differ in it."""
        return self.request.question.seed

    @property
    def final_settings(self) -> dict[str, float]:
        """Chosen setting of the probe of all training patients, by name, such as C."""
        return {
            name.removeprefix(_FINAL): float(value)
            for name, value in self.results.items()
            if name.startswith(_FINAL)
        }

    @property
    def fold_settings(self) -> dict[str, list[float]]:
        """Chosen setting of each fold's probe, by name."""
        return {name: list(self.results[name]) for name in self.final_settings}

    @property
    def curve(self) -> list[tuple[int, list[float]]]:
        """Number of training patients, and the score of each draw, for each point of a curve."""
        return [
            # Version 1 named the scores after the one metric that its curves had.
            (int(point["n_patients"]), list(point.get("scores", point.get("macro_f1"))))
            for point in self.results.get("points", ())
        ]

    @property
    def training_costs(self) -> list[TrainingCost]:
        """Cost of each fold of a training."""
        # The record says more of each fold than has a type here.
        names = TrainingCost.__dataclass_fields__
        return [
            TrainingCost(**{name: cost[name] for name in names})
            for cost in self.results.get("cost", ())
        ]

    @property
    def best_epochs(self) -> list[int]:
        """Epoch whose weights predicted, for each fold of a training."""
        return list(self.results.get("best_epoch", ()))

    @property
    def compute_share(self) -> float:
        """Share of a training's time spent forward and backward, not waiting for pictures."""
        epochs = self._epochs()
        spent = sum(epoch["seconds"] for epoch in epochs)
        return float(sum(epoch["compute_share"] * epoch["seconds"] for epoch in epochs) / spent)

    @property
    def images_per_s(self) -> float:
        """Images trained on a second, mean over the epochs of all folds."""
        return fmean(epoch["images_per_s"] for epoch in self._epochs())

    def _epochs(self) -> list[Mapping[str, Any]]:
        return [epoch for fold in self.results.get("epochs", ()) for epoch in fold]

    def question(self, workspace: Workspace) -> Question:
        """Return the question that was asked, on the very folds where their table is kept."""
        question, folds_id = self.request.question, self.request.data.folds_id
        patients = None if folds_id is None else read_fold_table(workspace, folds_id)
        if folds_id is None or patients is None:
            return question
        n_folds = question.n_folds or len(set(patients.values()))
        return question.on_folds(FoldTable(folds_id, n_folds, question.seed, patients))

    def results_document(self) -> dict[str, Any]:
        """Return what was chosen on the way and what a reader must know, as JSON can hold it."""
        return {**self.results, "notes": list(self.notes), "n_skipped": self.n_skipped}

    def document(self) -> dict[str, Any]:
        """Return the record as JSON can hold it."""
        request = self.request
        return {
            "run_id": self.run_id,
            "kind": request.kind,
            "encoder": request.encoder,
            "fingerprint": request.fingerprint,
            "question": request.question.document(),
            "method": request.method.document(),
            "constants": dict(request.constants),
            "n_resamples": request.n_resamples,
            "data": request.data.document(),
            "results": self.results_document(),
            "versions": dict(request.versions),
            "created": self.created,
            "seconds": self.seconds,
            "tables": {
                name: [table.name, table.size, table.crc32c] for name, table in self.tables.items()
            },
        }


def command_lines(records: Iterable[RunRecord], options: str = "") -> str:
    """Return the command lines that make such runs, but for their questions and methods.

    Parameters
    ----------
    records
        Records of runs.
    options
        Further options of the command lines, after a space.
    """
    models: dict[str, list[str]] = {}
    for record in records:
        is_control = record.kind == "control"  # made beside the probes
        verb, model = ("probe", "all") if is_control else (record.kind, record.encoder)
        models.setdefault(verb, []).append(f" -m {model}")
    return " and ".join(
        f"`embedcache {verb}{''.join(sorted(set(names)))}{options}`"
        for verb, names in models.items()
    )


def record_from_document(document: Mapping[str, Any]) -> RunRecord:
    """Return the record in a document, of this format version or of version 1.

    What a run of a later release adds is kept or passed over; nothing but `run_id` is required.
    Where what is known here is of another shape, the run is one of an unknown method.
    """
    is_version_1 = "settings" in document and "question" not in document
    if not fits(document, shapes.RECORD):
        return _unknown_record(document)
    try:
        request = request_of_version_1(document) if is_version_1 else _request(document)
    except (AttributeError, KeyError, TypeError, ValueError):
        return _unknown_record(document)
    results = dict(document.get("results", {}))
    return RunRecord(
        request=request,
        notes=tuple(results.pop("notes", ())),
        n_skipped=int(results.pop("n_skipped", 0)),
        results=results,
        created=str(document.get("created", "")),
        seconds=float(document.get("seconds", 0)),
        tables={
            name: _table_file(name, values) for name, values in document.get("tables", {}).items()
        },
        stored_id=str(document["run_id"]),
    )


def _unknown_record(document: Mapping[str, Any]) -> RunRecord:
    """Return a record that cannot be understood: its texts, and all of it as its method."""
    texts = {
        name: document[name]
        for name in ("kind", "encoder", "fingerprint", "created")
        if isinstance(document.get(name), str)
    }
    return RunRecord(
        request=RunRequest(
            kind=texts.get("kind", _UNKNOWN),
            encoder=texts.get("encoder", ""),
            fingerprint=texts.get("fingerprint", ""),
            question=Question(label="", task=cast("TaskName", _UNKNOWN)),
            method=UnknownMethod(document),
            data=RunData.from_document({}),
            n_resamples=0,
        ),
        results={},
        notes=(),
        n_skipped=0,
        created=texts.get("created", ""),
        seconds=0.0,
        tables={},
        stored_id=str(document["run_id"]),
    )


def _request(document: Mapping[str, Any]) -> RunRequest:
    question, data = document.get("question", {}), document.get("data", {})
    if not (fits(question, shapes.QUESTION) and fits(data, shapes.DATA)):
        raise ValueError("a question or data of another shape")
    plain_method = document.get("method", {})
    method = method_from_document(plain_method)
    if not question.keys() <= shapes.QUESTION.keys():
        # Of a question that is not understood in full, the method's answer cannot be compared.
        method = UnknownMethod(plain_method)
    return RunRequest(
        kind=document.get("kind", _UNKNOWN),
        encoder=document.get("encoder", ""),
        fingerprint=document.get("fingerprint", ""),
        question=Question.from_document(question),
        method=method,
        data=RunData.from_document(data),
        constants=document.get("constants", {}),
        n_resamples=int(document.get("n_resamples", 0)),
        versions=document.get("versions", {}),
    )


def _table_file(table: str, values: list[Any]) -> TableFile:
    # Version 1 named files by their table alone.
    name = values[0] if len(values) == 3 else f"{table}.parquet"
    return TableFile(name, *map(int, values[-2:]))
