"""`folds` and `probe`: from stored rows to runs."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Final

import pyarrow as pa

from embedcache.data.embeddings import LabelledEmbeddings
from embedcache.data.folds import (
    FoldSize,
    FoldTable,
    assign_folds,
    fold_notes,
    fold_sizes,
    folds_identity,
    read_folds,
)
from embedcache.encoders.kept import check_not_trained_on
from embedcache.encoders.spec import EncoderSpec
from embedcache.errors import RunError
from embedcache.files.cores import at_most
from embedcache.files.durable import canonical_json, find_table, publish_table, read_table, utc_now
from embedcache.protocol.nested import fit_probe
from embedcache.protocol.protocols import PROTOCOLS, check_method, grid_of
from embedcache.protocol.tasks import CHOICE_TOL, FIT_TOL, strata
from embedcache.runs import files as run_files
from embedcache.runs.methods import ProbeMethod
from embedcache.runs.record import Run, run_id_of
from embedcache.scoring.estimates import Estimate
from embedcache.scoring.evaluate import evaluate
from embedcache.store.embedding_store import EmbeddingStore
from embedcache.verbs import state
from embedcache.verbs.cohorts import (
    CohortOptions,
    Cohorts,
    choose_cohorts,
    load_embeddings,
    official_split,
)
from embedcache.workspace import Workspace

DECISIVE: Final = ("embedcache-fm", "scikit-learn", "numpy", "scipy")


@dataclass(frozen=True, slots=True)
class ProbeOptions:
    """How to probe.

    Parameters
    ----------
    settings
        Which probe, by which protocol.
    n_resamples
        Of the patient bootstrap.
    n_threads
        None: one a core. It is in no record, for it decides nothing.
    """

    settings: ProbeMethod = field(default_factory=ProbeMethod)
    n_resamples: int = 10_000
    n_threads: int | None = None


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
    label = strata(options.task, [cohorts.labels[number] for number in cohorts.train])
    if isinstance(options.folds, Path):
        table = read_folds(options.folds)
        table = replace(table, notes=fold_notes(patient_id, label, table.n_folds))
    else:
        folds_id = folds_identity(patient_id, label, options.folds, options.seed)
        stored = find_table(workspace.folds, folds_id)
        if stored is not None:
            rows = read_table(stored).to_pydict()
            table = FoldTable(
                folds_id=folds_id,
                n_folds=options.folds,
                seed=options.seed,
                patients=dict(zip(rows["patient_id"], rows["fold"], strict=True)),
                notes=fold_notes(patient_id, label, options.folds),
            )
            return _noted(table, options)
        table = assign_folds(patient_id, label, n_folds=options.folds, seed=options.seed)
    workspace.create_store()
    rows = {"patient_id": list(table.patients), "fold": list(table.patients.values())}
    publish_table(workspace.folds, table.folds_id, pa.table(rows))
    return _noted(table, options)


def _noted(table: FoldTable, options: CohortOptions) -> FoldTable:
    """Return a table without notes on classes where these are but strata."""
    return table if options.task == "classification" else replace(table, notes=())


def folds(workspace: Workspace, options: CohortOptions) -> tuple[FoldTable, list[FoldSize]]:
    """Return the fold table of a question, and what each fold tests."""
    images = state.load_images(workspace)
    cohorts = choose_cohorts(images, options)
    table = find_folds(workspace, cohorts, options)
    state.renew_catalog(workspace, images)
    label = [cohorts.labels[number] for number in cohorts.train]
    return table, fold_sizes(table, cohorts.column("patient_id", cohorts.train), label)


def run_names(outcomes: Sequence[RunOutcome]) -> list[str]:
    """Return the encoder of each run, with its fingerprint where another one has that name."""
    names = [outcome.run.encoder for outcome in outcomes]
    return [
        name if names.count(name) == 1 else f"{name}@{outcome.run.fingerprint[:12]}"
        for name, outcome in zip(names, outcomes, strict=True)
    ]


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
    question = ask(workspace, cohort_options, options)
    for note in (*question.cohorts.notes, *question.folds.notes):
        on_message(note)
    names = probe_models(workspace, models)
    if not names:
        raise RunError(f"{workspace.store} holds no embeddings; run `embedcache extract -m NAME`")
    outcomes = []
    for name in names:
        outcome = _probe_one(question, state.find_store(workspace, name))
        on_run(outcome)
        outcomes.append(outcome)
    state.renew_catalog(workspace, question.cohorts.images)
    return outcomes


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of every encoder alike.

    Parameters
    ----------
    workspace
        Where runs are kept.
    cohorts, folds
        The images, and the fold of each training patient.
    snapshot
        Digest of the manifest.
    cohort_options, options
        What was asked for.
    """

    workspace: Workspace
    cohorts: Cohorts
    folds: FoldTable
    snapshot: str
    cohort_options: CohortOptions
    options: ProbeOptions


