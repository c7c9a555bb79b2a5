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
    from embedcache.scoring.subgroups import Shortfall
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
@options.option("--drops", is_flag=True, help="Each drop on an external cohort, taken apart.")
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
    drops: bool,
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
    (_print_shifts if drops else _print_drops)(report)
    _print_parts(report)
    if (calibration or operating_points) and any(len(ids) > 1 for ids in report.runs.values()):
        say("note: calibration and operating points are those of each run's first repeat")
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
        "needs",
    ]
    rows = [
        [
            *([pair.worse] if is_against_best else [pair.better, pair.worse]),
            _interval(pair.difference, pair.low, pair.high),
            *([f"{min(pair.values):+.3f} {max(pair.values):+.3f}"] if is_repeated else []),
            *([] if is_against_best else [f"{pair.p:.4f}"]),
            f"{pair.p_corrected:.4f}",
            "worse" if is_against_best and pair.verdict == "better" else pair.verdict,
            "" if pair.patients_needed is None else f"{pair.patients_needed:,}",
        ]
        for pair in pairs
    ]
    _show(f"{title}, paired by patient; undecided ones need so many patients", header, rows)


def _print_drops(report: CompareReport) -> None:
    is_apart = any(drop.shift for drop in report.drops)  # all of them are, or none
    rows = [
        (
            drop.name,
            drop.cohort,
            _score(drop.drop),
            *([_score(drop.shift.mix)] if drop.shift else []),
        )
        for drop in report.drops
    ]
    is_of_classes = any(cohort.classes for cohort in report.cohorts)
    title = "lost outside, over the classes there" if is_of_classes else "lost outside"
    more = " (--drops has all parts)" if is_apart else ""
    _show(
        f"{title}{more}",
        ("run", "cohort", "drop", *(["of it class mix"] if is_apart else [])),
        rows,
    )


def _print_shifts(report: CompareReport) -> None:
    for drop in report.drops:
        parts = {report.metric: drop.drop}
        if drop.shift is not None:
            parts["  by the mix of classes"] = drop.shift.mix
            parts["  the rest"] = drop.shift.rest
            parts["  won back by adjusting to estimated shares"] = drop.shift.prior
        others = {name: lost for name, lost in drop.by_metric.items() if name != report.metric}
        rows = [(name, _score(part)) for name, part in {**parts, **others}.items()]
        _show(f"{drop.name} on {drop.cohort}", ("score", "lost outside"), rows)
        shares = [
            (s.label, *(f"{share:.3f}" for share in (s.home, s.outside, s.estimated)))
            for s in drop.shares
        ]
        title = f"class shares of images, {drop.name} on {drop.cohort}"
        _show(title, ("class", "at home", "outside", "estimated"), shares)


def _print_parts(report: CompareReport) -> None:
    by = str(report.options.by)
    for cohort in dict.fromkeys(part.cohort for part in report.parts):
        parts = [part for part in report.parts if part.cohort == cohort]
        rows = [
            (part.part, part.name, _score(part.score), part.n_patients, part.n_images)
            for part in sorted(parts, key=lambda part: part.part)
        ]
        title = f"{cohort}: {report.metric} by {by}"
        _show(title, (by, "run", "score", "patients", "images"), rows)
        _print_subgroups(report, cohort)


def _print_subgroups(report: CompareReport, cohort: str) -> None:
    by = str(report.options.by)
    of_cohort = [run for run in report.subgroups if run.cohort == cohort]
    rows = [
        (row.subgroup, run.name, _score(row), _number(row.p_corrected, 4), _number(row.p_worst, 2))
        for run in of_cohort
        for row in run.shortfalls
    ]
    title = f"{cohort}: how far each {by} is behind all others, over the classes of both"
    _show(title, (by, "run", "shortfall", "p by Holm", "P(worst)"), rows)
    worst = [
        (run.name, run.worst, _score(run.largest), len(run.shortfalls[0].classes))
        for run in of_cohort
        if run.largest is not None
    ]
    title = f"{cohort}: the worst {by}; the interval allows for the choice"
    _show(title, ("run", by, "shortfall", "classes"), worst)
    scored = {part.part for part in report.parts if part.cohort == cohort}  # others have a note
    for run in of_cohort:
        for group in scored & run.undefined.keys():
            reason = run.undefined[group]
            say(f"note: no shortfall of {by} '{group}' of '{cohort}' ({run.name}): {reason}")


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


def _or_none(estimate: Estimate | Spread | None) -> str | None:
    return None if estimate is None else _score(estimate)


def _score(score: Standing | Spread | Estimate | Shortfall) -> str:
    return _interval(score.value, score.low, score.high)


def _number(value: float, digits: int) -> str:
    return "n/a" if math.isnan(value) else f"{value:.{digits}f}"


def _interval(value: float, low: float, high: float) -> str:
    value, low, high = (round(number, 3) + 0.0 for number in (value, low, high))  # no -0.000
    ends = "n/a" if math.isnan(low) else f"{low:.3f}, {high:.3f}"
    return f"{value:.3f} [{ends}]"
