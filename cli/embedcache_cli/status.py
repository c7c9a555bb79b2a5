"""`embedcache status`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from embedcache_cli import options
from embedcache_cli.output import bytes_text, print_json, print_line, print_table, short_path

if TYPE_CHECKING:
    from embedcache.project import Project
    from embedcache.verbs.status import Status


@click.command(short_help="Per encoder: images wanted, held, failed; bytes; time.")
@options.with_project
@options.as_json
def status(project: Project, as_json: bool) -> int:
    """Show what the store holds, against what the manifest wants."""
    report = project.status()
    if as_json:
        print_json(report)
    else:
        _print_status(report)
    incomplete = any(encoder.n_missing or encoder.n_failed for encoder in report.encoders)
    return 3 if incomplete else 0


def _print_status(report: Status) -> None:
    cohorts = ", ".join(f"{name} {count}" for name, count in report.cohorts.items())
    print_line(
        f"{short_path(report.manifest)}: {report.n_images} images, {report.n_patients} patients "
        f"({cohorts})"
    )
    header = (
        "encoder", "fingerprint", "dim", "precision", "wanted", "held", "failed", "missing",
        "spare", "bytes", "encode s", "write s",
    )  # fmt: skip
    rows = [
        (
            encoder.encoder, encoder.fingerprint[:12], encoder.dim, encoder.precision,
            encoder.n_wanted, encoder.n_held, encoder.n_failed, encoder.n_missing, encoder.n_spare,
            bytes_text(encoder.size_bytes), encoder.seconds.get("encode"),
            encoder.seconds.get("write"),
        )
        for encoder in report.encoders
    ]  # fmt: skip
    print_table(header, rows)
    print_line(f"runs: {report.n_runs}, in {short_path(report.store)}")
    if report.n_unreadable:
        print_line(f"{report.n_unreadable} images are not on this machine")