def ask(workspace: Workspace, cohort_options: CohortOptions, options: ProbeOptions) -> Question:
    """Return a question, its folds and manifest stored."""
    images = state.load_images(workspace)
    options = replace(options, settings=check_method(options.settings, cohort_options.task))
    cohorts = choose_cohorts(images, cohort_options)
    if PROTOCOLS[options.settings.protocol].official_split:
        cohorts = official_split(cohorts)
    table = find_folds(workspace, cohorts, cohort_options)
    snapshot = state.save_snapshot(workspace, images)
    return Question(workspace, cohorts, table, snapshot, cohort_options, options)


def _probe_one(question: Question, store: EmbeddingStore) -> RunOutcome:
    return answer(question, "probe", load_rows(question, store), store.fingerprint)


def load_rows(question: Question, store: EmbeddingStore) -> list[LabelledEmbeddings]:
    """Return an encoder's rows of the training cohort, then of each external one.

    Raises
    ------
    LeakageError
        The encoder was fine-tuned on one of their patients.
    """
    cohorts = question.cohorts
    parts = {cohorts.train_cohort: cohorts.train, **cohorts.external}
    everyone = cohorts.column("patient_id", [n for some in parts.values() for n in some])
    spec = EncoderSpec.from_document(store.document["spec"])
    check_not_trained_on(question.workspace, spec, everyone)
    return [
        load_embeddings(store, cohorts.images, cohorts.labels, numbers, cohort=name)
        for name, numbers in parts.items()
    ]


def answer(
    question: Question, kind: str, rows: Sequence[LabelledEmbeddings], fingerprint: str
) -> RunOutcome:
    """Probe one encoder's rows, the training cohort's first, and store the run.

    Parameters
    ----------
    kind
        'probe' or 'control'.
    rows
        Embeddings of the training cohort, then of each external one.
    fingerprint
        Of what made them.
    """
    start = time.perf_counter()
    train, *external = rows
    cohorts, folds, options = question.cohorts, question.folds, question.options
    n_skipped = sum(one.n_failed for one in rows)
    settings = {
        "protocol": PROTOCOLS[options.settings.protocol].name,
        "probe": _document(options.settings),
        "values": list(grid_of(options.settings)),
        "tol": {"choice": CHOICE_TOL, "fit": FIT_TOL},
        "label": question.cohort_options.label,
        "task": question.cohort_options.task,
        "train_cohort": cohorts.train_cohort,
        "external": list(cohorts.external),
        "where": question.cohort_options.where,
        "class_map": question.cohort_options.class_map,
        "classes": cohorts.class_map,
        "n_folds": folds.n_folds,
        "seed": question.cohort_options.seed,
        "n_resamples": options.n_resamples,
    }
    data = {
        "folds_id": folds.folds_id,
        "train": rows_digest(train),
        "external": [rows_digest(one) for one in external],
    }
    versions = {name: version(name) for name in DECISIVE}
    run_id = run_id_of(kind, train.encoder, [fingerprint, settings, data, versions])
    folder = question.workspace.runs / run_id
    if (folder / run_files.RECORD).exists():
        return stored_outcome(folder, n_skipped)
    with at_most(options.n_threads):
        result = fit_probe(
            train,
            folds,
            external,
            task=question.cohort_options.task,
            method=options.settings,
        )
        estimates = evaluate(
            result.answers, n_resamples=options.n_resamples, seed=question.cohort_options.seed
        )
    notes = [*cohorts.notes, *folds.notes, *result.choices.pop("notes")]
    if n_skipped:
        notes.append(f"{n_skipped} images without an embedding left out: they could not be read")
    run = Run(
        run_id=run_id,
        kind=kind,
        encoder=train.encoder,
        fingerprint=fingerprint,
        settings=settings,
        data={**data, "manifest": question.snapshot},
        results={**result.choices, "notes": notes, "n_skipped": n_skipped},
        versions=versions,
        created=utc_now(),
        seconds=round(time.perf_counter() - start, 3),
    )
    run_files.write_run(question.workspace.runs, run, result.answers, estimates)
    return RunOutcome(run, tuple(estimates), n_skipped, was_cached=False, folder=folder)


def _document(method: ProbeMethod) -> dict[str, object]:
    """Return a method as it stands in a record."""
    document = {name: getattr(method, name) for name in ("probe", "protocol", "rule")}
    return {
        **document,
        "external": method.external_by,
        "grid": method.grid,
        "seed": method.seed,
    }


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
