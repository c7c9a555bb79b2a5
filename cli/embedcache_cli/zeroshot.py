"""`embedcache zeroshot`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from embedcache_cli import options
from embedcache_cli.outcomes import exit_code, print_outcomes
from embedcache_cli.output import Screen, print_json

if TYPE_CHECKING:
    from embedcache.project import Project


def _show_prompts(context: click.Context, _: click.Parameter, is_given: bool) -> None:
    """Print the prompts and stop, before the options that scores need are missed."""
    if is_given:
        from embedcache.datasets.prompts import prompts_text

        click.echo(prompts_text(context.params["prompts"]), nl=False)
        context.exit()


@click.command(short_help="Classify cached images by text prompts; nothing is trained.")
@options.model
@options.with_project
@options.option(
    "--prompts",
    is_eager=True,  # read before --show-prompts, wherever it stands
    default="fetal-planes",
    show_default=True,
    metavar="NAME|FILE",
    help="fetal-planes, brain-planes, or a YAML file; --show-prompts prints one to start from.",
)
@options.option(
    "--show-prompts",
    is_flag=True,
    expose_value=False,
    callback=_show_prompts,
    help="Print the prompt file and stop.",
)
@options.option(
    "--cohorts",
    multiple=True,
    callback=options.none_if_empty,
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
@options.screen
def zeroshot(project: Project, models: tuple[str, ...], screen: Screen, **settings: Any) -> int:
    """Give each cached image to the class whose prompts its embedding is nearest to.

    Needs a model that reads as well: fetalclip, or any open_clip:ARCH/TAG.
    """
    outcomes = project.zeroshot(models, on_message=screen.note, **settings)
    if screen.as_json:
        print_json([outcome.document() for outcome in outcomes])
    else:
        print_outcomes(outcomes, findings=outcomes.findings, verbose=screen.verbose)
    return exit_code(outcomes)
