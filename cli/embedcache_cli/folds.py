"""`embedcache folds`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from embedcache_cli import options
from embedcache_cli.output import print_json, print_line, print_table, say

if TYPE_CHECKING:
    from embedcache.project import Project


@click.command(short_help="The patient folds of a question: assigned once, stored, shown.")
@options.with_project
@options.cohorts
@options.as_json
def folds(
    project: Project,
    as_json: bool,
    **question: Any,
) -> None:
    """Show which fold tests how many patients and images of each class; no patient is in two."""
    table, sizes = project.folds(**question)
    if as_json:
        print_json({"table": table, "folds": sizes})
        return
    classes = sorted({name for size in sizes for name in size.classes})
    column = question["folds_by"]
    rows = [
        (
            size.fold,
            *([size.value] if column else []),
            size.n_patients,
            size.n_images,
            *(size.classes.get(n, 0) for n in classes),
        )
        for size in sizes
    ]
    print_table(("fold", *([column] if column else []), "patients", "images", *classes), rows)
    origin = f"by {column}" if column else f"seed {table.seed}"
    print_line(f'folds {table.folds_id}, {origin}; patients: embedcache sql "FROM folds"')
    for note in table.notes:
        say(f"note: {note}")
