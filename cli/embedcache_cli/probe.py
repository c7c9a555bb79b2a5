"""`embedcache probe`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from embedcache_cli import options
from embedcache_cli.output import print_json, say, short_path, steps_bar, text_table

if TYPE_CHECKING:
    from embedcache.scoring.compare import Pair
    from embedcache.scoring.estimates import Estimate
    from embedcache.verbs.compare import CompareReport
    from embedcache.verbs.probing import RunOutcome


_TITLES: Final = {"macro_f1": "macro F1", "r2": "R2"}


@click.command(short_help="Probes: out-of-fold and external predictions, a table.")
@options.model
@options.project
@options.option(
    "--probe",
    "family",
    type=click.Choice(["logistic", "knn", "prototype", "ridge", "lda", "svm", "mlp"]),
    default="logistic",
    show_default=True,
    help="What is fitted; see docs/probes.md.",
)
@options.option(
    "--task",
    type=click.Choice(["classification", "regression", "multilabel"]),
    default="classification",
    show_default=True,
    help="What the label is: a class, a number (ridge), or labels as in 'a|b'.",
)
@options.option(
    "--protocol",
    type=click.Choice(["default", "dinov2", "clip", "fetalclip"]),
    default="default",
    show_default=True,
    help="How it is chosen and applied; see docs/protocol.md.",
)
@options.option(
    "--rule",
    type=click.Choice(["tie", "one-se"]),
    default="tie",
    show_default=True,
    help="A smoother probe wins a tie, or within one standard error.",
)
@options.option(
    "--external-by",
    type=click.Choice(["refit", "folds"]),
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
    external: tuple[str, ...],
    resamples: int,
    seed: int,
    progress_mode: str,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **cohorts: Any,
) -> int:
    """Fit probes on cached embeddings, by the protocol of docs/protocol.md.

    Folds are by patient. C is chosen on inner folds. External cohorts are predicted by a probe
    fitted on all training patients. Intervals are 95 %, over patients; differences to the best
    encoder are paired, their p corrected by Holm for all pairs.
    """
    import embedcache
    from embedcache.runs.methods import ProbeMethod
    from embedcache.verbs.probing import ProbeOptions

    project = embedcache.open(manifest=manifest, store=store, data_root=data_root)
    asked: dict[str, Any] = {**cohorts, "seed": seed, "external": external or None}
    n_steps = len(project.probe_models(models))
    if patients is not None:
        asked_for = (cohorts["task"], family, protocol, rule, external_by)
        if asked_for != ("classification", "logistic", "default", "tie", "refit"):
            raise click.UsageError("--patients goes with logistic probes by the default protocol")
        with steps_bar(progress_mode, n_steps, quiet=quiet) as step:
            curves = project.learning_curves(
                models,
                sizes=patients or None,
                n_draws=draws,
                n_threads=threads,
                on_run=lambda outcome: step(outcome.run.encoder),
                **asked,
            )
        print_curves(curves, as_json=as_json)
        return 3 if any(curve.n_skipped for curve in curves) else 0
    settings = ProbeMethod(
        probe=family, protocol=protocol, rule=rule, external_by=external_by, seed=seed
    )
    with steps_bar(progress_mode, n_steps + 3 * controls, quiet=quiet) as step:
        report = project.sweep(
            models,
            probe_options=ProbeOptions(settings=settings, n_resamples=resamples, n_threads=threads),
            with_controls=controls,
            on_message=lambda text: say(f"note: {text}", quiet=quiet),
            on_run=lambda outcome: step(outcome.run.encoder),
            **asked,
        )
    if as_json:
        print_json(report)
    else:
        runs = [*report.runs, *report.controls]
        print_outcomes(runs, compared=report.comparison, verbose=verbose)
        for text in report.not_beaten:
            click.echo(text)
    return 3 if any(outcome.n_skipped for outcome in report.runs) else 0


def print_outcomes(
    outcomes: Sequence[RunOutcome],
    *,
    compared: CompareReport | None = None,
    verbose: bool = False,
) -> None:
    """Print a table of the headline score, what stands behind it, and where the runs lie."""
    from embedcache.runs.record import is_headline
    from embedcache.scoring.estimates import HEADLINES
    from embedcache.verbs.probing import run_names

    columns = _columns(outcomes[0])
    behind = _behind(compared) if compared else {}
    header = [
        "encoder",
        *(name for name, _ in columns),
        *(["behind the best", "p"] if behind else []),
        *_settings(outcomes),
        "seconds",
    ]
    rows = []
    for outcome, name in zip(outcomes, run_names(outcomes), strict=True):
        scores = {_key(one): one for one in outcome.estimates if is_headline(outcome.run, one)}
        cells = [_interval(scores[key]) if key in scores else "-" for _, key in columns]
        cost = "cached" if outcome.was_cached else f"{outcome.run.seconds:.1f}"
        results = outcome.run.results
        rows.append(
            [
                name,
                *cells,
                *(behind.get(outcome.run.run_id, ("-", "-")) if behind else ()),
                *(_number(results.get(f"final_{name}")) for name in _settings(outcomes)),
                cost,
            ]
        )
    metric = HEADLINES[outcomes[0].run.settings.get("task", "classification")]
    click.echo(f"{_TITLES[metric]} [95 % interval over patients]\n{text_table(header, rows)}")
    for estimate in outcomes[0].estimates:
        if is_headline(outcomes[0].run, estimate) and estimate.scoring == "all":
            kind = "tested out of fold" if estimate.role == "in-domain" else "external"
            click.echo(
                f"{estimate.cohort}: {estimate.n_patients} patients, {estimate.n_images} images, "
                f"{kind}"
            )
    for outcome in outcomes:
        for note in outcome.run.results["notes"] if verbose else ():
            click.echo(f"note ({outcome.run.encoder}): {note}")
        click.echo(f"run: {short_path(outcome.folder)}")


def print_curves(curves: Sequence[RunOutcome], *, as_json: bool) -> None:
    """Print the score by number of training patients, an encoder a column."""
    if as_json:
        print_json(curves)
        return
    header = ["patients", *(curve.run.encoder for curve in curves)]
    points = zip(*(curve.run.results["points"] for curve in curves), strict=True)
    rows = [[one[0]["n_patients"], *(_range(point["scores"]) for point in one)] for one in points]
    title = "macro F1, mean [least, most] over draws of training patients"
    click.echo(f"{title}\n{text_table(header, rows)}")
    for curve in curves:
        click.echo(f"run: {short_path(curve.folder)}")


def _range(scores: Sequence[float]) -> str:
    mean = sum(scores) / len(scores)
    return (
        f"{mean:.3f} [{min(scores):.3f}, {max(scores):.3f}]" if len(scores) > 1 else f"{mean:.3f}"
    )


def _settings(outcomes: Sequence[RunOutcome]) -> list[str]:
    """Return the names of what was chosen: C, k, ..."""
    names = (key for outcome in outcomes for key in outcome.run.results if key.startswith("final_"))
    return list(dict.fromkeys(name.removeprefix("final_") for name in names))


def _behind(compared: CompareReport) -> dict[str, tuple[str, str]]:
    """Return by run how far it is behind the best in-domain, and its corrected p."""
    found = {}
    for cohort in compared.cohorts:
        standings = cohort.comparison.standings
        for name in [one.name for one in standings] if len(standings) > 1 else []:
            pair = cohort.comparison.behind_best(name)
            if cohort.role == "in-domain":
                found[compared.runs[name]] = _difference(pair) if pair else ("best", "")
    return found


def _difference(pair: Pair) -> tuple[str, str]:
    return (
        f"{pair.difference:.3f} [{pair.low:.3f}, {pair.high:.3f}]",
        f"{pair.p_corrected:.3f}",
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _columns(outcome: RunOutcome) -> list[tuple[str, tuple[str, str]]]:
    from embedcache.runs.record import is_headline

    found = []
    for estimate in outcome.estimates:
        if is_headline(outcome.run, estimate):
            masked = ", own classes only" if estimate.scoring == "masked" else ""
            found.append((f"{estimate.cohort}{masked}", _key(estimate)))
    return found


def _key(estimate: Estimate) -> tuple[str, str]:
    return estimate.cohort, estimate.scoring


def _interval(estimate: Estimate) -> str:
    if math.isnan(estimate.low):
        return f"{estimate.value:.3f} [n/a]"
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"
