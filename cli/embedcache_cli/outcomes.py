"""Tables of runs: the score that each is judged by, and what stands behind it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from embedcache_cli.output import print_json, print_line, print_table, short_path

if TYPE_CHECKING:
    from embedcache.audit.finding import AuditFinding
    from embedcache.runs.outcome import RunOutcome
    from embedcache.scoring.compare import Pair
    from embedcache.scoring.estimates import Estimate
    from embedcache.verbs.audited import AuditedRuns
    from embedcache.verbs.compare_report import CompareReport
    from embedcache.verbs.repeats import RepeatedScore

TITLES: Final = {"macro_f1": "macro F1", "r2": "R2"}


def print_outcomes(
    outcomes: Sequence[RunOutcome],
    *,
    findings: Sequence[AuditFinding],
    compared: CompareReport | None = None,
    verbose: bool = False,
) -> None:
    """Print a table of the headline score, what stands behind it, and the verdict on the split."""
    from embedcache.audit.finding import verdict_line
    from embedcache.verbs.controls import run_names

    columns = _columns(outcomes[0])
    behind = behind_best(compared)
    header = [
        "encoder",
        *(name for name, _ in columns),
        *(["behind the best", "p"] if behind else []),
        *_settings(outcomes),
        "seconds",
    ]
    rows = []
    for outcome, name in zip(outcomes, run_names(outcomes), strict=True):
        scores = {_key(score): score for score in outcome.headlines}
        cells = [interval_text(scores[key]) if key in scores else "-" for _, key in columns]
        cost = "cached" if outcome.was_cached else f"{outcome.record.seconds:.1f}"
        rows.append(
            [
                name,
                *cells,
                *(behind.get(outcome.run_id, ("-", "-")) if behind else ()),
                *(number_text(outcome.record.final_settings.get(s)) for s in _settings(outcomes)),
                cost,
            ]
        )
    metric = outcomes[0].headlines[0].metric
    print_table(header, rows, f"{TITLES[metric]} [95 % interval over patients]")
    for estimate in outcomes[0].headlines:
        if estimate.scoring == "all":
            kind = "tested out of fold" if estimate.role == "in-domain" else "external"
            print_line(
                f"{estimate.cohort}: {estimate.n_patients} patients, {estimate.n_images} images, "
                f"{kind}"
            )
    for outcome in outcomes:
        for note in outcome.record.notes if verbose else ():
            print_line(f"note ({outcome.encoder}): {note}")
        print_line(f"run: {short_path(outcome.folder)}")
    print_line(verdict_line(findings))


def exit_code(report: AuditedRuns | CompareReport) -> int:
    """Return 5 where the split leaks, 3 where a run left images out, else 0."""
    if report.leaks:
        return 5
    outcomes = report if isinstance(report, Sequence) else ()
    return 3 if any(outcome.n_skipped for outcome in outcomes) else 0


def print_curves(curves: AuditedRuns, *, as_json: bool) -> None:
    """Print the score by number of training patients, an encoder a column."""
    if as_json:
        print_json([curve.document() for curve in curves])
        return
    from embedcache.audit.finding import verdict_line
    from embedcache.scoring.estimates import HEADLINES

    header = ["patients", *(curve.encoder for curve in curves)]
    points = zip(*(curve.record.curve for curve in curves), strict=True)
    rows = [[row[0][0], *(_range(scores) for _, scores in row)] for row in points]
    metric = TITLES[HEADLINES[curves[0].record.task]]
    title = f"{metric}, mean [least, most] over draws of training patients"
    print_table(header, rows, title)
    for curve in curves:
        print_line(f"run: {short_path(curve.folder)}")
    print_line(verdict_line(curves.findings))


def _range(scores: Sequence[float]) -> str:
    mean = sum(scores) / len(scores)
    return (
        f"{mean:.3f} [{min(scores):.3f}, {max(scores):.3f}]" if len(scores) > 1 else f"{mean:.3f}"
    )


def _settings(outcomes: Sequence[RunOutcome]) -> list[str]:
    """Return the names of what was chosen: C, k, ..."""
    names = (name for outcome in outcomes for name in outcome.record.final_settings)
    return list(dict.fromkeys(names))


def behind_best(compared: CompareReport | None) -> dict[str, tuple[str, str]]:
    """Return how far each is behind the best in-domain, and its corrected p, by first run."""
    behind: dict[str, tuple[str, str]] = {}
    if compared is None or len(compared.runs) < 2:
        return behind
    for cohort in compared.cohorts:
        if cohort.role == "in-domain":
            for standing in cohort.comparison.standings:
                pair = cohort.comparison.behind_best(standing.name)
                [first, *_] = compared.runs[standing.name]
                behind[first] = _difference(pair) if pair else ("best", "")
    return behind


def _difference(pair: Pair) -> tuple[str, str]:
    return (
        f"{pair.difference:.3f} [{pair.low:.3f}, {pair.high:.3f}]",
        f"{pair.p_corrected:.3f}",
    )


def number_text(value: float | None) -> str:
    """Return a chosen setting in three digits."""
    return "-" if value is None else f"{value:.3g}"


def _columns(outcome: RunOutcome) -> list[tuple[str, tuple[str, str]]]:
    columns = []
    for score in outcome.headlines:
        masked = ", own classes only" if score.scoring == "masked" else ""
        columns.append((f"{score.cohort}{masked}", _key(score)))
    return columns


def _key(estimate: Estimate) -> tuple[str, str]:
    return estimate.cohort, estimate.scoring


def interval_text(estimate: Estimate | RepeatedScore) -> str:
    """Return a score with its interval, or without where there is none."""
    if math.isnan(estimate.low):
        return f"{estimate.value:.3f} [n/a]"
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"
