"""`embedcache compare`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, get_args

import click

from embedcache.scoring.choices import Level, Scoring
from embedcache_cli import options
from embedcache_cli.outcomes import exit_code
from embedcache_cli.output import print_json, print_line, say
from embedcache_cli.output import print_section as _show

if TYPE_CHECKING:
    from embedcache.project import Project
    from embedcache.scoring.compare import Pair, Standing
    from embedcache.scoring.estimates import Estimate
    from embedcache.scoring.jackknife import Spread
    from embedcache.verbs.compare_report import CohortComparison, CompareReport

_OF_PROBABILITIES = {
    "log_loss": "log-loss",
    "brier": "Brier",
    "ece": "ECE",
    "calibration_slope": "slope",
}
_OF_CLASS = ("calibration_intercept", "calibration_slope")


@click.command(short_help="Runs against each other, paired by patient: tests, ranks, groups.")
@click.argument("runs", nargs=-1, metavar="[RUN_ID]...")
@options.option(
    "-m",
    "--model",
    "models",
    multiple=True,
    callback=options.none_if_empty,
    metavar="NAME",
    help="Encoder; repeat for several.  [default: every one with a run]",
)
@options.with_project
@options.option(
    "--metric",
    metavar="METRIC",
    help="Score to compare by; see docs/protocol.md.  [default: the task's own]",
)
@options.option(
    "--level",
    type=click.Choice(get_args(Level)),
    default="image",
    show_default=True,
    help="Score images, or each patient's mean probability over the images of a class.",
)
@options.option(
    "--scoring",
    type=click.Choice(get_args(Scoring)),
    default="all",
    show_default=True,
    help="Allow every answer, or only classes that occur in the cohort.",
)
@options.option("--by", metavar="COLUMN", help="Scores by 'class', or by a manifest column, too.")
@options.option(
    "--margin", type=float, metavar="X", help="Difference within which runs count as equal."
)
@options.option("--pairs", is_flag=True, help="Every pair, not only each run against the best.")
@options.option("--calibration", is_flag=True, help="Log-loss, Brier, ECE, slopes, reliability.")
@options.option("--operating-points", is_flag=True, help="Sensitivity at 95 % specificity.")
@options.resamples
@options.option("--seed", type=int, default=0, show_default=True, help="Of the random signs.")
@options.as_json
def compare(
    runs: tuple[str, ...],
    models: tuple[str, ...] | None,
    project: Project,
    pairs: bool,
    calibration: bool,
    operating_points: bool,
    as_json: bool,
    **settings: Any,
) -> int:
    """Hold stored runs against each other on the same images and folds; fits nothing.

    Compares the runs named, or the latest of each encoder and kind of probe, with their repeats.
    All of it is over patients; p is corrected by Holm for all pairs of a cohort.
    """
    from embedcache.audit.finding import verdict_line

    if runs and models:
        raise click.UsageError("name runs, or encoders with --model, not both")
    report = project.compare(runs or None, models=models, **settings)
    if as_json:
        print_json(report)
        return exit_code(report)
    for note in report.notes:
        say(f"note: {note}")
    for cohort in report.cohorts:
        _print_cohort(cohort, report.metric, all_pairs=pairs)
    _print_drops(report)
    _print_parts(report)
    if calibration:
        _print_calibration(report)
    if operating_points:
        _print_operating_points(report)
    for name, (run_id, *repeats) in report.runs.items():
        more = f" (+{len(repeats)} repeats)" if repeats else ""
        print_line(f"{name}: {run_id}{more}")
    print_line(verdict_line(report.findings))
    return exit_code(report)


def _print_cohort(cohort: CohortComparison, metric: str, *, all_pairs: bool) -> None:
    comparison = cohort.comparison
    rows = [
        (
            standing.name,
            _score(standing),
            f"{standing.rank:.1f}",
            f"{standing.p_best:.2f}",
            ",".join(map(str, standing.groups)),
        )
        for standing in comparison.standings
    ]
    kind = "tested out of fold" if cohort.role == "in-domain" else "external"
    classes = f", {len(cohort.classes)} classes" if cohort.classes else ""
    title = f"{cohort.cohort}, {kind}: {cohort.n_patients} patients, {cohort.n_images} images"
    _show(f"{title}{classes}", ("run", metric, "rank", "P(best)", "group"), rows)
    best = comparison.standings[0].name
    pairs = [pair for pair in comparison.pairs if all_pairs or pair.better == best]
    _print_pairs(pairs, "all pairs" if all_pairs else f"behind {best}")
    for note in comparison.notes:
        say(f"note: {cohort.cohort}: {note}")


def _print_pairs(pairs: Sequence[Pair], title: str) -> None:
    is_repeated = any(len(pair.values) > 1 for pair in pairs)
    is_against_best = len({pair.better for pair in pairs}) == 1
    header = [
        *(["run"] if is_against_best else ["better", "worse"]),
        "by",
        *(["by seed"] if is_repeated else []),
        *([] if is_against_best else ["p"]),
        "p (Holm)",
        "verdict",
    ]
    rows = [
        [
            *([pair.worse] if is_against_best else [pair.better, pair.worse]),
            _interval(pair.difference, pair.low, pair.high),
            *([f"{min(pair.values):+.3f} {max(pair.values):+.3f}"] if is_repeated else []),
            *([] if is_against_best else [f"{pair.p:.4f}"]),
            f"{pair.p_corrected:.4f}",
            _verdict(pair),
        ]
        for pair in pairs
    ]
    _show(f"{title}, paired by patient", header, rows)


def _verdict(pair: Pair) -> str:
    if pair.patients_needed is None:
        return {"better": "worse", "equal": "equal", "undecided": "undecided"}[pair.verdict]
    return f"undecided ({pair.patients_needed:,} patients)"


def _print_drops(report: CompareReport) -> None:
    rows = [(drop.name, drop.cohort, _score(drop.drop)) for drop in report.drops]
    is_of_classes = any(cohort.classes for cohort in report.cohorts)
    title = "lost outside, over the classes there" if is_of_classes else "lost outside"
    _show(title, ("run", "cohort", "drop"), rows)


def _print_parts(report: CompareReport) -> None:
    rows = [
        (part.cohort, part.part, part.name, _score(part.score), part.n_patients, part.n_images)
        for part in sorted(report.parts, key=lambda part: (part.cohort, part.part))
    ]
    title = f"{report.metric} by {report.options.by}"
    _show(title, ("cohort", report.options.by or "", "run", "score", "patients", "images"), rows)


def _print_calibration(report: CompareReport) -> None:
    if not report.calibration:
        say("note: no calibration: these runs have no probabilities of classes")
    temperatures = {(c.name, c.cohort): c.temperature for c in report.calibration}
    of_all: list[tuple[Any, ...]] = []
    of_classes: list[tuple[Any, ...]] = []
    for (name, cohort, label), scores in _by_label(report):
        temperature = temperatures.get((name, cohort))
        if label:
            for suffix, t in (("", 1.0), ("_calibrated", temperature)):
                cells = [_or_none(scores.get(f"{metric}{suffix}")) for metric in _OF_CLASS]
                of_classes += [(name, cohort, label, t, *cells)] if any(cells) else []
            continue
        of_all += [(name, cohort, "T", 1.0, temperature)] if temperature is not None else []
        for metric, title in _OF_PROBABILITIES.items():
            cells = [_or_none(scores.get(f"{metric}{suffix}")) for suffix in ("", "_calibrated")]
            of_all += [(name, cohort, title, *cells)] if any(cells) else []
    _show(
        "calibration, T the temperature of inner folds",
        ("run", "cohort", "score", "as it is", "at T"),
        of_all,
    )
    _show(
        "calibration of each class against the rest: 0 and 1 are ideal",
        ("run", "cohort", "class", "T", "intercept", "slope"),
        of_classes,
    )
    rows = [
        (calibration.name, calibration.cohort, part.n, part.confidence, part.accuracy)
        for calibration in report.calibration
        for part in calibration.bins
    ]
    _show("reliability", ("run", "cohort", "n", "confidence", "accuracy"), rows)


def _print_operating_points(report: CompareReport) -> None:
    names = ("sensitivity", "specificity")
    thresholds: dict[tuple[str, str], float] = {}
    rows = []
    for (name, cohort, label), scores in _by_label(report):
        if "threshold_at_spec95" in scores:
            thresholds[name, label] = scores["threshold_at_spec95"].value
        cells = [_or_none(scores.get(f"{metric}_at_spec95")) for metric in names]
        if label and any(cells):
            rows.append((name, cohort, label, thresholds.get((name, label)), *cells))
    title = "operating points, chosen for a specificity of 0.95 out of fold"
    _show(title, ("run", "cohort", "class", "above", *names), rows)


def _by_label(
    report: CompareReport,
) -> Iterable[tuple[tuple[str, str, str], dict[str, Estimate]]]:
    """Return the stored scores of each run, cohort and class by metric."""
    by_label: dict[tuple[str, str, str], dict[str, Estimate]] = {}
    for name, estimates in report.estimates.items():
        for estimate in estimates:
            key = (name, estimate.cohort, estimate.label)
            by_label.setdefault(key, {})[estimate.metric] = estimate
    return by_label.items()


def _or_none(estimate: Estimate | None) -> str | None:
    return None if estimate is None else _score(estimate)


def _score(score: Standing | Spread | Estimate) -> str:
    return _interval(score.value, score.low, score.high)


def _interval(value: float, low: float, high: float) -> str:
    ends = "n/a" if math.isnan(low) else f"{low:.3f}, {high:.3f}"
    return f"{value:.3f} [{ends}]"
