"""`embedcache status`."""

from __future__ import annotations

from pathlib import Path

import click

from embedcache.data.tabular import text_table
from embedcache_cli import options
from embedcache_cli.output import bytes_text, print_json, short_path


@click.command(short_help="Per encoder: images wanted, held, failed; bytes; time.")
@options.project
@options.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def status(manifest: Path | None, store: Path | None, data_root: Path | None, as_json: bool) -> int:
    """Show what the store holds, against what the manifest wants."""
    import embedcache

    found = embedcache.open(manifest=manifest, store=store, data_root=data_root).status()
    if as_json:
        print_json(found)
    else:
        cohorts = ", ".join(f"{name} {count}" for name, count in found.cohorts.items())
        click.echo(
            f"{short_path(found.manifest)}: {found.n_images} images, {found.n_patients} patients "
            f"({cohorts})"
        )
        header = (
            "encoder", "fingerprint", "dim", "precision", "wanted", "held", "failed", "missing",
            "spare", "bytes", "encode s", "write s",
        )  # fmt: skip
        rows = [
            (
                one.encoder, one.fingerprint[:12], one.dim, one.precision, one.n_wanted, one.n_held,
                one.n_failed, one.n_missing, one.n_spare, bytes_text(one.size_bytes),
                one.seconds.get("encode"), one.seconds.get("write"),
            )
            for one in found.encoders
        ]  # fmt: skip
        click.echo(text_table(header, rows))
        click.echo(f"runs: {found.n_runs}, in {short_path(found.store)}")
        if found.n_unreadable:
            click.echo(f"{found.n_unreadable} images are not on this machine")
    incomplete = any(one.n_missing or one.n_failed for one in found.encoders)
    return 3 if incomplete else 0
