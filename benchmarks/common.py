"""What every benchmark prints first, and how it sums up."""

from __future__ import annotations

import os
import platform
import shlex
import statistics
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from embedcache.files.cores import usable_cores

ROOT = Path(__file__).parents[1]


def command_line(arguments: Sequence[str]) -> str:
    """Return what to type to run a script again; `arguments` are those of `sys.argv`.

    Outputs are published: a path outside the repository is cut to its last part, so that it says
    which data were used and not where they lie.
    """
    threads = os.environ.get("OMP_NUM_THREADS")
    start = [f"OMP_NUM_THREADS={threads}"] if threads else []
    return shlex.join([*start, "python", *map(_without_place, arguments)])


def _without_place(argument: str) -> str:
    option, equals, value = argument.rpartition("=")
    path = Path(value).expanduser()
    if path.is_absolute() or ".." in path.parts or path.exists():
        whole = path.resolve()
        inside = whole.is_relative_to(ROOT)
        value = whole.relative_to(ROOT).as_posix() if inside else whole.name
    return f"{option}{equals}{value}"


def print_machine(*packages: str) -> None:
    """Print the command line, then processor, cores and versions."""
    print(f"$ {command_line(sys.argv)}")
    name = platform.processor() or platform.machine()
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as lines:
            models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
        name = models[0] if models else name
    except OSError:
        pass
    shown = ", ".join(f"{package} {version(package)}" for package in packages)
    print(f"{name}, {usable_cores()} cores; Python {platform.python_version()}, {shown}")


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Return median [least, most]."""
    return (
        f"{statistics.median(values):.{digits}f} [{min(values):.{digits}f}, "
        f"{max(values):.{digits}f}]"
    )
