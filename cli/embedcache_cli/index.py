"""`embedcache index`."""

from __future__ import annotations

from pathlib import Path

import click

from embedcache_cli import options
from embedcache_cli.output import short_path


@click.command(short_help="Write catalog.duckdb anew from the files.")
@options.project
def index(manifest: Path | None, store: Path | None, data_root: Path | None) -> None:
    """Rebuild the DuckDB index; it holds nothing that the files do not."""
    import embedcache

    project = embedcache.open(manifest=manifest, store=store, data_root=data_root)
    click.echo(short_path(project.index()))
