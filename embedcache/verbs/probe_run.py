"""One encoder's probe as a run: made once, of stored rows or of given ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any, Final

from embedcache.data.checks import check_at_least
from embedcache.data.embeddings import LabelledEmbeddings
from embedcache.data.question import Question
from embedcache.files.cores import at_most
from embedcache.protocol.choice import choice_constants
from embedcache.protocol.nested import fit_probe
from embedcache.protocol.protocols import PROTOCOLS, grid_of
from embedcache.protocol.tasks import FIT_TOL
from embedcache.runs.methods import ProbeMethod
from embedcache.runs.once import Computed, once
from embedcache.runs.outcome import RunOutcome
from embedcache.runs.request import RunData, RunRequest, rows_digest
from embedcache.scoring.evaluate import SCORES
from embedcache.store.embedding_store import EmbeddingStore
from embedcache.verbs.session import Session, Study

DECISIVE: Final = ("embedcache-fm", "scikit-learn", "numpy", "scipy")


@dataclass(frozen=True, slots=True)
class ProbeOptions:
    """How the probes of a command are made, beside their method.

    Parameters
    ----------
    n_resamples
        Number of resamples of patients behind the interval of the ECE, and of draws of signs
        behind p; at least 1.
    n_threads
        Number of threads to fit with; None for one a core. It decides no result.
    controls
        Whether majority, metadata and shuffled labels are probed too, and encoders compared.
    repeats
        Number of runs of each encoder, each with the next seed, and so with other folds.
    """

    n_resamples: int = 10_000
    n_threads: int | None = None
    controls: bool = False
    repeats: int = 1

    def __post_init__(self) -> None:
        check_at_least("n_resamples", self.n_resamples, 1)
        check_at_least("n_threads", self.n_threads, 1)
        check_at_least("repeats", self.repeats, 1)


def official(question: Question, method: ProbeMethod) -> Question:
    """Return the question with the official split where the method's protocol has it."""
    return replace(question, official_split=PROTOCOLS[method.protocol].official_split)


def probe_store(
    session: Session,
    study: Study,
    store: EmbeddingStore,
    method: ProbeMethod,
    options: ProbeOptions,
) -> RunOutcome:
    """Return the probe of one encoder's stored rows."""
    rows = session.rows(study, store)
    return probe_rows(session, study, "probe", rows, method, options)


def probe_rows(
    session: Session,
    study: Study,
    kind: str,
    rows: Sequence[LabelledEmbeddings],
    method: ProbeMethod,
    options: ProbeOptions,
) -> RunOutcome:
    """Return the probe of given rows, made once.

    Parameters
    ----------
    session, study
        The workspace, and the question with its images and folds.
    kind
        Kind of run: 'probe' or 'control'.
    rows
        Embeddings of the training cohort, then of each external one; a control may have none.
    method, options
        How the question is answered, and what else is made of it.
    """
    train, *external = rows
    question = replace(study.question, external=study.cohorts.question.external if external else ())
    request = RunRequest(
        kind=kind,
        encoder=train.encoder,
        fingerprint=train.fingerprint,
        question=question,
        method=method,
        data=run_data(study, rows),
        constants={"scores": SCORES, **protocol_constants(method)},
        n_resamples=options.n_resamples,
        versions=versions_of(DECISIVE),
    )

    def compute() -> Computed:
        with at_most(options.n_threads):
            result = fit_probe(train, study.folds, external, task=question.task, method=method)
        choices: dict[str, Any] = dict(result.choices)
        return Computed(
            result.answers, result.fold_answers, notes=choices.pop("notes"), results=choices
        )

    n_skipped = sum(part.n_failed for part in rows)
    return once(session.runs, request, compute, n_skipped=n_skipped, notes=study.notes)


def protocol_constants(method: ProbeMethod) -> dict[str, Any]:
    """Return what decides the answers of a checked method beside its settings."""
    return {
        "protocol": PROTOCOLS[method.protocol].name,
        "values": list(grid_of(method)),
        "choice": choice_constants(method),
        # Other probes are solved exactly, or in a way of their own.
        "tol": {"fit": FIT_TOL} if method.probe == "logistic" else {},
    }


def run_data(study: Study, rows: Sequence[LabelledEmbeddings]) -> RunData:
    """Return the digests of the rows that a method is given, the training cohort's first."""
    train, *external = map(rows_digest, rows)
    return RunData(train, tuple(external), study.folds.folds_id, study.snapshot)


def versions_of(distributions: Sequence[str]) -> Mapping[str, str]:
    """Return the installed version of each distribution."""
    return {name: version(name) for name in distributions}
