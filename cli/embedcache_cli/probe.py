"""`embedcache probe`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import click

from embedcache.data.task_names import TaskName
from embedcache.runs.methods import PROBE_NAMES, PROTOCOL_NAMES, ExternalBy, Rule
from embedcache_cli import options
from embedcache_cli.outcomes import print_curves, print_outcomes
from embedcache_cli.output import print_json, say, steps_bar


@click.command(short_help="Probes: out-of-fold and external predictions, a table.")
@options.model
@options.project
@options.option(
    "--probe",
    "family",
    type=click.Choice(PROBE_NAMES),
    default="logistic",
    show_default=True,
    help="What is fitted; see docs/probes.md.",
)
@options.option(
    "--task",
    type=click.Choice(get_args(TaskName)),
    default="classification",
    show_default=True,
    help="What the label is: a class, a number (ridge), or labels as in 'a|b'.",
)
@options.option(
    "--protocol",
    type=click.Choice(PROTOCOL_NAMES),
    default="default",
    show_default=True,
    help="How it is chosen and applied; see docs/protocol.md.",
)
@options.option(
    "--rule",
    type=click.Choice(get_args(Rule)),
    default="tie",
    show_default=True,
    help="A smoother probe wins a tie, or within one standard error.",
)
@options.option(
    "--external-by",
    type=click.Choice(get_args(ExternalBy)),
    default="refit",
    show_default=True,
    help="Who predicts external cohorts: one refit, or the mean of the folds' probes.",
)
@options.option(
    "--controls/--no-controls",
    default=True,
    show_default=True,
    help="Probe majority, metadata and shuffled labels too.",
)
@options.option(
    "--threads",
    type=options.auto_or_number,
    default="auto",
    show_default=True,
    metavar="auto|N",
    help="Threads to fit with; auto is one a core.",
)
@options.option(
    "--patients",
    type=options.patients,
    metavar="auto|N,N,...",
    help="Instead: the score after training on so many patients; auto is 1, 2, 4, ...",
)
@options.option(
    "--draws",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    help="With --patients: orders in which patients are taken.",
)
@options.cohorts
@options.resamples
@options.progress
@options.talk
def probe(
    models: tuple[str, ...],
    manifest: Path | None,
    store: Path | None,
    data_root: Path | None,
    family: str,
    protocol: str,
    rule: Any,
    external_by: Any,
    controls: bool,
    threads: int | None,
    patients: tuple[int, ...] | None,
    draws: int,
    task: Any,
    resamples: int,
    progress_mode: str,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **question: Any,
) -> int:
    """Fit probes on cached embeddings, by the protocol of docs/protocol.md.

    Folds are by patient. C is chosen on inner folds. External cohorts are predicted by a probe
    fitted on all training patients. Intervals are 95 %, over patients; differences to the best
    encoder are paired, their p corrected by Holm for all pairs.
    """
    import embedcache

    project = embedcache.open(manifest=manifest, store=store, data_root=data_root)
    n_models = len(project.models(models))
    if patients is not None:
        if (family, protocol, rule, external_by) != ("logistic", "default", "tie", "refit"):
            raise click.UsageError("--patients goes with the default probe and protocol")
        question.pop("external")
        with steps_bar(progress_mode, n_models, quiet=quiet) as step:
            curves = project.learning_curves(
                models,
                task=task,
                sizes=patients or None,
                n_draws=draws,
                n_threads=threads,
                on_run=lambda outcome: step(outcome.encoder),
                **question,
            )
        print_curves(curves, as_json=as_json)
        return 3 if any(curve.n_skipped for curve in curves) else 0
    with steps_bar(progress_mode, n_models + 3 * controls, quiet=quiet) as step:
        report = project.probe(
            models,
            task=task,
            probe=family,
            protocol=protocol,
            rule=rule,
            external_by=external_by,
            controls=controls,
            n_resamples=resamples,
            n_threads=threads,
            on_message=lambda text: say(f"note: {text}", quiet=quiet),
            on_run=lambda outcome: step(outcome.encoder),
            **question,
        )
    if as_json:
        print_json(report.document())
    else:
        runs = [*report.runs, *report.controls]
        print_outcomes(runs, compared=report.comparison, verbose=verbose)
        for text in report.not_beaten:
            click.echo(text)
    return 3 if any(outcome.n_skipped for outcome in report) else 0
