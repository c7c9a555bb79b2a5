"""What tests do to a project behind its back, and how they count what it then did."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from embedcache.encoders import registry


def rewrite_manifest(project, edit: Callable[[list[str]], Sequence[str]]) -> None:
    """Replace the lines below the header, each with its line end, by what `edit` returns."""
    header, *lines = project.workspace.manifest.read_text().splitlines(keepends=True)
    project.workspace.manifest.write_text("".join([header, *edit(lines)]))


def add_column(folder: Path, name: str, values: Callable[[list[str]], Sequence[object]]) -> None:
    """Give a folder's manifest another column; `values` gets the lines and returns one each."""
    file = folder / "data_manifest.csv"
    header, *lines = file.read_text().splitlines()
    rows = [f"{line},{value}" for line, value in zip(lines, values(lines), strict=True)]
    file.write_text("\n".join([f"{header},{name}", *rows]) + "\n")


def flip(path: os.PathLike) -> None:
    """Flip one bit in the middle of a file."""
    path = Path(path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.write_bytes(data)


def cut(path: os.PathLike) -> None:
    """Cut a file in half."""
    path = Path(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def other_fingerprint(monkeypatch) -> None:
    """Make 'pixels' another encoder under the same name, as a new checkpoint does."""
    spec = registry.BUILTIN["pixels"]
    changed = replace(spec, preprocess=replace(spec.preprocess, resample="bicubic"))
    monkeypatch.setattr(registry, "BUILTIN", {**registry.BUILTIN, "pixels": changed})


def tally(report, number: int = 0) -> tuple[int, int, int, int]:
    """Return how many images a pass had of an encoder: in all, cached, encoded, failed."""
    counts = report.tallies[number]
    return counts.n_images, counts.n_cached, counts.n_written, counts.n_failed
