"""`embedcache verify`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from embedcache_cli import options
from embedcache_cli.extract import print_report
from embedcache_cli.output import Screen, print_json, print_line, short_path
from embedcache_cli.progress import image_progress

if TYPE_CHECKING:
    from embedcache.project import Project
    from embedcache.verbs.verify import VerifyReport

_SHOWN = 5


@click.command(short_help="Every stored row against its checksum; --repair encodes bad ones again.")
@options.with_project
@options.option("--repair", is_flag=True, help="Mend what can be mended; encode lost rows again.")
@options.batches
@options.weights_at_hand
@options.screen_with_progress
def verify(project: Project, screen: Screen, **settings: Any) -> int:
    """Hold every file and every row of the store against its checksum.

    Exit code 4 says that something is damaged or gone; with --repair, that it could not be mended.
    """
    with image_progress(screen) as show:
        report = project.verify(on_progress=show, on_message=screen.say, **settings)
    if screen.as_json:
        print_json(report)
    else:
        _print_findings(report, every_image=screen.verbose)
    return 0 if report.is_whole else 4


def _print_findings(report: VerifyReport, *, every_image: bool) -> None:
    for finding in report.findings:
        print_line(f"damaged: {short_path(finding.path)} {finding.problem}")
        shown = finding.images if every_image else finding.images[:_SHOWN]
        if finding.images:
            more = ", ..." if len(shown) < len(finding.images) else ""
            print_line(f"  {len(finding.images)} images lost with it: {', '.join(shown)}{more}")
    for pass_report in report.passes:
        print_report(pass_report)
    for note in report.notes:
        print_line(f"note: {note}")
    checked = f"{report.n_rows} rows of {report.n_encoders} encoders checked"
    print_line(f"{checked}: {_verdict(report)}")


def _verdict(report: VerifyReport) -> str:
    n_findings = len(report.findings)
    if not n_findings:
        return "sound"
    damaged = f"{'1 file' if n_findings == 1 else f'{n_findings} files'} damaged"
    if not report.repaired:
        return f"{damaged}; mend with --repair"
    if report.is_whole:
        return f"{damaged}, mended"
    return f"{damaged}, {report.n_mended} of {n_findings} mended"
