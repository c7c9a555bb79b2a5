"""`embedcache doctor`."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from embedcache.visible import visible_text
from embedcache_cli import options
from embedcache_cli.output import print_json, say, short_path

if TYPE_CHECKING:
    from embedcache.verbs.observations import Observation

_WIDTH = 80
_STATUS, _SUBJECT = 9, 20  # widths of columns


@click.command(short_help="What is wrong here, and what to do about it; needs no manifest.")
@options.project
@options.offline
@options.option(
    "--bundle", type=options.FILE, metavar="FILE", help="Write a zip for a bug report, too."
)
@options.as_json
def doctor(bundle: Path | None, as_json: bool, **place: Any) -> int:
    """Look at versions, devices, weights, network, manifest, store, disk, locks and permissions.

    Needs neither a manifest nor a store, and changes nothing. Exit code 1 where there is a problem.
    """
    from embedcache.verbs.bundle import CONTENT, write_bundle
    from embedcache.verbs.doctor import doctor as examine
    from embedcache.verbs.doctor import find_place

    found = find_place(**place)
    report = examine(found)
    if as_json:
        print_json(report)
    else:
        for finding in report.findings:
            click.echo(_lines(finding))
        click.echo(f"{report.count('problem')} problems, {report.count('warning')} warnings")
    if bundle is not None:
        write_bundle(found, report, bundle)
        say(f"{short_path(bundle)}: {CONTENT}")
    return 1 if report.count("problem") else 0


def _lines(finding: Observation) -> str:
    """Return a finding as lines of 80 columns, its remedy below it."""
    indent = " " * (_STATUS + _SUBJECT)
    head = f"{finding.status:{_STATUS}}{finding.subject:{_SUBJECT - 1}} "
    return "\n".join(
        line
        for text, first in ((finding.message, head), (finding.remedy, f"{indent}-> "))
        if text
        for line in textwrap.wrap(
            visible_text(text),
            _WIDTH,
            initial_indent=first,
            subsequent_indent=indent,
            break_on_hyphens=False,
        )
    )
