"""The options that verbs share: one spelling, one help text, one environment variable each."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, get_args

import click
from click.core import ParameterSource

import embedcache
from embedcache.encoders.choices import Fit, PrecisionChoice
from embedcache_cli.output import ProgressMode, Screen

Command = Callable[..., Any]
FILE: Final = click.Path(path_type=Path)


def auto_or_number(value: str) -> int | None:
    """Return a whole number from 1, or None for 'auto'."""
    if value == "auto":
        return None
    if not value.isdigit() or int(value) < 1:
        raise click.BadParameter(f"{value!r}; expected 'auto' or a whole number from 1")
    return int(value)


def shard(value: str) -> tuple[int, int]:
    """Return (I, N) of 'I/N': the I-th of N shards."""
    part, _, whole = value.partition("/")
    if not (part.isdigit() and whole.isdigit() and 1 <= int(part) <= int(whole)):
        raise click.BadParameter(f"{value!r}; expected I/N with I from 1 to N, e.g. 2/4")
    return int(part), int(whole)


def folds(value: str) -> int | Path:
    """Return a number of folds, or the path of a CSV file (patient_id, fold)."""
    return int(value) if value.isdigit() else Path(value)


def patients(value: str) -> tuple[int, ...]:
    """Return numbers of patients of '1,2,4'; none of 'auto'."""
    parts = [] if value == "auto" else value.split(",")
    if not all(part.strip().isdigit() and int(part) for part in parts):
        raise click.BadParameter(f"{value!r}; expected 'auto' or numbers from 1, e.g. 1,2,4,8")
    return tuple(map(int, parts))


def none_if_empty(
    context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> tuple[str, ...] | None:
    """Return the values of a repeatable option, or None where it was not given."""
    del context, parameter
    return values or None


def one_way_of_folds(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
    """Return the value of --folds or --folds-by; refuse both."""
    del parameter
    preset = {None, ParameterSource.DEFAULT}  # None: not looked at yet, and then it looks here
    ways = [context.get_parameter_source(name) for name in ("folds", "folds_by")]
    if not preset.intersection(ways):
        raise click.UsageError("name --folds or --folds-by, not both")
    return value


def option(*names: str, **settings: Any) -> Callable[[Command], Command]:
    """Return `click.option` with an environment variable, named after the long option.

    Where two verbs mean different things by one word, they say `envvar` themselves.
    """
    long = next(name for name in names if name.startswith("--")).split("/")[0]
    variable = "EMBEDCACHE_" + long.removeprefix("--").replace("-", "_").upper()
    return click.option(*names, **{"envvar": variable, **settings})


def compose(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Return one decorator for several options, in the order in which `--help` shows them."""

    def decorate(command: Command) -> Command:
        # Decorators apply from the last to the first, so the first option is added last.
        return functools.reduce(lambda inner, add: add(inner), reversed(options), command)

    return decorate


def gather(
    name: str, make: Callable[..., Any], *options: Callable[[Command], Command]
) -> Callable[[Command], Command]:
    """Return a decorator for options whose values reach the command as one argument.

    Parameters
    ----------
    name
        Name of the argument.
    make
        Function that makes its value of the options' values, each by its parameter's name; `dict`
        for values that are handed on by name.
    options
        The options, in the order in which `--help` shows them.
    """
    add = compose(*options)
    # click hangs options on the function that it decorates; here only their names are wanted.
    parameters: Any = add(lambda: None)
    names = [parameter.name for parameter in parameters.__click_params__]

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def call(**values: Any) -> Any:
            group = make(**{key: values.pop(key) for key in names})
            return command(**values, **{name: group})

        return add(call)

    return decorate


model = option(
    "-m",
    "--model",
    "models",
    multiple=True,
    required=True,
    metavar="NAME",
    help="Encoder; repeat for several, or 'all'.",
)

project = compose(
    option("--manifest", type=FILE, help="Manifest.  [default: ./data_manifest.csv]"),
    option("--store", type=FILE, help="Store.  [default: .embedcache beside the manifest]"),
    option(
        "--data-root",
        type=FILE,
        help="Folder that image paths start from.  [default: the manifest's]",
    ),
)


