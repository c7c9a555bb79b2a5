"""Progress on stderr: a bar in a terminal, lines for a log or a program, or nothing."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final, Literal

from embedcache_cli.output import say, seconds_text

if TYPE_CHECKING:
    from embedcache.extract.report import Progress
    from embedcache.finetune.jobs import Step
    from embedcache_cli.output import Screen

Style = Literal["bar", "plain", "jsonl", "off"]
_LINE_EVERY_S: Final = 10.0
# Columns of a bar that are more than text; every other column is a text of rich.
_BAR: Final = "<bar>"
_COUNT: Final = "<count>"
_TIME_LEFT: Final = "<time left>"


def style_of(screen: Screen) -> Style:
    """Return how progress is shown; 'auto' is a bar in a terminal, unless all is to be quiet."""
    if screen.progress != "auto":
        return screen.progress
    return "bar" if sys.stderr.isatty() and not screen.quiet else "off"


@contextmanager
def image_progress(screen: Screen) -> Iterator[Callable[[Progress], None]]:
    """Yield a function that shows how far a pass over images is; its last word stays on screen."""
    style = style_of(screen)
    if style == "off":
        yield lambda _: None
    elif style != "bar":
        yield _ImageLines(as_json=style == "jsonl")
    else:
        start = time.monotonic()
        rate, details = (
            "{task.fields[rate]:.1f} images/s",
            "slowest: {task.fields[slowest]}  failed: {task.fields[failed]}",
        )
        with _bars(_BAR, _COUNT, rate, "ETA", _TIME_LEFT, details) as bars:
            task = bars.add_task("", total=None, rate=0.0, slowest="-", failed=0)

            def show(state: Progress) -> None:
                bars.update(
                    task,
                    completed=state.n_done,
                    total=state.n_total,
                    rate=state.n_done / max(1e-9, time.monotonic() - start),
                    slowest=state.slowest,
                    failed=state.n_failed,
                )

            yield show


@contextmanager
def step_progress(screen: Screen, n_steps: int) -> Iterator[Callable[[str], None]]:
    """Yield a function that is told the name of each of `n_steps` steps as it is done."""
    style = style_of(screen)
    if style != "bar":
        yield _StepLines(n_steps, style)
        return
    with _bars(_BAR, _COUNT, "ETA", _TIME_LEFT, "done: {task.description}") as bars:
        task = bars.add_task("-", total=n_steps)
        yield lambda name: bars.update(task, advance=1, description=name)


@contextmanager
def fold_progress(screen: Screen) -> Iterator[Callable[[Step], None]]:
    """Yield a function that draws a bar for each fold that trains; epochs make lines elsewhere."""
    if style_of(screen) != "bar":
        yield lambda _: None
        return
    with _bars("{task.description}", _BAR, "ETA", _TIME_LEFT) as bars:
        tasks: dict[int, Any] = {}

        def show(step: Step) -> None:
            # A fold whose bar is full already belongs to another model.
            if step.fold not in tasks or bars.tasks[tasks[step.fold]].finished:
                tasks[step.fold] = bars.add_task("", total=step.n_total)
            text = f"fold {step.fold}, epoch {step.epoch}"
            bars.update(tasks[step.fold], completed=step.n_done, description=text)

        yield show


@contextmanager
def _bars(*columns: str) -> Iterator[Any]:
    """Yield rich's display of bars on stderr; rich is imported only where a bar is drawn."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    special: dict[str, Any] = {
        _BAR: BarColumn,
        _COUNT: MofNCompleteColumn,
        _TIME_LEFT: TimeRemainingColumn,
    }
    made = [special[column]() if column in special else column for column in columns]
    with Bars(*made, console=Console(stderr=True)) as bars:
        yield bars


class _ImageLines:
    """Progress of a pass as a line every ten seconds, and one at the end."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._start = self._last = time.monotonic()

    def __call__(self, state: Progress) -> None:
        now = time.monotonic()
        if now - self._last < _LINE_EVERY_S and state.n_done < state.n_total:
            return
        self._last = now
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


class _StepLines:
    """Progress of named steps as a line a step, or nothing."""

    def __init__(self, n_steps: int, style: Style) -> None:
        self._n_steps, self._style = n_steps, style
        self._n_done = 0
        self._start = time.monotonic()

    def __call__(self, name: str) -> None:
        self._n_done += 1
        passed = time.monotonic() - self._start
        left = passed / self._n_done * (self._n_steps - self._n_done)
        if self._style == "jsonl":
            state = {"done": self._n_done, "total": self._n_steps, "last": name}
            say(json.dumps({**state, "eta_s": round(left, 1)}))
        elif self._style == "plain":
            say(f"{self._n_done}/{self._n_steps}, ETA {seconds_text(left)}, done: {name}")
