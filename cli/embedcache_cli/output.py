"""What a user sees: text tables, JSON, and progress on stderr."""

from __future__ import annotations

import json
import math
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields, is_dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from embedcache.extract.report import Progress
    from embedcache.files.backend import Location

OnProgress = Callable[["Progress"], None]
_PLAIN_EVERY_S = 10.0


def print_json(value: Any) -> None:
    """Print one JSON document; dataclasses become objects, paths and other things strings."""
    click.echo(json.dumps(_plain(value), indent=1, ensure_ascii=False, allow_nan=False))


def _plain(value: Any) -> Any:
    if isinstance(value, PathLike):
        return str(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, str | int | float | bool | None):
        return value
    if isinstance(value, Sequence):
        return [_plain(one) for one in value]
    return str(value)


def say(message: str, *, quiet: bool = False) -> None:
    """Print a line for people on stderr."""
    if not quiet:
        click.echo(message, err=True)


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


@contextmanager
def progress(mode: str, *, quiet: bool = False) -> Iterator[OnProgress]:
    """Yield a function that shows how far a pass is; its last word stays on the screen."""
    if mode == "auto":
        mode = "bar" if sys.stderr.isatty() and not quiet else "off"
    if mode == "bar":
        with _bar() as show:
            yield show
    elif mode in {"plain", "jsonl"}:
        yield _Lines(as_json=mode == "jsonl")
    else:
        yield lambda _: None


@contextmanager
def _bar() -> Iterator[OnProgress]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:.1f} images/s"),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        TextColumn("slowest: {task.fields[slowest]}  failed: {task.fields[failed]}"),
    )
    start = time.monotonic()
    with Bar(*columns, console=Console(stderr=True), transient=False) as bar:
        task = bar.add_task("", total=None, rate=0.0, slowest="-", failed=0)

        def show(state: Progress) -> None:
            bar.update(
                task,
                completed=state.n_done,
                total=state.n_total,
                rate=state.n_done / max(1e-9, time.monotonic() - start),
                slowest=state.slowest,
                failed=state.n_failed,
            )

        yield show


@contextmanager
def steps_bar(mode: str, n_steps: int, *, quiet: bool = False) -> Iterator[Callable[[str], None]]:
    """Yield a function that is told the name of each step as it is done."""
    names: list[str] = []
    start = time.monotonic()
    if mode == "auto":
        mode = "bar" if sys.stderr.isatty() and not quiet else "off"

    def line(name: str) -> None:
        names.append(name)
        left = (time.monotonic() - start) / len(names) * (n_steps - len(names))
        state = {"done": len(names), "total": n_steps, "last": name, "eta_s": round(left, 1)}
        if mode == "jsonl":
            say(json.dumps(state))
        elif mode == "plain":
            say(f"{len(names)}/{n_steps}, ETA {seconds_text(left)}, done: {name}")

    if mode != "bar":
        yield line
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("ETA"), TimeRemainingColumn())
    with Bar(*columns, TextColumn("done: {task.description}"), console=Console(stderr=True)) as bar:
        task = bar.add_task("-", total=n_steps)
        yield lambda name: bar.update(task, advance=1, description=name)


class _Lines:
    """Progress as a line every ten seconds, and one at the end."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._start = self._said = time.monotonic()

    def __call__(self, state: Progress) -> None:
        now = time.monotonic()
        if now - self._said < _PLAIN_EVERY_S and state.n_done < state.n_total:
            return
        self._said = now
        rate = state.n_done / max(1e-9, now - self._start)
        eta_s = (state.n_total - state.n_done) / rate if rate else 0.0
        if self._as_json:
            line = {**asdict(state), "rate": round(rate, 2), "eta_s": round(eta_s, 1)}
            say(json.dumps(line))
        else:
            say(
                f"{state.n_done}/{state.n_total} images, {rate:.1f}/s, ETA {seconds_text(eta_s)}, "
                f"slowest: {state.slowest}, failed: {state.n_failed}"
            )
