"""`probe --patients`: learning curves over numbers of training patients, kept as runs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version

from embedcache.data.embeddings import LabelledEmbeddings
from embedcache.files.cores import at_most
from embedcache.files.durable import utc_now
from embedcache.protocol.learning_curve import N_DRAWS, CurvePoint, learning_curve
from embedcache.runs import files as run_files
from embedcache.runs.record import Run, run_id_of
from embedcache.scoring.estimates import Estimate
from embedcache.store.embedding_store import EmbeddingStore
from embedcache.verbs import state
from embedcache.verbs.cohorts import CohortOptions
from embedcache.verbs.probing import (
    DECISIVE,
    ProbeOptions,
    Question,
    RunOutcome,
    ask,
    load_rows,
    probe_models,
    rows_digest,
    stored_outcome,
)
from embedcache.workspace import Workspace


@dataclass(frozen=True, slots=True)
class CurveOptions:
    """Which curve.

    Parameters
    ----------
    sizes
        Numbers of patients; None: 1, 2, 4, ...
    n_draws
        Orders of the patients.
    n_threads
        As for `ProbeOptions`.
    """

    sizes: tuple[int, ...] | None = None
    n_draws: int = N_DRAWS
    n_threads: int | None = None


def learning_curves(
    workspace: Workspace,
    models: Sequence[str],
    cohort_options: CohortOptions,
    options: CurveOptions,
    *,
    on_run: Callable[[RunOutcome], None] = lambda _: None,
) -> list[RunOutcome]:
    """Return a run for each model, with an estimate for each number of patients.

    The estimate's `metric` is 'macro_f1_by_patients', its `label` the number of training patients,
    its value the mean over draws; those are in the record.
    """
    question = ask(workspace, replace(cohort_options, external=()), ProbeOptions())
    outcomes = []
    for name in probe_models(workspace, models):
        outcome = _curve(question, state.find_store(workspace, name), options)
        on_run(outcome)
        outcomes.append(outcome)
    state.renew_catalog(workspace, question.cohorts.images)
    return outcomes


def _curve(question: Question, store: EmbeddingStore, options: CurveOptions) -> RunOutcome:
    start = time.perf_counter()
    train, *_ = load_rows(question, store)
    task = question.cohort_options.task
    settings = {
        "label": question.cohort_options.label,
        "train_cohort": question.cohorts.train_cohort,
        "where": question.cohort_options.where,
        "class_map": question.cohort_options.class_map,
        "classes": question.cohorts.class_map,
        "n_folds": question.folds.n_folds,
        "seed": question.cohort_options.seed,
        "patients": options.sizes,
        "draws": options.n_draws,
        **({} if task == "classification" else {"task": task}),
    }
    data = {"folds_id": question.folds.folds_id, "train": rows_digest(train)}
    versions = {name: version(name) for name in DECISIVE}
    run_id = run_id_of("curve", store.name, [store.fingerprint, settings, data, versions])
    folder = question.workspace.runs / run_id
    if (folder / run_files.RECORD).exists():
        return stored_outcome(folder, train.n_failed)
    with at_most(options.n_threads):
        points = learning_curve(
            train,
            question.folds,
            options.sizes,
            task=task,
            n_draws=options.n_draws,
            seed=question.cohort_options.seed,
        )
    run = Run(
        run_id=run_id,
        kind="curve",
        encoder=store.name,
        fingerprint=store.fingerprint,
        settings=settings,
        data={**data, "manifest": question.snapshot},
        results={
            "points": [asdict(point) for point in points],
            "notes": list(question.folds.notes),
            "n_skipped": train.n_failed,
        },
        versions=versions,
        created=utc_now(),
        seconds=round(time.perf_counter() - start, 3),
    )
    estimates = [_estimate(train, point) for point in points]
    run_files.write_run(question.workspace.runs, run, [], estimates)
    return RunOutcome(run, tuple(estimates), train.n_failed, was_cached=False, folder=folder)


def _estimate(train: LabelledEmbeddings, point: CurvePoint) -> Estimate:
    return Estimate(
        cohort=train.cohort[0],
        role="in-domain",
        scoring="all",
        level="image",
        metric=f"{point.metric}_by_patients",
        label=str(point.n_patients),
        value=sum(point.scores) / len(point.scores),
        low=math.nan,
        high=math.nan,
        n_patients=train.n_patients,
        n_images=len(train),
    )
