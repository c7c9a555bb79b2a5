"""`embedcache sql`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from embedcache.data.tabular import text_table
from embedcache.errors import CatalogError
from embedcache_cli import options
from embedcache_cli.output import say, short_path

if TYPE_CHECKING:
    from embedcache.catalog.output import QueryRows


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
@options.overwrite
@options.option("--json", "as_json", is_flag=True, help="The same as --format json.")
def sql(
    query: str,
    manifest: Path | None,
    store: Path | None,
    data_root: Path | None,
    kind: str | None,
    output: Path | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Run one reading statement over the views of docs/sql.md. QUERY '-' is read from stdin."""
    import embedcache
    from embedcache.catalog.output import parquet_bytes, write_file

    if query == "-":
        query = _read_stdin()
    project = embedcache.open(manifest=manifest, store=store, data_root=data_root)
    suffix = output.suffix.removeprefix(".") if output else ""
    kind = kind or (
        "json" if as_json else suffix if suffix in {"csv", "json", "parquet"} else "table"
    )
    if output is not None:
        from embedcache.data.outputs import check_output  # which reads manifests, by Arrow

        check_output(output, kind, overwrite=overwrite)
    if kind == "parquet":
        table = project.sql(query)
        n_rows, data = len(table), parquet_bytes(table)
    else:
        result = project.sql_rows(query)
        n_rows, data = len(result), _text(result, kind)
    if output is None:
        click.echo(data, nl=False)
        return
    write_file(output, data)
    say(f"{short_path(output)}: {n_rows} rows")


def _read_stdin() -> str:
    """Return the text on stdin, which is UTF-8 whatever the terminal's encoding."""
    data = sys.stdin.buffer.read()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CatalogError(
            f"stdin: byte 0x{data[error.start]:02x} at {error.start} is not UTF-8"
        ) from None


def _text(result: QueryRows, kind: str) -> bytes:
    from embedcache.catalog.output import text_bytes

    if kind != "table":
        return text_bytes(result, kind)
    rows = [[_shown(value) for value in row] for row in result.rows]
    return (text_table(result.columns, rows) + "\n").encode()


def _shown(value: object) -> object:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value
