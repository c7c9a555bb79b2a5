"""Tables of runs that were repeated: a row for all repeats of an encoder, a table a cohort."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from embedcache_cli.outcomes import TITLES, behind_best, interval_text, number_text
from embedcache_cli.output import print_line, print_section, short_path

if TYPE_CHECKING:
    from embedcache.audit.finding import AuditFinding
    from embedcache.runs.outcome import RunOutcome
    from embedcache.verbs.compare_report import CompareReport
    from embedcache.verbs.repeats import RepeatedScore


def print_repeats(
    outcomes: Sequence[RunOutcome],
    *,
    findings: Sequence[AuditFinding],
    compared: CompareReport | None = None,
    verbose: bool = False,
) -> None:
    """Print the mean and range of each encoder's repeats, and the verdict on the split."""
    from embedcache.audit.finding import verdict_line
    from embedcache.runs.repeats import group_repeats
    from embedcache.verbs.controls import run_names
    from embedcache.verbs.repeats import repeated_scores

    groups = group_repeats(outcomes)
    firsts = [first for first, *_ in groups]
    names = dict(zip((run.run_id for run in firsts), run_names(firsts), strict=True))
    print_line(_title(max(groups, key=len)))
    by_cohort: dict[tuple[str, str], list[RepeatedScore]] = {}
    for score in repeated_scores(outcomes):
        by_cohort.setdefault((score.cohort, score.scoring), []).append(score)
    for scores in by_cohort.values():
        rows = [_row(names[score.run_ids[0]], score) for score in scores]
        print_section(_cohort_line(scores[0]), ("encoder", "mean", "repeats", "least - most"), rows)
    if behind := behind_best(compared):
        pairs = [(names[run_id], *cells) for run_id, cells in behind.items()]
        print_section("paired, over all repeats", ("encoder", "behind the best", "p"), pairs)
    n_notes = sum(len(run.record.notes) for run in outcomes)
    if verbose:
        _print_runs(groups, names)
    elif n_notes:
        print_line(f"notes stored with these runs: {n_notes}; -v lists them")
    print_line(f"runs: {short_path(outcomes[0].folder.parent)}")
    print_line(verdict_line(findings))


def _title(repeats: Sequence[RunOutcome]) -> str:
    first, last = repeats[0].record.seed, repeats[-1].record.seed
    metric = TITLES[repeats[0].headlines[0].metric]
    return f"{metric}, mean of {len(repeats)} repeats (seeds {first} to {last}) [95 % interval]"


def _cohort_line(score: RepeatedScore) -> str:
    kind = "tested out of fold" if score.role == "in-domain" else "external"
    masked = ", own classes only" if score.scoring == "masked" else ""
    return f"{score.cohort}: {score.n_patients} patients, {score.n_images} images, {kind}{masked}"


def _row(name: str, score: RepeatedScore) -> tuple[str, str, int, str]:
    n_repeats = len(score.run_ids)
    width = f"{score.least:.3f} - {score.most:.3f}" if n_repeats > 1 else ""
    return name, interval_text(score), n_repeats, width


def _print_runs(groups: Sequence[Sequence[RunOutcome]], names: dict[str, str]) -> None:
    """Print each run: its seed, its scores, and what was chosen."""
    rows = []
    for repeats in groups:
        for run in repeats:
            settings = run.record.final_settings.items()
            chosen = ", ".join(f"{name} {number_text(value)}" for name, value in settings)
            cost = "cached" if run.was_cached else f"{run.record.seconds:.1f}"
            for score in run.headlines:
                masked = " (masked)" if score.scoring == "masked" else ""
                cohort = f"{score.cohort}{masked}"
                rows.append(
                    (names[repeats[0].run_id], run.record.seed, cohort, interval_text(score),
                     chosen, cost)
                )  # fmt: skip
    print_section("each repeat", ("encoder", "seed", "cohort", "score", "chosen", "seconds"), rows)
    for repeats in groups:
        for run in repeats:
            for note in run.record.notes:
                print_line(f"note ({run.encoder}, seed {run.record.seed}): {note}")
