"""`embedcache zeroshot`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from embedcache_cli import options
from embedcache_cli.outcomes import print_outcomes
from embedcache_cli.output import print_json, say


@click.command(short_help="Classify cached images by text prompts; nothing is trained.")
@options.model
@options.project
@options.option(
    "--prompts",
    default="fetal-planes",
    show_default=True,
    metavar="NAME|FILE",
    help="fetal-planes, brain-planes, or a YAML file; --show-prompts prints one to start from.",
)
@options.option("--show-prompts", is_flag=True, help="Print the prompt file and stop.")
@options.option(
    "--cohorts",
    multiple=True,
    metavar="NAME",
    help="Cohort to test on; repeat for several.  [default: every one]",
)
@options.label
@options.where
@options.seed
@options.resamples
@options.option("--device", default="auto", show_default=True, help="Where the text half runs.")
@options.weights
@options.encoder_file
@options.offline
@options.talk
def zeroshot(
    models: tuple[str, ...],
    manifest: Path | None,
    store: Path | None,
    data_root: Path | None,
    show_prompts: bool,
    cohorts: tuple[str, ...],
    resamples: int,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **settings: Any,
) -> int:
    """Give each cached image to the class whose prompts its embedding is nearest to.

    Needs a model that reads as well: fetalclip, or any open_clip:ARCH/TAG.
    """
    import embedcache
    from embedcache.datasets.prompts import prompts_text

    if show_prompts:
        click.echo(prompts_text(settings["prompts"]), nl=False)
        return 0
    project = embedcache.open(manifest=manifest, store=store, data_root=data_root)
    outcomes = project.zeroshot(
        models,
        cohorts=cohorts or None,
        n_resamples=resamples,
        on_message=lambda text: say(f"note: {text}", quiet=quiet),
        **settings,
    )
    if as_json:
        print_json([outcome.document() for outcome in outcomes])
    else:
        print_outcomes(outcomes, verbose=verbose)
    return 3 if any(outcome.n_skipped for outcome in outcomes) else 0
