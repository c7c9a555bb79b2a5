"""`probe`: every encoder's probe, what it has to beat, and how far each is behind the best."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any, Final

from embedcache.data.embeddings import LabelledEmbeddings
from embedcache.data.question import Question
from embedcache.errors import RunError
from embedcache.files.cores import at_most
from embedcache.protocol.nested import fit_probe
from embedcache.protocol.protocols import PROTOCOLS, check_method, grid_of
from embedcache.protocol.tasks import CHOICE_TOL, FIT_TOL
from embedcache.runs.methods import ProbeMethod
from embedcache.runs.once import Computed, once
from embedcache.runs.outcome import RunOutcome, RunOutcomes
from embedcache.runs.request import RunData, RunRequest, rows_digest
from embedcache.store.embedding_store import EmbeddingStore
from embedcache.verbs.compare import CompareOptions, CompareReport, compare_outcomes
from embedcache.verbs.session import Session, Study

DECISIVE: Final = ("embedcache-fm", "scikit-learn", "numpy", "scipy")
OnRun = Callable[[RunOutcome], None]
OnMessage = Callable[[str], None]


@dataclass(frozen=True, slots=True, repr=False)
class ProbeReport(RunOutcomes):
    """The probes of a command, and what they have to beat.

    Parameters
    ----------
    runs
        Run of each encoder.
    controls
        Runs of the controls; empty where none were asked for.
    comparison
        Trained encoders against each other, paired by patient; None where none was asked for.
    not_beaten
        One line for each probe and control that the probe does not clear.
    """

    controls: tuple[RunOutcome, ...] = ()
    comparison: CompareReport | None = None
    not_beaten: tuple[str, ...] = ()

    def document(self) -> dict[str, Any]:
        """Return runs, controls and comparison as JSON can hold them."""
        return {
            "runs": [run.document() for run in self.runs],
            "controls": [run.document() for run in self.controls],
            "comparison": self.comparison,
            "not_beaten": self.not_beaten,
        }


@dataclass(frozen=True, slots=True)
class ProbeOptions:
    """How the probes of a command are made, beside their method.

    Parameters
    ----------
    n_resamples
        Number of resamples of the patient bootstrap.
    n_threads
        Number of threads to fit with; None for one a core. It decides no result.
    controls
        Whether majority, metadata and shuffled labels are probed too, and encoders compared.
    """

    n_resamples: int = 10_000
    n_threads: int | None = None
    controls: bool = False


def probe(
    session: Session,
    models: Sequence[str],
    question: Question,
    method: ProbeMethod,
    options: ProbeOptions = ProbeOptions(),
    on_message: OnMessage = lambda _: None,
    on_run: OnRun = lambda _: None,
) -> ProbeReport:
    """Probe each model on the same images and folds, and store the runs.

    Parameters
    ----------
    session, models
        The workspace, and names of encoders in it; 'all' for every one.
    question, method, options
        What is asked, how it is answered, and what else is made of it.
    on_message, on_run
        Called with what a reader of the scores must know, and with each run as it is done.

    Raises
    ------
    MissingEmbeddingsError
        A model lacks images of the cohorts.
    LeakageError
        A training patient stands in an external cohort.
    RunError
        The task has no such probe or protocol.
    """
    method = check_method(method, question.task)
    study = session.study(official(question, method))
    for note in study.notes:
        on_message(note)
    names = session.model_names(models)
    if not names:
        raise RunError(
            f"{session.workspace.store} holds no embeddings; run `embedcache extract -m NAME`"
        )
    runs = []
    for name in names:
        runs.append(probe_store(session, study, session.find_store(name), method, options))
        on_run(runs[-1])
    report = ProbeReport(tuple(runs))
    if options.controls:
        report = _with_controls(session, study, report, options, on_run)
        for note in report.comparison.notes if report.comparison else ():
            on_message(note)
    session.renew_catalog()
    return report


def _with_controls(
    session: Session, study: Study, report: ProbeReport, options: ProbeOptions, on_run: OnRun
) -> ProbeReport:
    """Return the report with what the probes have to beat, and how they compare."""
    from embedcache.verbs import controls

    control_runs = []
    for outcome in controls.control_runs(session, study, report.runs, options):
        control_runs.append(outcome)
        on_run(outcome)
    trained = controls.trained_runs(report.runs)
    draws = CompareOptions(n_resamples=options.n_resamples, seed=study.question.seed)
    return replace(
        report,
        controls=tuple(control_runs),
        comparison=compare_outcomes(trained, draws) if len(trained) > 1 else None,
        not_beaten=tuple(controls.not_beaten(report.runs, control_runs)),
    )


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
    scheme = PROTOCOLS[method.protocol]
    request = RunRequest(
        kind=kind,
        encoder=train.encoder,
        fingerprint=train.fingerprint,
        question=question,
        method=method,
        data=run_data(study, rows),
        constants={
            "protocol": scheme.name,
            "values": list(grid_of(method)),
            "tol": {"choice": CHOICE_TOL, "fit": FIT_TOL},
        },
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


def run_data(study: Study, rows: Sequence[LabelledEmbeddings]) -> RunData:
    """Return the digests of the rows that a method is given, the training cohort's first."""
    train, *external = map(rows_digest, rows)
    return RunData(train, tuple(external), study.folds.folds_id, study.snapshot)


def versions_of(distributions: Sequence[str]) -> Mapping[str, str]:
    """Return the installed version of each distribution."""
    return {name: version(name) for name in distributions}
