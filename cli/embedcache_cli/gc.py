"""`embedcache gc`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from embedcache_cli import options
from embedcache_cli.output import bytes_text, print_json, say

if TYPE_CHECKING:
    from embedcache.project import Project


@click.command(short_help="Drop rows that no manifest wants, and leftovers.")
@options.with_project
@options.option(
    "--grace",
    "grace_s",
    type=click.FloatRange(min=0),
    default=600.0,
    show_default=True,
    help="Seconds that a replaced file stays, for those who still read it.",
)
@options.option("--dry-run", is_flag=True, help="Count; change nothing.")
@options.as_json
def gc(
    project: Project,
    grace_s: float,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Drop embeddings of images that no manifest names any more, and files nothing needs."""
    report = project.gc(dry_run=dry_run, grace_s=grace_s, on_message=say)
    if as_json:
        print_json(report)
        return
    for note in report.notes:
        say(f"note: {note}")
    verb = "would be dropped" if dry_run else f"dropped, {bytes_text(report.freed_bytes)} freed"
    click.echo(f"{report.n_rows} rows {verb}")
