"""Write the goldens; nothing else does.

    python tests/golden/make.py           help.txt, and the store of this format version if missing
    python tests/golden/make.py --again   the store of this format version too

Stores of earlier format versions cannot be made any more and are never touched. A store is made
with a clock that stands still and ids that count up, so that only other versions of Zarr, Arrow
and Pillow change its bytes.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from unittest import mock

import click
from embedcache.verbs.probing import ProbeOptions
from embedcache_cli.main import cli

import embedcache
from embedcache.extract.flow import run_pass
from embedcache.extract.lane import Job
from embedcache.files.digests import DigestCache
from embedcache.project import Project
from embedcache.runs.methods import ProbeMethod
from embedcache.store.embedding_store import EmbeddingStore
from embedcache.testing import FakeEncoder, write_cohort
from embedcache.verbs import state
from embedcache.verbs.extract import put_in_order
from embedcache.workspace import FORMAT_VERSION

HERE = Path(__file__).parent
HELP = HERE / "help.txt"
NOW = "2025-01-01T00:00:00+00:00"
# Derived files, and files of one machine: a store is whole without them.
LEFT_OUT = {"catalog.duckdb", "digests.tsv", "LOCK"}


def help_text() -> str:
    """Return the `--help` text of every command, 100 columns wide."""
    parts = [f"$ {name} --help\n{text}" for name, text in _helps(cli, "embedcache", None)]
    return "\n\n".join(parts) + "\n"


def _helps(
    command: click.Command, name: str, parent: click.Context | None
) -> Iterator[tuple[str, str]]:
    settings = {"terminal_width": 100, **command.context_settings}
    context = click.Context(command, info_name=name, parent=parent, **settings)
    yield context.command_path, command.get_help(context)
    if isinstance(command, click.Group):
        for verb in command.list_commands(context):
            yield from _helps(command.get_command(context, verb), verb, context)


def make_project(folder: Path) -> Project:
    """Write a project with all that a store can hold, and return it.

    Sixteen images, one of them broken, encoded in five commits; the first three were compacted
    and their records are still there. Then folds and a run.
    """
    write_cohort(folder, n_patients=5, n_images=1, cohorts=("home", "abroad"))
    (folder / "images" / "abroad-002_brain_0.png").write_bytes(b"not an image")
    project = embedcache.open(folder)
    with ExitStack() as stack:
        _stop_the_clock(stack)
        _extract(project)
        options = ProbeOptions(settings=ProbeMethod(grid=(0.01, 1.0)), n_resamples=100)
        project.probe("fake", probe_options=options, folds=3)
    return project


def _stop_the_clock(stack: ExitStack) -> None:
    numbers = count(1)

    def next_id() -> str:
        return f"20250101T000000{next(numbers):06d}-000000000000"

    for module in ("store.commits", "data.snapshots"):
        stack.enter_context(mock.patch(f"embedcache.{module}.new_id", next_id))
    for module in ("workspace", "data.snapshots", "verbs.probing"):
        stack.enter_context(mock.patch(f"embedcache.{module}.utc_now", return_value=NOW))
    stack.enter_context(mock.patch("time.perf_counter", return_value=0.0))


def _extract(project: Project) -> None:
    project.workspace.create_store()
    encoder, digests = FakeEncoder(dim=4), DigestCache()
    document = {
        "name": encoder.spec.name,
        "fingerprint": encoder.fingerprint,
        "identity": encoder.identity,
        "spec": encoder.spec.document(),
        "versions": {"embedcache-fm": embedcache.__version__},
        "created": NOW,
    }
    folder = project.workspace.encoder_folder(encoder.spec.name, encoder.fingerprint)
    store = EmbeddingStore.open_or_create(folder, document)
    images = state.load_images(project.workspace)
    context = {"manifest": state.save_snapshot(project.workspace, images)}
    for first, last in ((0, 4), (4, 7), (7, 12), (12, 15), (15, None)):
        job = Job(encoder.spec, store, lambda: encoder)
        run_pass(images.files[first:last], [job], digests, workers=1)
        if last == 12:
            put_in_order(store, images, context)


def all_rows(project: Project) -> list[dict]:
    """Return every image's row, or None, as JSON can hold it without loss."""
    store = state.find_store(project.workspace, "fake")
    images = project.images().select(["image_id", "sha256"]).to_pylist()
    held = {key: store.read([key])[0].tolist() for key in store.row_keys()}
    return [{**image, "row": held.get(image["sha256"])} for image in images]


def all_predictions(project: Project) -> list[dict]:
    """Return what the stored run predicted, as JSON can hold it without loss."""
    rows = project.sql("FROM predictions ORDER BY run_id, image_id").to_pylist()
    return [{**row, "p": dict(row["p"])} for row in rows]


def make_store(version: int) -> None:
    """Write `store_v<version>.zip`, and beside it what must be read from it."""
    with tempfile.TemporaryDirectory() as folder:
        project = make_project(Path(folder))
        expected = {"rows": all_rows(project), "predictions": all_predictions(project)}
        _pack(Path(folder), HERE / f"store_v{version}.zip")
    lines = [
        f'"{name}": [\n' + ",\n".join(map(json.dumps, rows)) + "\n]"
        for name, rows in expected.items()
    ]
    (HERE / f"store_v{version}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


def _pack(folder: Path, file: Path) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            if path.name not in LEFT_OUT:
                entry = zipfile.ZipInfo(path.relative_to(folder).as_posix(), (2025, 1, 1, 0, 0, 0))
                entry.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(entry, path.read_bytes())


def unpack(file: Path, folder: Path) -> Project:
    """Open a golden store in a folder of its own."""
    shutil.unpack_archive(file, folder)
    return embedcache.open(folder)


if __name__ == "__main__":
    HELP.write_text(help_text())
    if "--again" in sys.argv[1:] or not (HERE / f"store_v{FORMAT_VERSION}.zip").exists():
        make_store(FORMAT_VERSION)
