"""`embedcache sql`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from embedcache.data.tabular import text_table
from embedcache_cli import options
from embedcache_cli.output import say, short_path


@click.command(short_help="Ask: SELECT over images, embeddings, runs, predictions, metrics ...")
@click.argument("query")
@options.project
@options.option(
    "--format",
    "kind",
    envvar="EMBEDCACHE_SQL_FORMAT",
    type=click.Choice(["table", "csv", "json", "parquet"]),
    help="How to print.  [default: table, or from the file's suffix]",
)
@options.option(
    "-o",
    "--output",
    envvar="EMBEDCACHE_SQL_OUTPUT",
    type=options.FILE,
    help="File to write instead of stdout.",
)
@options.option("--json", "as_json", is_flag=True, help="The same as --format json.")
def sql(
    query: str,
    manifest: Path | None,
    store: Path | None,
    data_root: Path | None,
    kind: str | None,
    output: Path | None,
    as_json: bool,
) -> None:
    """Run one reading statement over the views of docs/sql.md. QUERY '-' is read from stdin."""
    import embedcache
    from embedcache.catalog.export import plain_rows, table_bytes, write_file

    if query == "-":
        query = sys.stdin.read()
    project = embedcache.open(manifest=manifest, store=store, data_root=data_root)
    table = project.sql(query)
    suffix = output.suffix.removeprefix(".") if output else ""
    kind = kind or (
        "json" if as_json else suffix if suffix in {"csv", "json", "parquet"} else "table"
    )
    if kind == "table":
        rows = [[_shown(value) for value in row.values()] for row in plain_rows(table)]
        data = (text_table(table.column_names, rows) + "\n").encode()
    else:
        data = table_bytes(table, kind)
    if output is None:
        click.echo(data, nl=False)
        return
    write_file(output, data)
    say(f"{short_path(output)}: {len(table)} rows")


def _shown(value: object) -> object:
    if isinstance(value, list | dict | tuple):
        return json.dumps(value, default=str)
    return value
