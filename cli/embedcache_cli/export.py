"""`embedcache export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from embedcache_cli import options
from embedcache_cli.output import print_line, say, short_path

if TYPE_CHECKING:
    from embedcache.project import Project


@click.command(short_help="One encoder's rows to parquet, npy or safetensors.")
@options.option("-m", "--model", required=True, metavar="NAME", help="Encoder.")
@options.option(
    "-o",
    "--output",
    envvar="EMBEDCACHE_EXPORT_OUTPUT",
    type=options.FILE,
    required=True,
    help="File to write.",
)
@options.option(
    "--format",
    "kind",
    envvar="EMBEDCACHE_EXPORT_FORMAT",
    type=click.Choice(["parquet", "npy", "safetensors"]),
    help="Format.  [default: from the file's suffix]",
)
@options.option("--where", metavar="SQL", help="Only images for which this predicate holds.")
@options.option("--label", default="label", show_default=True, help="Manifest column to add.")
@options.overwrite
@options.pseudonymise
@options.with_project
def export(
    model: str,
    output: Path,
    kind: str | None,
    where: str | None,
    label: str,
    overwrite: bool,
    pseudonymise: Path | None,
    project: Project,
) -> int:
    """Write one encoder's embeddings, with image, patient, cohort and label, to a file.

    Exit code 3 says that images that could not be encoded are not in it.
    """
    from embedcache.catalog.export import write_embeddings
    from embedcache.data.pseudonyms import read_key

    rows = project.embeddings(model, where=where, label=label)
    ids = "own ids"
    if pseudonymise is not None:
        rows, ids = rows.pseudonymised(read_key(pseudonymise)), "pseudonyms"
    for path in write_embeddings(rows, output, kind, overwrite=overwrite):
        print_line(short_path(path))
    say(
        f"holds {len(rows)} embeddings of {rows.n_patients} patients, and their {ids} in image_id "
        "and patient_id, cohort, label; embeddings can give away what was in an image"
    )
    if rows.n_failed:
        say(f"{rows.n_failed} images that could not be encoded are left out")
    return 3 if rows.n_failed else 0
