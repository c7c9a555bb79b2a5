"""`probe`: every encoder's probe, what it has to beat, and how far each is behind the best."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from embedcache.data.question import Question
from embedcache.protocol.protocols import check_method
from embedcache.runs.methods import ProbeMethod
from embedcache.runs.outcome import RunOutcome
from embedcache.runs.repeats import group_repeats
from embedcache.verbs import controls
from embedcache.verbs.audited import AuditedRuns, audit_document
from embedcache.verbs.catalog import renew_catalog
from embedcache.verbs.compare import compare_outcomes
from embedcache.verbs.compare_report import CompareOptions, CompareReport
from embedcache.verbs.comparison_files import store_comparison
from embedcache.verbs.left_out import check_any_run, leaving_out
from embedcache.verbs.probe_run import ProbeOptions, official, probe_rows
from embedcache.verbs.repeats import check_repeats_differ, repeated_studies
from embedcache.verbs.session import Session, Study

OnRun = Callable[[RunOutcome], None]
OnMessage = Callable[[str], None]


@dataclass(frozen=True, slots=True, repr=False)
class ProbeReport(AuditedRuns):
    """The probes of a command, and what they have to beat.

    Parameters
    ----------
    runs, findings
        Runs of each encoder, its repeats by ascending seed, and what is wrong with their split.
    controls
        Runs of the controls, with the first seed; empty where none were asked for.
    comparison
        Trained encoders against each other, paired by patient; None where none was asked for.
    not_beaten
        One line for each probe, with the first seed, and control that the probe does not clear.
    """

    controls: tuple[RunOutcome, ...] = ()
    comparison: CompareReport | None = None
    not_beaten: tuple[str, ...] = ()

    def document(self) -> dict[str, Any]:
        """Return runs, scores, controls, comparison and audit as JSON can hold them."""
        return {
            "runs": [run.document() for run in self.runs],
            "scores": self.scores,
            "controls": [run.document() for run in self.controls],
            "comparison": self.comparison,
            "not_beaten": self.not_beaten,
            "audit": audit_document(self.findings),
        }


def probe(
    session: Session,
    models: Sequence[str],
    question: Question,
    method: ProbeMethod,
    options: ProbeOptions,
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
        The task has no such probe or protocol, or its repeats would all be the same.
    """
    method = check_method(method, question.task)
    studies = repeated_studies(session, official(question, method), options.repeats)
    check_repeats_differ(studies, method)
    for note in dict.fromkeys(note for study in studies for note in study.notes):
        on_message(note)
    names, runs = session.model_names(models), list[RunOutcome]()
    for name in names:
        with leaving_out(name, models if len(names) > 1 else names):
            runs += _repeats(session, studies, name, method, options, on_run)
    check_any_run(runs, names, session.workspace.store)
    findings = dict.fromkeys(finding for study in studies for finding in study.findings)
    report = ProbeReport(tuple(runs), tuple(findings))
    if options.controls:
        report = _with_controls(session, studies[0], report, options, on_run)
        for note in report.comparison.notes if report.comparison else ():
            on_message(note)
    renew_catalog(session)
    return report


def _repeats(
    session: Session,
    studies: Sequence[Study],
    name: str,
    method: ProbeMethod,
    options: ProbeOptions,
    on_run: OnRun,
) -> list[RunOutcome]:
    """Return the runs of one encoder, one a study."""
    rows, runs = session.rows(studies[0], session.find_store(name)), []
    for study in studies:
        seeded = replace(method, seed=study.question.seed)
        runs.append(probe_rows(session, study, "probe", rows, seeded, options))
        on_run(runs[-1])
    return runs


def _with_controls(
    session: Session, study: Study, report: ProbeReport, options: ProbeOptions, on_run: OnRun
) -> ProbeReport:
    """Return the report with what the first repeats have to beat, and how all compare."""
    control_runs = []
    first_runs = [first for first, *_ in group_repeats(report.runs)]
    for outcome in controls.control_runs(session, study, first_runs, options):
        control_runs.append(outcome)
        on_run(outcome)
    trained = controls.trained_runs(report.runs)
    draws = CompareOptions(n_resamples=options.n_resamples, seed=study.question.seed)
    comparison = compare_outcomes(trained, draws) if len(group_repeats(trained)) > 1 else None
    if comparison is not None:
        store_comparison(session.workspace, comparison)
    return replace(
        report,
        controls=tuple(control_runs),
        comparison=comparison,
        not_beaten=tuple(controls.not_beaten(first_runs, control_runs)),
    )
