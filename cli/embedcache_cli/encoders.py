"""`embedcache encoders`."""

from __future__ import annotations

from typing import Any

import click

from embedcache_cli import options
from embedcache_cli.output import print_json, print_line, print_table, say


@click.group(invoke_without_command=True, short_help="What is registered, and whether it is here.")
@options.as_json
@click.pass_context
def encoders(ctx: click.Context, as_json: bool) -> None:
    """List the registered encoders; any timm model goes as timm:NAME, a control as random:NAME."""
    if ctx.invoked_subcommand is not None:
        return
    from embedcache.encoders.registry import registered
    from embedcache.errors import EncoderError

    facts = []
    for name in registered():
        try:
            facts.append(_facts(name))
        except EncoderError as error:  # a plug-in that is broken; the others are still of use
            say(str(error))
    if as_json:
        print_json(facts)
        return
    header = ("encoder", "dim", "M params", "input", "licence", "commercial", "weights here")
    rows = [
        (
            encoder["name"],
            encoder["dim"],
            f"{encoder['parameters']:.1f}",
            "x".join(map(str, encoder["input"])),
            encoder["licence"],
            encoder["commercial"],
            "-" if encoder["source"] == "none: 0" else "yes" if encoder["weights_file"] else "no",
        )
        for encoder in facts
    ]
    print_table(header, rows)
    print_line(
        "any timm model: timm:NAME; a control: random:NAME; more: embedcache encoders show NAME"
    )


@encoders.command(short_help="Everything about one encoder.")
@click.argument("name")
@options.as_json
def show(name: str, as_json: bool) -> None:
    """Show dimensions, preprocessing, licence, source, and where the weights are."""
    facts = _facts(name)
    if as_json:
        print_json(facts)
        return
    for key, value in facts.items():
        nested = isinstance(value, dict)
        shown = ", ".join(f"{k} {v}" for k, v in value.items()) if nested else value
        print_line(f"{key:14} {shown if shown is not None else '-'}")


_COMMERCIAL = {True: "yes", False: "no", None: "not stated"}


def _facts(name: str) -> dict[str, Any]:
    from embedcache.encoders.registry import find_spec
    from embedcache.encoders.weights import find_weights
    from embedcache.errors import EncoderWeightsError
    from embedcache.files.digests import DigestCache

    spec = find_spec(name)
    try:
        file, missing = find_weights(spec, fetch=False), ""
    except EncoderWeightsError as error:
        file, missing = None, str(error)
    drawn = spec.weights.kind == "random"
    return {
        "name": spec.name,
        "dim": spec.dim,
        "parameters": spec.parameters,
        "input": spec.preprocess.shape,
        "architecture": spec.architecture,
        "output": spec.output,
        "preprocess": spec.preprocess.document(),
        "licence": spec.weights.licence,
        "commercial": _COMMERCIAL[spec.weights.commercial],
        "source": f"{spec.weights.kind}: {spec.weights.location or spec.weights.seed}",
        "reference": spec.reference,
        "overlap": spec.overlap or None,
        "weights_file": "drawn when loaded" if drawn else file,
        "weights_sha256": DigestCache().file_digest(file) if file else None,
        "missing": missing,
    }
