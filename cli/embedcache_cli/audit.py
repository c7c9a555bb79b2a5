"""`embedcache audit`."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

import click

from embedcache.data.tabular import text_table
from embedcache.visible import visible_text
from embedcache_cli import options
from embedcache_cli.output import Screen, print_json
from embedcache_cli.progress import image_progress

if TYPE_CHECKING:
    from embedcache.audit.finding import AuditFinding
    from embedcache.audit.probing import Score
    from embedcache.project import Project
    from embedcache.verbs.audit_report import AuditReport

_SHOWN: Final = 20  # images of a finding
_COLUMNS: Final = 80


@click.command(short_help="Leaks, repeated images, shortcuts, likely label errors; exit code 5.")
@options.option(
    "-m",
    "--model",
    "models",
    multiple=True,
    metavar="NAME",
    help="Encoder; those named must agree on near-duplicates.  [default: two that hold all images]",
)
@options.with_project
@options.option(
    "--threshold",
    type=click.FloatRange(-1, 1),
    metavar="SIMILARITY",
    help="From which on two images are near-duplicates.  [default: measured within patients]",
)
@options.option("--show-patients", is_flag=True, help="Name patients, not only their images.")
@options.cohorts
@options.screen_with_progress
def audit(project: Project, models: tuple[str, ...], screen: Screen, **settings: Any) -> int:
    """Look for what makes a score wrong: on the images, labels and folds that probe would take.

    Exit code 5 says that a split leaks. Findings are in SQL too: "FROM audit".
    """
    from embedcache.audit.finding import verdict_counts

    with image_progress(screen) as show:
        report = project.audit(
            models or "all", on_message=screen.note, on_progress=show, **settings
        )
    if screen.as_json:
        print_json(report.document())
    else:
        _print_scores(report.scores)
        for finding in report.findings:
            _print_finding(finding, every_image=screen.verbose)
        for text in report.notes if screen.verbose else _thresholds(report):
            click.echo(_wrapped(f"note: {text}", "  "))
        counts = f"{report.n_images} images of {report.n_patients} patients"
        click.echo(f"{counts}: {verdict_counts(report.findings)}")
    return 5 if report.verdict == "leaks" else 0


def _print_scores(scores: Iterable[Score]) -> None:
    rows = [
        (
            score.target,
            score.source,
            score.split,
            f"{score.value:.3f}",
            "n/a" if math.isnan(score.low) else f"{score.low:.3f}, {score.high:.3f}",
            f"{score.chance:.3f}",
        )
        for score in scores
    ]
    if rows:
        header = ("what is told", "from", "folds of", "macro F1", "95 % interval", "chance")
        click.echo(f"{text_table(header, rows)}\n")


def _print_finding(finding: AuditFinding, *, every_image: bool) -> None:
    click.echo(f"{finding.severity}: {finding.kind}")
    click.echo(_wrapped(finding.message, "  ", "  "))
    labels = [suspect for suspect in finding.suspects if suspect.predicted is not None]
    shown = labels if every_image else labels[:_SHOWN]
    for suspect in shown:
        looks = f"looks like {suspect.predicted} ({suspect.probability:.3f})"
        click.echo(_wrapped(f"{suspect.image_id}: {suspect.label} {looks}", "      ", "    "))
    if len(shown) < len(labels):
        query = f"FROM audit WHERE kind = '{finding.kind}'"
        click.echo(f'    {len(labels) - len(shown)} more: embedcache sql "{query}"')


def _thresholds(report: AuditReport) -> list[str]:
    return [note for note in report.notes if note.startswith("near-duplicates by ")]


def _wrapped(text: str, indent: str, first_indent: str = "") -> str:
    return textwrap.fill(
        visible_text(text),
        _COLUMNS,
        initial_indent=first_indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
