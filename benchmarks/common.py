"""What every benchmark prints first, and how it sums up."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from embedcache.files.cores import usable_cores


def print_machine(*packages: str) -> None:
    """Print processor, cores and versions."""
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
