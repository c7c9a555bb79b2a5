"""`folds` and `probe`: from stored rows to runs."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

import pyarrow as pa

from embedcache.catalog import run_files
from embedcache.durable import canonical_json, find_table, publish_table, read_table, utc_now
from embedcache.embeddings import LabelledEmbeddings
from embedcache.errors import RunError
from embedcache.evaluate import evaluate
from embedcache.folds import (
    FoldSize,
    FoldTable,
    assign_folds,
    fold_notes,
    fold_sizes,
    folds_identity,
    read_folds,
)
from embedcache.pipeline import state
from embedcache.pipeline.cohorts import CohortOptions, Cohorts, choose_cohorts, load_embeddings
from embedcache.probe import PROTOCOL, fit_probe
from embedcache.probes.logistic import C_GRID, FIT_TOL, SWEEP_TOL
from embedcache.runs import Estimate, Run, run_id_of
from embedcache.store.embedding_store import EmbeddingStore
from embedcache.workspace import Workspace

_DECISIVE: Final = ("embedcache-fm", "scikit-learn", "numpy", "scipy")


@dataclass(frozen=True, slots=True)
class ProbeOptions:
    """How to probe.

    Parameters
    ----------
    c_grid
        Values of C to choose from, ascending.
    n_resamples
        Of the patient bootstrap.
    """

    c_grid: tuple[float, ...] = C_GRID
    n_resamples: int = 2000


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """A run, its scores, and whether it was there already.

    Parameters
    ----------
    run
        The record.
    estimates
        Its scores.
    n_skipped
        Images that have no embedding because they could not be read.
    was_cached
        Whether the same run had been made before.
    folder
        Where it lies.
    """

    run: Run
    estimates: tuple[Estimate, ...]
    n_skipped: int
    was_cached: bool
    folder: Path


def find_folds(workspace: Workspace, cohorts: Cohorts, options: CohortOptions) -> FoldTable:
    """Return the fold table of the training cohort: the stored one, or a new one, stored now."""
    patient_id = cohorts.column("patient_id", cohorts.train)
    label = [cohorts.labels[number] for number in cohorts.train]
    if isinstance(options.folds, Path):
        table = read_folds(options.folds)
    else:
        folds_id = folds_identity(patient_id, label, options.folds, options.seed)
        stored = find_table(workspace.folds, folds_id)
        if stored is not None:
            rows = read_table(stored).to_pydict()
            return FoldTable(
                folds_id=folds_id,
                n_folds=options.folds,
                seed=options.seed,
                patients=dict(zip(rows["patient_id"], rows["fold"], strict=True)),
                notes=fold_notes(patient_id, label, options.folds),
            )
        table = assign_folds(patient_id, label, n_folds=options.folds, seed=options.seed)
    workspace.create_store()
    rows = {"patient_id": list(table.patients), "fold": list(table.patients.values())}
    publish_table(workspace.folds, table.folds_id, pa.table(rows))
    return table


def folds(workspace: Workspace, options: CohortOptions) -> tuple[FoldTable, list[FoldSize]]:
    """Return the fold table of a question, and what each fold tests."""
    images = state.load_images(workspace)
    cohorts = choose_cohorts(images, options)
    table = find_folds(workspace, cohorts, options)
    state.renew_catalog(workspace, images)
    label = [cohorts.labels[number] for number in cohorts.train]
    return table, fold_sizes(table, cohorts.column("patient_id", cohorts.train), label)


def probe_models(workspace: Workspace, models: Sequence[str]) -> list[str]:
    """Return the models meant: 'all' is every fingerprint that the store holds."""
    if "all" not in models:
        return list(dict.fromkeys(models))
    documents = state.encoder_documents(workspace)
    names = [str(document["name"]) for document in documents]
    return [
        name if names.count(name) == 1 else f"{name}@{document['fingerprint'][:12]}"
        for name, document in zip(names, documents, strict=True)
    ]


def probe(
    workspace: Workspace,
    models: Sequence[str],
    cohort_options: CohortOptions,
    options: ProbeOptions,
    *,
    on_message: Callable[[str], None] = lambda _: None,
    on_run: Callable[[RunOutcome], None] = lambda _: None,
) -> list[RunOutcome]:
    """Probe each model on the same images and folds, and store the runs.

    Parameters
    ----------
    on_message
        Told what a reader of the scores must know.
    on_run
        Told each run as it is done.

    Raises
    ------
    MissingEmbeddingsError
        A model lacks images of the cohorts.
    LeakageError
        A training patient stands in an external cohort.
    """
    images = state.load_images(workspace)
    cohorts = choose_cohorts(images, cohort_options)
    table = find_folds(workspace, cohorts, cohort_options)
    snapshot = state.save_snapshot(workspace, images)
    for note in (*cohorts.notes, *table.notes):
        on_message(note)
    names = probe_models(workspace, models)
    if not names:
        raise RunError(f"{workspace.store} holds no embeddings; run `embedcache extract -m NAME`")
    outcomes = []
    for name in names:
        store = state.find_store(workspace, name)
        outcome = _probe_one(workspace, store, cohorts, table, cohort_options, options, snapshot)
        on_run(outcome)
        outcomes.append(outcome)
    state.renew_catalog(workspace, images)
    return outcomes


def _probe_one(
    workspace: Workspace,
    store: EmbeddingStore,
    cohorts: Cohorts,
    folds: FoldTable,
    cohort_options: CohortOptions,
    options: ProbeOptions,
    snapshot: str,
) -> RunOutcome:
    start = time.perf_counter()
    train, *external = (
        load_embeddings(store, cohorts.images, cohorts.labels, numbers)
        for numbers in (cohorts.train, *cohorts.external.values())
    )
    n_skipped = sum(rows.n_failed for rows in (train, *external))
    settings = {
        "protocol": PROTOCOL,
        "label": cohort_options.label,
        "train_cohort": cohorts.train_cohort,
        "external": list(cohorts.external),
        "where": cohort_options.where,
        "class_map": cohort_options.class_map,
        "classes": cohorts.class_map,
        "n_folds": folds.n_folds,
        "seed": cohort_options.seed,
        "c_grid": list(options.c_grid),
        "tol": {"choice": SWEEP_TOL, "fit": FIT_TOL},
        "n_resamples": options.n_resamples,
    }
    data = {
        "folds_id": folds.folds_id,
        "train": rows_digest(train),
        "external": [rows_digest(rows) for rows in external],
    }
    versions = {name: version(name) for name in _DECISIVE}
    decisive = [store.fingerprint, settings, data, versions]
    run_id = run_id_of("probe", store.name, decisive)
    folder = workspace.runs / run_id
    if (folder / run_files.RECORD).exists():
        return stored_outcome(folder, n_skipped)
    result = fit_probe(train, folds, external, c_grid=options.c_grid)
    estimates = [
        estimate
        for predictions in result.predictions
        for estimate in evaluate(
            predictions, n_resamples=options.n_resamples, seed=cohort_options.seed
        )
    ]
    notes = [*cohorts.notes, *folds.notes, *result.choices.pop("notes")]
    if n_skipped:
        notes.append(f"{n_skipped} images without an embedding left out: they could not be read")
    run = Run(
        run_id=run_id,
        kind="probe",
        encoder=store.name,
        fingerprint=store.fingerprint,
        settings=settings,
        data={**data, "manifest": snapshot},
        results={**result.choices, "notes": notes, "n_skipped": n_skipped},
        versions=versions,
        created=utc_now(),
        seconds=round(time.perf_counter() - start, 3),
    )
    run_files.write_run(workspace.runs, run, result.predictions, estimates)
    return RunOutcome(run, tuple(estimates), n_skipped, was_cached=False, folder=folder)


def rows_digest(rows: LabelledEmbeddings) -> str:
    """Return the digest of what a probe is given of some images: vectors, patients, labels."""
    names = [rows.image_id, rows.patient_id, rows.cohort, rows.label]
    return hashlib.sha256(canonical_json(names) + rows.X.tobytes()).hexdigest()


def stored_outcome(folder: Path, n_skipped: int) -> RunOutcome:
    """Return a run that was made before."""
    document = run_files.read_run(folder)
    document.pop("tables")
    rows = run_files.read_run_table(folder, "metrics").drop_columns(["run_id"]).to_pylist()
    estimates = tuple(Estimate(**{**row, "label": row["label"] or ""}) for row in rows)
    return RunOutcome(Run(**document), estimates, n_skipped, was_cached=True, folder=folder)
