"""`probe`: every encoder's probe, what it has to beat, and how far each is behind the best."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from embedcache.verbs import controls
from embedcache.verbs.cohorts import CohortOptions
from embedcache.verbs.compare import CompareOptions, CompareReport, compare_runs
from embedcache.verbs.probing import ProbeOptions, RunOutcome, probe
from embedcache.workspace import Workspace


@dataclass(frozen=True, slots=True)
class SweepReport:
    """What a sweep found.

    Parameters
    ----------
    runs
        The probe of each encoder.
    controls
        Those of `controls`, if they were asked for.
    comparison
        Of trained encoders, paired by patient; None for other tasks than classification.
    not_beaten
        Which probes do not clear which control, a line each.
    """

    runs: tuple[RunOutcome, ...]
    controls: tuple[RunOutcome, ...]
    comparison: CompareReport | None
    not_beaten: tuple[str, ...]


def sweep(
    workspace: Workspace,
    models: Sequence[str],
    cohort_options: CohortOptions,
    options: ProbeOptions,
    *,
    with_controls: bool = True,
    on_message: Callable[[str], None] = lambda _: None,
    on_run: Callable[[RunOutcome], None] = lambda _: None,
) -> SweepReport:
    """Probe models and controls, and compare the models.

    Parameters
    ----------
    workspace, models, cohort_options, options, on_message, on_run
        As for `probe`.
    with_controls
        Whether majority, metadata and shuffled labels are probed too.
    """
    runs = probe(workspace, models, cohort_options, options, on_message=on_message, on_run=on_run)
    others = []
    if with_controls:
        for outcome in controls.controls(workspace, runs, cohort_options, options):
            on_run(outcome)
            others.append(outcome)
    comparison = None
    if cohort_options.task == "classification":
        comparison = compare_runs(
            workspace,
            CompareOptions(
                runs=tuple(one.run.run_id for one in controls.contenders(runs)),
                n_resamples=options.n_resamples,
                seed=cohort_options.seed,
            ),
        )
        for note in comparison.notes:
            on_message(note)
    beaten = tuple(controls.not_beaten(workspace, runs, others))
    return SweepReport(tuple(runs), tuple(others), comparison, beaten)
