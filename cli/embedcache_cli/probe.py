"""`embedcache probe`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from embedcache_cli import options
from embedcache_cli.output import print_json, say, short_path, text_table

if TYPE_CHECKING:
    from embedcache.pipeline.probing import RunOutcome
    from embedcache.runs import Estimate


@click.command(short_help="Linear probes: out-of-fold and external predictions, a table.")
@options.model
@options.project
@options.cohorts
@options.resamples
@options.talk
def probe(
    models: tuple[str, ...],
    manifest: Path | None,
    store: Path | None,
    data_root: Path | None,
    external: tuple[str, ...],
    resamples: int,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **cohorts: Any,
) -> int:
    """Fit linear probes on cached embeddings, by the protocol of docs/protocol.md.

    Folds are by patient. C is chosen on inner folds. External cohorts are predicted by a probe
    fitted on all training patients. Intervals are 95 %, over patients.
    """
    import embedcache
    from embedcache.pipeline.probing import ProbeOptions

    project = embedcache.open(manifest=manifest, store=store, data_root=data_root)
    outcomes = project.probe(
        models,
        probe_options=ProbeOptions(n_resamples=resamples),
        external=external or None,
        on_message=lambda text: say(f"note: {text}", quiet=quiet),
        **cohorts,
    )
    print_outcomes(outcomes, as_json=as_json, verbose=verbose)
    return 3 if any(outcome.n_skipped for outcome in outcomes) else 0


def print_outcomes(outcomes: Sequence[RunOutcome], *, as_json: bool, verbose: bool = False) -> None:
    """Print a table of macro F1, what stands behind it, and where the runs lie."""
    if as_json:
        print_json(outcomes)
        return
    columns = _columns(outcomes[0].estimates)
    header = ["encoder", *(name for name, _ in columns), "C", "seconds"]
    rows = []
    for outcome in outcomes:
        scores = {_key(one): one for one in outcome.estimates if one.metric == "macro_f1"}
        cells = [_interval(scores[key]) for _, key in columns]
        cost = "cached" if outcome.was_cached else f"{outcome.run.seconds:.1f}"
        rows.append(
            [
                outcome.run.encoder,
                *cells,
                _strength(outcome.run.results.get("final_C")),
                cost,
            ]
        )
    click.echo(f"macro F1 [95 % interval over patients]\n{text_table(header, rows)}")
    for estimate in outcomes[0].estimates:
        if estimate.metric == "macro_f1" and estimate.scoring == "all":
            kind = "tested out of fold" if estimate.role == "in-domain" else "external"
            click.echo(
                f"{estimate.cohort}: {estimate.n_patients} patients, {estimate.n_images} images, "
                f"{kind}"
            )
    for outcome in outcomes:
        for note in outcome.run.results["notes"] if verbose else ():
            click.echo(f"note ({outcome.run.encoder}): {note}")
        click.echo(f"run: {short_path(outcome.folder)}")


def _strength(C: float | None) -> str:
    return "-" if C is None else f"{C:.3g}"


def _columns(estimates: Sequence[Estimate]) -> list[tuple[str, tuple[str, str]]]:
    found = []
    for estimate in estimates:
        if estimate.metric == "macro_f1":
            masked = ", own classes only" if estimate.scoring == "masked" else ""
            found.append((f"{estimate.cohort}{masked}", _key(estimate)))
    return found


def _key(estimate: Estimate) -> tuple[str, str]:
    return estimate.cohort, estimate.scoring


def _interval(estimate: Estimate) -> str:
    if math.isnan(estimate.low):
        return f"{estimate.value:.3f} [n/a]"
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"
