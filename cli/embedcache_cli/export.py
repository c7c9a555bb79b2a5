"""`embedcache export`."""

from __future__ import annotations

from pathlib import Path

import click

from embedcache_cli import options
from embedcache_cli.output import short_path


@click.command(short_help="One encoder's rows to parquet, npy or safetensors.")
@options.option("-m", "--model", required=True, metavar="NAME", help="Encoder.")
@options.option("-o", "--output", type=options.FILE, required=True, help="File to write.")
@options.option(
    "--format",
    "kind",
    type=click.Choice(["parquet", "npy", "safetensors"]),
    help="Format.  [default: from the file's suffix]",
)
@options.option("--where", metavar="SQL", help="Only images for which this predicate holds.")
@options.option("--label", default="label", show_default=True, help="Manifest column to add.")
@options.project
def export(
    model: str,
    output: Path,
    kind: str | None,
    where: str | None,
    label: str,
    manifest: Path | None,
    store: Path | None,
    data_root: Path | None,
) -> None:
    """Write one encoder's embeddings, with image, patient, cohort and label, to a file."""
    import embedcache

    project = embedcache.open(manifest=manifest, store=store, data_root=data_root)
    for path in project.export(model, output, kind=kind, where=where, label=label):
        click.echo(short_path(path))
