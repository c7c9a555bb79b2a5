"""`embedcache index`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from embedcache_cli import options
from embedcache_cli.output import print_line, short_path

if TYPE_CHECKING:
    from embedcache.project import Project


@click.command(short_help="Write catalog.duckdb anew from the files.")
@options.with_project
def index(project: Project) -> None:
    """Rebuild the DuckDB index; it holds nothing that the files do not."""
    print_line(short_path(project.index()))
