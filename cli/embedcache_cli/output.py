"""Output for users: JSON, lines on stderr, and numbers as people read them."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from embedcache.data.tabular import text_table
from embedcache.visible import visible_text

if TYPE_CHECKING:
    from embedcache.files.backend import Location


def print_json(value: Any) -> None:
    """Print one JSON document; dataclasses become objects, paths and other things strings."""
    text = json.dumps(_plain(value), indent=1, ensure_ascii=False, allow_nan=False)
    # JSON is UTF-8 whatever the terminal's encoding; half a surrogate pair becomes JSON's escape.
    click.echo(text.encode(errors="backslashreplace"))


def print_line(line: str) -> None:
    """Print a line of the result; control characters and line breaks in it are shown escaped."""
    click.echo(visible_text(line))


def print_table(header: Sequence[str], rows: Sequence[Sequence[Any]], title: str = "") -> None:
    """Print a table of the result, below a title if it has one; see `print_line`."""
    if title:
        print_line(title)
    click.echo(text_table(header, rows))


def print_section(title: str, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table and an empty line, if it has a row; see `print_table`."""
    if rows:
        print_table(header, rows, title)
        print_line("")


def _plain(value: Any) -> Any:
    # A place in a store is a dataclass too, but is shown as paths are.
    is_record = is_dataclass(value) and not isinstance(value, type | PathLike)
    if is_record:
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):  # JSON has no NaN
        return None
    if isinstance(value, str | int | float | bool | None):
        return value
    if isinstance(value, Sequence):
        return [_plain(item) for item in value]
    return str(value)


def say(message: str) -> None:
    """Print a line for people on stderr, if anybody can read it: work does not stop for that.

    See `print_line`.
    """
    with contextlib.suppress(OSError):
        click.echo(visible_text(message), err=True)


ProgressMode = Literal["auto", "bar", "plain", "jsonl", "off"]


@dataclass(frozen=True, slots=True)
class Screen:
    """Choices of the user about what is printed.

    Parameters
    ----------
    as_json
        Whether the result is one JSON document instead of text.
    quiet
        Whether only results and errors are shown.
    verbose
        Whether everything is listed that is else cut short.
    progress
        How progress is shown; 'auto' is a bar in a terminal, else nothing.
    """

    as_json: bool
    quiet: bool
    verbose: bool
    progress: ProgressMode = "off"

    def say(self, message: str) -> None:
        """Print a line for people on stderr, unless all is to be quiet."""
        if not self.quiet:
            say(message)

    def note(self, message: str) -> None:
        """Print a note on stderr, unless all is to be quiet."""
        self.say(f"note: {message}")


def bytes_text(size: float) -> str:
    """Return a number of bytes as people read it."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def seconds_text(seconds: float) -> str:
    """Return a duration as people read it."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def command_name() -> str:
    """Return what to type: the command's name, or its path where the shell would not find it."""
    started = Path(sys.argv[0])
    is_findable = started.name != "embedcache" or shutil.which("embedcache")
    return "embedcache" if is_findable else short_path(started)


def short_path(path: Path | Location) -> str:
    """Return a path relative to here where that is shorter; a place elsewhere by its address."""
    try:
        return str(Path(path).absolute().relative_to(Path.cwd()))
    except (TypeError, ValueError):
        return str(path)
