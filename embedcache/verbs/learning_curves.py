"""`probe --patients`: learning curves over numbers of training patients, kept as runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

from embedcache.data.embeddings import LabelledEmbeddings
from embedcache.data.question import Question
from embedcache.files.cores import at_most
from embedcache.protocol.learning_curve import CurvePoint, learning_curve
from embedcache.protocol.protocols import check_method
from embedcache.runs.methods import CurveMethod, ProbeMethod
from embedcache.runs.once import Computed, once
from embedcache.runs.outcome import RunOutcome
from embedcache.runs.request import RunRequest
from embedcache.scoring.estimates import Estimate
from embedcache.store.embedding_store import EmbeddingStore
from embedcache.verbs.audited import AuditedRuns
from embedcache.verbs.catalog import renew_catalog
from embedcache.verbs.left_out import check_any_run, leaving_out
from embedcache.verbs.probe_run import DECISIVE, protocol_constants, run_data, versions_of
from embedcache.verbs.session import Session, Study


@dataclass(frozen=True, slots=True)
class CurveOptions:
    """How learning curves are made, beside their method.

    Parameters
    ----------
    n_threads
        Number of threads to fit with; None for one a core. It decides no result.
    """

    n_threads: int | None = None


def learning_curves(
    session: Session,
    models: Sequence[str],
    question: Question,
    method: CurveMethod,
    options: CurveOptions = CurveOptions(),
    *,
    on_message: Callable[[str], None] = lambda _: None,
    on_run: Callable[[RunOutcome], None] = lambda _: None,
) -> AuditedRuns:
    """Return a run for each model, with an estimate for each number of patients.

    The estimate's `metric` is that of the task with '_by_patients' behind it, such as
    'macro_f1_by_patients', its `label` the number of training patients, its value the mean over
    draws; those are in the record.
    """
    study = session.study(replace(question, external=()))
    for note in study.notes:
        on_message(note)
    names, outcomes = session.model_names(models), []
    for name in names:
        with leaving_out(name, models):
            store = session.find_store(name)
            outcomes.append(_outcome(session, study, store, method, options))
            on_run(outcomes[-1])
    check_any_run(outcomes, names, session.workspace.store)
    renew_catalog(session)
    return AuditedRuns(tuple(outcomes), study.findings)


def _outcome(
    session: Session,
    study: Study,
    store: EmbeddingStore,
    method: CurveMethod,
    options: CurveOptions,
) -> RunOutcome:
    [train] = session.rows(study, store)
    request = RunRequest(
        kind="curve",
        encoder=store.name,
        fingerprint=store.fingerprint,
        question=study.question,
        method=method,
        data=run_data(study, [train]),
        constants=protocol_constants(check_method(ProbeMethod(), study.question.task)),
        # The range over draws of patients takes the place of an interval.
        n_resamples=0,
        versions=versions_of(DECISIVE),
    )

    def compute() -> Computed:
        with at_most(options.n_threads):
            points = learning_curve(
                train,
                study.folds,
                method.sizes,
                task=study.question.task,
                n_draws=method.n_draws,
                seed=study.question.seed,
            )
        return Computed(
            results={"points": [asdict(point) for point in points]},
            estimates=[_estimate(train, point) for point in points],
        )

    return once(session.runs, request, compute, n_skipped=train.n_failed, notes=study.notes)


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
