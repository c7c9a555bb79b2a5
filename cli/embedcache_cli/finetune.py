"""`embedcache finetune`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from embedcache_cli import options
from embedcache_cli.outcomes import print_outcomes
from embedcache_cli.output import bytes_text, print_json, progress, say, seconds_text

if TYPE_CHECKING:
    from embedcache.finetune.jobs import Epoch, Step
    from embedcache.runs.outcome import RunOutcome


def _show_config(context: click.Context, _: click.Parameter, asked: bool) -> None:
    """Do without the options that training needs."""
    if asked:
        from embedcache.finetune.recipe import recipe_text

        click.echo(recipe_text(), nl=False)
        context.exit()


@click.command(short_help="Train encoder and head on the same folds, into the same tables.")
@options.model
@options.project
@options.option(
    "--regime",
    default="finetune",
    show_default=True,
    metavar="REGIME",
    help="finetune, lora, head-only, lp-ft, or partial:N for the last N layers.",
)
@options.option("--config", type=options.FILE, help="TOML file of recipe keys.")
@options.option(
    "--set",
    "changes",
    multiple=True,
    metavar="KEY=VALUE",
    help="One recipe key; repeat for several.",
)
@options.option(
    "--show-config",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_config,
    help="Print the recipe with its sources and stop.",
)
@options.option("--epochs", type=click.IntRange(min=1), help="The recipe's `epochs`.")
@options.option(
    "-b",
    "--batch-size",
    type=click.IntRange(min=1),
    envvar="EMBEDCACHE_FINETUNE_BATCH_SIZE",
    help="The recipe's `batch_size`: images a step.",
)
@options.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "bf16", "fp16"]),
    envvar="EMBEDCACHE_FINETUNE_PRECISION",
    help="The recipe's `precision`; auto is mixed on a CUDA GPU, fp32 elsewhere.",
)
@options.option("--save", is_flag=True, help="Keep the encoders, for `extract -m run:RUN_ID`.")
@options.cohorts
@options.device
@options.option(
    "--devices",
    "n_devices",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="How many of the device, one process each.",
)
@options.option(
    "-j",
    "--workers",
    type=options.auto_or_number,
    metavar="auto|N",
    default="auto",
    show_default=True,
    envvar="EMBEDCACHE_FINETUNE_WORKERS",
    help="Processes that read pictures, a device; auto is none beside a CPU.",
)
@options.weights_at_hand
@options.preprocess
@options.resamples
@options.progress
@options.talk
def finetune(
    models: tuple[str, ...],
    manifest: Path | None,
    store: Path | None,
    data_root: Path | None,
    config: Path | None,
    changes: tuple[str, ...],
    epochs: int | None,
    batch_size: int | None,
    precision: str | None,
    resamples: int,
    progress_mode: str,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **settings: Any,
) -> int:
    """Train encoder and head on each fold's patients, and test them as probes are tested.

    Some of a fold's training patients choose the epoch. A run that was interrupted goes on where it
    was. Exit code 3 says that images were left out because they could not be read.
    """
    import embedcache
    from embedcache.finetune.recipe import parse_changes, read_recipe

    named = {"epochs": epochs, "batch_size": batch_size, "precision": precision}
    keys = {**parse_changes(changes), **{k: v for k, v in named.items() if v is not None}}
    project = embedcache.open(manifest=manifest, store=store, data_root=data_root)
    with _callbacks(progress_mode, read_recipe(config, keys).epochs, quiet=quiet) as callbacks:
        outcomes = project.finetune(
            models,
            recipe=config,
            changes=keys,
            callbacks=callbacks,
            n_resamples=resamples,
            **settings,
        )
    if as_json:
        print_json([outcome.document() for outcome in outcomes])
    else:
        print_outcomes(outcomes, verbose=verbose)
        for outcome in outcomes:
            say(_cost_line(outcome), quiet=quiet)
    return 3 if any(outcome.n_skipped for outcome in outcomes) else 0


def _cost_line(outcome: RunOutcome) -> str:
    record = outcome.record
    costs = record.training_costs
    seconds = sum(cost.seconds for cost in costs)
    peak = max(cost.peak_memory_bytes for cost in costs)
    return (
        f"{outcome.encoder} ({record.regime}): {len(costs)} folds, {seconds_text(seconds)} on "
        f"{costs[0].devices} x {costs[0].device}, {record.compute_share:.0%} of it forward and "
        f"backward; {costs[0].parameters_trained:,} of {costs[0].parameters:,} parameters trained, "
        f"at most {bytes_text(peak)}"
    )


def _epoch_line(one: Epoch) -> str:
    return (
        f"fold {one.fold} epoch {one.epoch}: loss {one.loss:.3f}, validation macro F1 "
        f"{one.macro_f1:.3f}{' *' if one.is_best else ''}, lr {one.lr:.2g}, "
        f"{one.images_per_s:.1f} images/s, {one.compute_share:.0%} forward and backward"
    )


@contextmanager
def _callbacks(mode: str, n_epochs: int, *, quiet: bool) -> Iterator[Any]:
    """Yield what shows progress: a bar a fold in a terminal, a line an epoch, or JSON lines."""
    from embedcache.verbs.finetune import Callbacks

    def message(text: str) -> None:
        say(f"note: {text}", quiet=quiet)

    def line(one: Epoch) -> None:
        as_json = json.dumps({**asdict(one), "n_epochs": n_epochs})
        say(as_json if mode == "jsonl" else _epoch_line(one), quiet=quiet or mode == "off")

    with progress(mode, quiet=quiet) as decoded, _bars(mode, quiet=quiet) as step:
        yield Callbacks(on_message=message, on_progress=decoded, on_step=step, on_epoch=line)


@contextmanager
def _bars(mode: str, *, quiet: bool) -> Iterator[Any]:
    """Yield a function that draws a bar for each fold, where there is a terminal."""
    import sys

    if not (mode == "bar" or (mode == "auto" and sys.stderr.isatty() and not quiet)):
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("ETA"))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bars:
        tasks: dict[int, Any] = {}

        def show(one: Step) -> None:
            if one.fold not in tasks or bars.tasks[tasks[one.fold]].finished:  # another model's
                tasks[one.fold] = bars.add_task("", total=one.n_total)
            text = f"fold {one.fold}, epoch {one.epoch}"
            bars.update(tasks[one.fold], completed=one.n_done, description=text)

        yield show
