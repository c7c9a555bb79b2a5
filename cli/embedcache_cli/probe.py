"""`embedcache probe`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, get_args

import click

from embedcache.data.task_names import TaskName
from embedcache.runs.methods import PROBE_NAMES, PROTOCOL_NAMES, ExternalBy, ProbeMethod, Rule
from embedcache_cli import options
from embedcache_cli.outcomes import exit_code, print_curves, print_outcomes
from embedcache_cli.output import Screen, print_json, print_line
from embedcache_cli.progress import step_progress
from embedcache_cli.repeats import print_repeats

if TYPE_CHECKING:
    from embedcache.project import Project


# Everything that decides a probe; the names are those of `Project.probe`.
_method = options.gather(
    "method",
    dict,
    options.option(
        "--probe",
        type=click.Choice(PROBE_NAMES),
        default="logistic",
        show_default=True,
        help="What is fitted; see docs/probes.md.",
    ),
    options.option(
        "--task",
        type=click.Choice(get_args(TaskName)),
        default="classification",
        show_default=True,
        help="What the label is: a class, a number (ridge), or labels as in 'a|b'.",
    ),
    options.option(
        "--protocol",
        type=click.Choice(PROTOCOL_NAMES),
        default="default",
        show_default=True,
        help="How it is chosen and applied; see docs/protocol.md.",
    ),
    options.option(
        "--rule",
        type=click.Choice(get_args(Rule)),
        default="tie",
        show_default=True,
        help="A smoother probe wins a tie, or within one standard error.",
    ),
    options.option(
        "--external-by",
        type=click.Choice(get_args(ExternalBy)),
        default="refit",
        show_default=True,
        help="Who predicts external cohorts: one refit, or the mean of the folds' probes.",
    ),
)


@click.command(short_help="Probes: out-of-fold and external predictions, a table.")
@options.model
@options.with_project
@_method
@options.option(
    "--controls/--no-controls",
    default=True,
    show_default=True,
    help="Probe majority, metadata and shuffled labels too.",
)
@options.option(
    "--threads",
    "n_threads",
    type=options.auto_or_number,
    default="auto",
    show_default=True,
    metavar="auto|N",
    help="Threads to fit with; auto is one a core.",
)
@options.option(
    "--patients",
    "sizes",
    type=options.patients,
    metavar="auto|N,N,...",
    help="Instead: the score after training on so many patients; auto is 1, 2, 4, ...",
)
@options.option(
    "--draws",
    "n_draws",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    help="With --patients: orders in which patients are taken.",
)
@options.cohorts
@options.repeats
@options.resamples
@options.screen_with_progress
def probe(
    project: Project,
    models: tuple[str, ...],
    method: dict[str, Any],
    sizes: tuple[int, ...] | None,
    n_draws: int,
    repeats: int,
    controls: bool,
    n_resamples: int,
    screen: Screen,
    **question: Any,
) -> int:
    """Fit probes on cached embeddings, by the protocol of docs/protocol.md.

    Folds are by patient. C is chosen on inner folds. External cohorts are predicted by a probe
    fitted on all training patients. Intervals are 95 %, over patients; differences to the best
    encoder are paired, their p corrected by Holm for all pairs.
    """
    n_models = len(project.models(models))
    if sizes is not None:
        if repeats > 1:
            raise click.UsageError("--patients has --draws; leave out --repeats")
        curve = {"sizes": sizes or None, "n_draws": n_draws}
        return _learning_curves(project, models, n_models, method, {**question, **curve}, screen)
    # Three controls: majority, metadata and shuffled labels.
    with step_progress(screen, n_models * repeats + 3 * controls) as step:
        report = project.probe(
            models,
            repeats=repeats,
            controls=controls,
            n_resamples=n_resamples,
            on_message=screen.note,
            on_run=lambda outcome: step(outcome.encoder),
            **method,
            **question,
        )
    if screen.as_json:
        print_json(report.document())
    else:
        show = print_repeats if repeats > 1 else print_outcomes
        runs = [*report.runs, *report.controls]
        show(runs, findings=report.findings, compared=report.comparison, verbose=screen.verbose)
        for text in report.not_beaten:
            print_line(text)
    return exit_code(report)


def _learning_curves(
    project: Project,
    models: tuple[str, ...],
    n_models: int,
    method: Mapping[str, Any],
    settings: Mapping[str, Any],
    screen: Screen,
) -> int:
    """Score the default probe by number of training patients; external cohorts play no part."""
    task, others = method["task"], {k: v for k, v in method.items() if k != "task"}
    if ProbeMethod(**others) != ProbeMethod():
        raise click.UsageError("--patients goes with the default probe and protocol")
    if settings["external"]:
        raise click.UsageError("--patients tests on the training cohort; leave out --external")
    settings = {name: value for name, value in settings.items() if name != "external"}
    with step_progress(screen, n_models) as step:
        curves = project.learning_curves(
            models,
            task=task,
            on_message=screen.note,
            on_run=lambda outcome: step(outcome.encoder),
            **settings,
        )
    print_curves(curves, as_json=screen.as_json)
    return exit_code(curves)
