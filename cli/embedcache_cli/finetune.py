"""`embedcache finetune`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from embedcache.encoders.choices import PrecisionChoice
from embedcache_cli import options
from embedcache_cli.outcomes import exit_code, print_outcomes
from embedcache_cli.output import Screen, bytes_text, print_json, seconds_text
from embedcache_cli.progress import fold_progress, image_progress
from embedcache_cli.repeats import print_repeats

if TYPE_CHECKING:
    from embedcache.finetune.jobs import Epoch
    from embedcache.project import Project
    from embedcache.runs.outcome import RunOutcome
    from embedcache.verbs.finetune_options import Callbacks


def _show_config(context: click.Context, _: click.Parameter, is_given: bool) -> None:
    """Print the recipe and stop, before the options that training needs are missed."""
    if is_given:
        from embedcache.finetune.recipe import recipe_text

        click.echo(recipe_text(), nl=False)
        context.exit()


_recipe_keys = options.gather(
    "recipe_keys",
    dict,
    options.option("--epochs", type=click.IntRange(min=1), help="The recipe's `epochs`."),
    options.option(
        "-b",
        "--batch-size",
        type=click.IntRange(min=1),
        envvar="EMBEDCACHE_FINETUNE_BATCH_SIZE",
        help="The recipe's `batch_size`: images a step.",
    ),
    options.option(
        "--precision",
        type=click.Choice(get_args(PrecisionChoice)),
        envvar="EMBEDCACHE_FINETUNE_PRECISION",
        help="The recipe's `precision`; auto is mixed on a CUDA GPU, fp32 elsewhere.",
    ),
)


@click.command(short_help="Train encoder and head on the same folds, into the same tables.")
@options.model
@options.with_project
@options.option(
    "--regime",
    default="finetune",
    show_default=True,
    metavar="REGIME",
    help="finetune, lora, head-only, lp-ft, or partial:N for the last N layers.",
)
@options.option("--config", "recipe", type=options.FILE, help="TOML file of recipe keys.")
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
@_recipe_keys
@options.option("--save", is_flag=True, help="Keep the encoders, for `extract -m run:RUN_ID`.")
@options.cohorts
@options.repeats
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
@options.screen_with_progress
def finetune(
    project: Project,
    models: tuple[str, ...],
    recipe: Path | None,
    changes: tuple[str, ...],
    recipe_keys: dict[str, Any],
    repeats: int,
    screen: Screen,
    **settings: Any,
) -> int:
    """Train encoder and head on each fold's patients, and test them as probes are tested.

    Some of a fold's training patients choose the epoch. A run that was interrupted goes on where it
    was. Exit code 3 says that images were left out because they could not be read.
    """
    from embedcache.finetune.recipe import parse_changes, read_recipe

    keys = {key: value for key, value in recipe_keys.items() if value is not None}
    keys = {**parse_changes(changes), **keys}
    with _callbacks(screen, read_recipe(recipe, keys).epochs) as callbacks:
        outcomes = project.finetune(
            models, recipe=recipe, changes=keys, repeats=repeats, callbacks=callbacks, **settings
        )
    if screen.as_json:
        print_json([outcome.document() for outcome in outcomes])
    else:
        show = print_repeats if repeats > 1 else print_outcomes
        show(outcomes, findings=outcomes.findings, verbose=screen.verbose)
        for outcome in outcomes:
            screen.say(_cost_line(outcome))
    return exit_code(outcomes)


def _cost_line(outcome: RunOutcome) -> str:
    record = outcome.record
    costs = record.training_costs
    seconds = sum(cost.seconds for cost in costs)
    peak = max(cost.peak_memory_bytes for cost in costs)
    return (
        f"{outcome.encoder} ({record.regime}, seed {record.seed}): {len(costs)} folds, "
        f"{seconds_text(seconds)} on {costs[0].devices} x {costs[0].device}, "
        f"{record.compute_share:.0%} of it forward and backward; "
        f"{costs[0].parameters_trained:,} of {costs[0].parameters:,} parameters trained, at most "
        f"{bytes_text(peak)}"
    )


def _epoch_line(epoch: Epoch) -> str:
    return (
        f"fold {epoch.fold} epoch {epoch.epoch}: loss {epoch.loss:.3f}, validation macro F1 "
        f"{epoch.macro_f1:.3f}{' *' if epoch.is_best else ''}, lr {epoch.lr:.2g}, "
        f"{epoch.images_per_s:.1f} images/s, {epoch.compute_share:.0%} forward and backward"
    )


@contextmanager
def _callbacks(screen: Screen, n_epochs: int) -> Iterator[Callbacks]:
    """Yield what shows progress: a bar a fold in a terminal, a line an epoch, or JSON lines."""
    from embedcache.verbs.finetune_options import Callbacks

    def show_epoch(epoch: Epoch) -> None:
        # A training takes hours, so an epoch is news, shown wherever progress is not 'off'.
        if screen.progress == "jsonl":
            screen.say(json.dumps({**asdict(epoch), "n_epochs": n_epochs}))
        elif screen.progress != "off":
            screen.say(_epoch_line(epoch))

    with image_progress(screen) as show_images, fold_progress(screen) as show_step:
        yield Callbacks(
            on_message=screen.note,
            on_progress=show_images,
            on_step=show_step,
            on_epoch=show_epoch,
        )
