"""`embedcache folds`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from embedcache.data.tabular import text_table
from embedcache_cli import options
from embedcache_cli.output import print_json, say


@click.command(short_help="The patient folds of a question: assigned once, stored, shown.")
@options.project
@options.cohorts
@options.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def folds(
    manifest: Path | None,
    store: Path | None,
    data_root: Path | None,
    as_json: bool,
    **question: Any,
) -> None:
    """Show which fold tests how many patients and images of each class; no patient is in two."""
    import embedcache

    project = embedcache.open(manifest=manifest, store=store, data_root=data_root)
    table, sizes = project.folds(**question)
    if as_json:
        print_json({"table": table, "folds": sizes})
        return
    classes = sorted({name for size in sizes for name in size.classes})
    rows = [
        (size.fold, size.n_patients, size.n_images, *(size.classes.get(n, 0) for n in classes))
        for size in sizes
    ]
    click.echo(text_table(("fold", "patients", "images", *classes), rows))
    click.echo(f'folds {table.folds_id}, seed {table.seed}; patients: embedcache sql "FROM folds"')
    for note in table.notes:
        say(f"note: {note}")
