"""`embedcache extract`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from embedcache.data.tabular import text_table
from embedcache_cli import options
from embedcache_cli.output import bytes_text, print_json, progress, say, seconds_text, short_path

if TYPE_CHECKING:
    from embedcache.extract.report import PassReport, Tally

_SHOWN = 10
# Options that decide what is missing; the others only say how it is encoded.
_PLANNED = ("weights", "preprocess", "precision", "encoder_file", "offline", "shard")


@click.command(short_help="Encode what is missing; a rerun resumes.")
@options.model
@options.project
@options.encoding
@options.preprocess
@options.precision
@options.option(
    "--shard", type=options.shard, metavar="I/N", help="Only the I-th of every N images."
)
@options.option(
    "--on-error",
    type=click.Choice(["skip", "fail"]),
    default="skip",
    show_default=True,
    help="What to do with an image that cannot be encoded.",
)
@options.option("--retry-failed", is_flag=True, help="Try images again that failed before.")
@options.option("--dry-run", is_flag=True, help="Say what would be done; change nothing.")
@options.progress
@options.talk
def extract(
    models: tuple[str, ...],
    manifest: Path | None,
    store: Path | None,
    data_root: Path | None,
    on_error: str,
    dry_run: bool,
    as_json: bool,
    progress_mode: str,
    quiet: bool,
    verbose: bool,
    **encoding: Any,
) -> int:
    """Encode every image that a model's store lacks, each image read and decoded once.

    Exit code 3 says that images were skipped; each is listed with its reason.
    """
    import embedcache

    project = embedcache.open(manifest=manifest, store=store, data_root=data_root)
    if dry_run:
        decisive = {name: encoding[name] for name in _PLANNED}
        return show_plan(project.plan(models, **decisive), as_json=as_json)
    with progress(progress_mode, quiet=quiet) as show:
        report = project.extract(
            models,
            fail_fast=on_error == "fail",
            on_progress=show,
            on_message=lambda text: say(text, quiet=quiet),
            **encoding,
        )
    if as_json:
        print_json(report)
    else:
        print_report(report, every_failure=verbose)
        say(f"store: {short_path(project.workspace.store)}", quiet=quiet)
    return 3 if report.n_failed else 0


def show_plan(plans: Any, *, as_json: bool) -> int:
    """Print what an extraction would do."""
    if as_json:
        print_json(list(plans))
    else:
        header = ("encoder", "fingerprint", "images", "hits", "misses", "failed", "bytes", "time")
        rows = [
            (
                plan.encoder,
                plan.fingerprint[:12] or "not known yet",
                plan.n_images,
                plan.n_hits,
                plan.n_misses,
                plan.n_failed,
                bytes_text(plan.size_bytes),
                "unknown" if plan.estimate_s is None else seconds_text(plan.estimate_s),
            )
            for plan in plans
        ]
        click.echo(text_table(header, rows))
    return 3 if any(plan.n_failed for plan in plans) else 0


def print_report(report: PassReport, *, every_failure: bool = False) -> None:
    """Print what a pass did and where its time went."""
    for tally in report.tallies:
        click.echo(
            f"{tally.encoder}@{tally.fingerprint[:12]}: {tally.n_images} images = "
            f"{tally.n_cached} cached + {tally.n_written} encoded + {tally.n_failed} failed"
        )
    shown: set[str] = set()
    for tally in report.tallies:
        _print_failures(tally, shown, every=every_failure)
    click.echo(_time_line(report))


def _print_failures(tally: Tally, shown: set[str], *, every: bool) -> None:
    new = [one for one in tally.failures if one[0] not in shown]
    shown.update(image_id for image_id, _ in new)
    for image_id, reason in new if every else new[:_SHOWN]:
        click.echo(f"  failed: {image_id}: {reason}")
    if len(new) > _SHOWN and not every:
        click.echo(f"  ... and {len(new) - _SHOWN} more; -v lists them all")


def _time_line(report: PassReport) -> str:
    spent = report.seconds
    parts = [
        f"encode {seconds_text(spent['encode'])}",
        f"loading {seconds_text(report.loaded_s)}",
        f"waiting for images {seconds_text(report.waited_s)}",
    ]
    aside = [f"{name} {seconds_text(spent[name])}" for name in ("read", "decode", "preprocess")]
    return (
        f"took {seconds_text(report.wall_s)}: {', '.join(parts)}; beside it, on {report.workers} "
        f"threads: {', '.join(aside)}; write {seconds_text(spent['write'])}"
    )
