"""`embedcache gc`."""

from __future__ import annotations

from pathlib import Path

import click

from embedcache_cli import options
from embedcache_cli.output import bytes_text, print_json


@click.command(short_help="Drop rows that no manifest wants, and leftovers.")
@options.project
@options.option(
    "--grace",
    type=click.FloatRange(min=0),
    default=600.0,
    show_default=True,
    help="Seconds that a replaced file stays, for those who still read it.",
)
@options.option("--dry-run", is_flag=True, help="Count; change nothing.")
@options.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def gc(
    manifest: Path | None,
    store: Path | None,
    data_root: Path | None,
    grace: float,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Drop embeddings of images that no manifest names any more, and files nothing needs."""
    import embedcache

    project = embedcache.open(manifest=manifest, store=store, data_root=data_root)
    report = project.gc(dry_run=dry_run, grace_s=grace)
    if as_json:
        print_json(report)
        return
    verb = "would be dropped" if dry_run else f"dropped, {bytes_text(report.freed_bytes)} freed"
    click.echo(f"{report.n_rows} rows {verb}")