def with_project(command: Command) -> Command:
    """Add the options that name a project, and pass the open `project` to the command."""

    @functools.wraps(command)
    def call(
        manifest: Path | None, store: Path | None, data_root: Path | None, **values: Any
    ) -> Any:
        opened = embedcache.open(manifest=manifest, store=store, data_root=data_root)
        return command(project=opened, **values)

    return project(call)


label = option(
    "--label", default="label", show_default=True, help="Manifest column with the class."
)
where = option("--where", metavar="SQL", help="Only images for which this predicate holds.")
seed = option(
    "--seed", type=int, default=0, show_default=True, help="Of folds and of what is drawn."
)
repeats = option(
    "--repeats",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Runs of each encoder, each with the next seed and so with other folds.",
)
resamples = option(
    "--resamples",
    "n_resamples",
    type=click.IntRange(min=100),
    default=10_000,
    show_default=True,
    help="Of patients, for the interval of the ECE; of signs, for p, ranks and P(best).",
)

cohorts = compose(
    label,
    option("--train-cohort", help="Cohort that trains.  [default: the one with most patients]"),
    option(
        "--external",
        multiple=True,
        callback=none_if_empty,
        metavar="NAME",
        help="Cohort to test on; repeat for several.  [default: every other one]",
    ),
    where,
    option(
        "--class-map", metavar="FILE", help="CSV (label, class), or fetal-planes-6, -5, -4, -3."
    ),
    option(
        "--folds",
        type=folds,
        metavar="K|FILE",
        callback=one_way_of_folds,
        help="Number of patient folds, or a CSV (patient_id, fold).  [default: 5]",
    ),
    option(
        "--folds-by",
        metavar="COLUMN",
        callback=one_way_of_folds,
        help="Instead: a fold of each value of a manifest column, such as center.",
    ),
    seed,
)

pseudonymise = option(
    "--pseudonymise",
    type=FILE,
    metavar="KEYFILE",
    help="Pseudonyms for patient_id and image_id, under this key; made where it is not there.",
)

weights = option("--weights", type=FILE, help="Weights file to use this once, for one model.")
offline = option("--offline", is_flag=True, help="Never ask the Hugging Face hub.")
encoder_file = option("--encoder-file", type=FILE, help="Python file that defines encoders.")

preprocess = option(
    "--preprocess",
    type=click.Choice(get_args(Fit)),
    help="How pictures are fitted.  [default: the encoder's own way] Part of the fingerprint.",
)

precision = option(
    "--precision",
    type=click.Choice(get_args(PrecisionChoice)),
    default="auto",
    show_default=True,
    help="Of the computation; auto is fp32 everywhere. Part of the fingerprint.",
)

device = option(
    "--device",
    default="auto",
    show_default=True,
    metavar="auto|cpu|cuda|cuda:N|mps",
    help="Where encoders run.",
)
weights_at_hand = compose(weights, encoder_file, offline)

batches = compose(
    device,
    option(
        "-b",
        "--batch-size",
        type=auto_or_number,
        metavar="auto|N",
        default="auto",
        show_default=True,
        help="Images a batch.",
    ),
    option(
        "-j",
        "--workers",
        type=auto_or_number,
        metavar="auto|N",
        default="auto",
        show_default=True,
        help="Decoding threads.",
    ),
)


overwrite = option(
    "--overwrite", is_flag=True, help="Replace a file that holds something else, but a store's."
)

as_json = option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")

_talk = compose(
    as_json,
    option("-q", "--quiet", is_flag=True, help="Say nothing but results and errors."),
    option("-v", "--verbose", is_flag=True, help="Say more."),
)
_progress = option(
    "--progress",
    type=click.Choice(get_args(ProgressMode)),
    default="auto",
    show_default=True,
    help="Progress on stderr; auto is a bar in a terminal, else off.",
)
screen = gather("screen", Screen, _talk)
screen_with_progress = gather("screen", Screen, _progress, _talk)
