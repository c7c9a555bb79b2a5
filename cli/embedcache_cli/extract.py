"""`embedcache extract`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from embedcache_cli import options
from embedcache_cli.output import (
    Screen,
    bytes_text,
    print_json,
    print_line,
    print_table,
    seconds_text,
    short_path,
)
from embedcache_cli.progress import image_progress

if TYPE_CHECKING:
    from collections.abc import Sequence

    from embedcache.extract.report import PassReport
    from embedcache.project import Project
    from embedcache.verbs.extract import Plan

_SHOWN = 10


# What decides which rows are meant; the names are those of `Project.plan` and `Project.extract`.
_rows = options.gather(
    "rows",
    dict,
    options.weights_at_hand,
    options.preprocess,
    options.precision,
    options.option(
        "--shard", type=options.shard, metavar="I/N", help="Only the I-th of every N images."
    ),
)


@click.command(short_help="Encode what is missing; a rerun resumes.")
@options.model
@options.with_project
@options.batches
@_rows
@options.option(
    "--on-error",
    type=click.Choice(["skip", "fail"]),
    default="skip",
    show_default=True,
    help="What to do with an image that cannot be encoded.",
)
@options.option("--retry-failed", is_flag=True, help="Try images again that failed before.")
@options.option("--shared", is_flag=True, help="Let the group read a store that is made now.")
@options.option("--dry-run", is_flag=True, help="Say what would be done; change nothing.")
@options.screen_with_progress
def extract(
    project: Project,
    models: tuple[str, ...],
    rows: dict[str, Any],
    on_error: str,
    dry_run: bool,
    screen: Screen,
    **settings: Any,
) -> int:
    """Encode every image that a model's store lacks, each image read and decoded once.

    Exit code 3 says that images were skipped; each is listed with its reason.
    """
    if dry_run:
        return _show_plan(project.plan(models, **rows), as_json=screen.as_json)
    with image_progress(screen) as show:
        report = project.extract(
            models,
            fail_fast=on_error == "fail",
            on_progress=show,
            on_message=screen.say,
            **rows,
            **settings,
        )
    if screen.as_json:
        print_json(report)
    else:
        print_report(report, every_failure=screen.verbose)
        screen.say(f"store: {short_path(project.workspace.store)}")
    return 3 if report.n_failed else 0


def _show_plan(plans: Sequence[Plan], *, as_json: bool) -> int:
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
        print_table(header, rows)
    return 3 if any(plan.n_failed for plan in plans) else 0


def print_report(report: PassReport, *, every_failure: bool = False) -> None:
    """Print what a pass did and where its time went."""
    for tally in report.tallies:
        print_line(
            f"{tally.encoder}@{tally.fingerprint[:12]}: {tally.n_images} images = "
            f"{tally.n_cached} cached + {tally.n_written} encoded + {tally.n_failed} failed"
        )
    shown: set[str] = set()
    for tally in report.tallies:
        new = [failure for failure in tally.failures if failure[0] not in shown]
        shown.update(image_id for image_id, _ in new)
        _print_images("failed", new, every=every_failure)
    _print_images("note", report.notes, every=every_failure)
    print_line(_time_line(report))


def _print_images(what: str, images: Sequence[tuple[str, str]], *, every: bool) -> None:
    for image_id, reason in images if every else images[:_SHOWN]:
        print_line(f"  {what}: {image_id}: {reason}")
    if len(images) > _SHOWN and not every:
        print_line(f"  ... and {len(images) - _SHOWN} more; -v lists them all")


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
