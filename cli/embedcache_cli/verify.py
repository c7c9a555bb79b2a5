"""`embedcache verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from embedcache_cli import options
from embedcache_cli.extract import print_report
from embedcache_cli.output import print_json, progress, say, short_path

_SHOWN = 5


@click.command(short_help="Every stored row against its checksum; --repair encodes bad ones again.")
@options.project
@options.option("--repair", is_flag=True, help="Mend what can be mended; encode lost rows again.")
@options.encoding
@options.progress
@options.talk
def verify(
    manifest: Path | None,
    store: Path | None,
    data_root: Path | None,
    repair: bool,
    as_json: bool,
    progress_mode: str,
    quiet: bool,
    verbose: bool,
    **encoding: Any,
) -> int:
    """Hold every file and every row of the store against its checksum.

    Exit code 4 says that something is damaged or gone; with --repair, that it could not be mended.
    """
    import embedcache

    project = embedcache.open(manifest=manifest, store=store, data_root=data_root)
    with progress(progress_mode, quiet=quiet) as show:
        report = project.verify(
            repair=repair,
            on_progress=show,
            on_message=lambda text: say(text, quiet=quiet),
            **encoding,
        )
    if as_json:
        print_json(report)
    else:
        for finding in report.findings:
            click.echo(f"damaged: {short_path(finding.path)} {finding.problem}")
            shown = finding.images if verbose else finding.images[:_SHOWN]
            if finding.images:
                more = ", ..." if len(shown) < len(finding.images) else ""
                click.echo(f"  {len(finding.images)} images lost with it: {', '.join(shown)}{more}")
        for one in report.passes:
            print_report(one)
        for note in report.notes:
            click.echo(f"note: {note}")
        checked = f"{report.n_rows} rows of {report.n_encoders} encoders checked"
        click.echo(f"{checked}: {_verdict(len(report.findings), report.repaired)}")
    return 0 if report.is_whole else 4


def _verdict(n_findings: int, repaired: bool) -> str:
    if not n_findings:
        return "sound"
    files = "1 file" if n_findings == 1 else f"{n_findings} files"
    return f"{files} damaged, mended" if repaired else f"{files} damaged; mend with --repair"
