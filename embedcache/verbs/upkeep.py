"""`gc`: what a store can drop."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from embedcache.catalog.index import leftovers
from embedcache.extract.pictures import pixel_folders
from embedcache.files.durable import TEMPORARY, read_table, remove_folder
from embedcache.files.locks import if_unmarked
from embedcache.store import care
from embedcache.verbs import state
from embedcache.workspace import Workspace


@dataclass(frozen=True, slots=True)
class GcReport:
    """What `gc` dropped, or would drop.

    Parameters
    ----------
    n_rows
        Rows of images that no manifest wants.
    freed_bytes
        Bytes deleted: segments, and what training left; 0 in a dry run.
    """

    n_rows: int
    freed_bytes: int


def collect_garbage(
    workspace: Workspace, *, grace_s: float = care.GRACE_S, dry_run: bool = False
) -> GcReport:
    """Drop rows that no manifest wants, and files that nothing needs any more.

    Wanted is what the manifest names now, and whatever any other manifest that worked with this
    store named last. Pictures at training size go whole, unless a training has yet to end.

    Parameters
    ----------
    grace_s
        Files younger than this stay: a reader may hold on to them.
    dry_run
        Count, and change nothing.
    """
    images = state.load_images(workspace)
    wanted = {key for key in images.keys if key}
    for table in map(read_table, state.snapshot_files(workspace)):
        if not state.is_snapshot_of(workspace, table):
            wanted |= set(table["sha256"].to_pylist())
    n_rows = freed = 0
    for store in state.open_stores(workspace):
        n_rows += sum(key not in wanted for key in store.row_keys())
        if not dry_run:
            with store.lock():
                kept = [key for key in store.row_keys() if key in wanted]
                if len(kept) < len(store):
                    store.rewrite(kept)
            freed += care.sweep(store.folder, grace_s=grace_s)
    if not dry_run:
        for folder in workspace.runs.glob(f"{TEMPORARY}*"):
            shutil.rmtree(folder)
        for file in leftovers(workspace.catalog):
            if time.time() - file.stat().st_mtime > grace_s:
                freed += file.stat().st_size
                file.unlink()
        with if_unmarked(workspace.training) as unused:
            freed += sum(map(_removed, _training_leftovers(workspace))) if unused else 0
        state.renew_catalog(workspace, images)
    return GcReport(n_rows, freed)


def _training_leftovers(workspace: Workspace) -> list[Path]:
    """Return the states of trainings whose run is published; without others, the pictures too."""
    states = [path for path in workspace.training.glob("*") if path.is_dir()]
    done = [
        path
        for path in states
        if path.name.startswith(TEMPORARY) or (workspace.runs / path.name).exists()
    ]
    if len(done) < len(states):
        return done
    return [*done, *pixel_folders(workspace), *workspace.pixels.glob(f"{TEMPORARY}*")]


def _removed(folder: Path) -> int:
    """Remove a folder and return how many bytes it held."""
    n_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    remove_folder(folder)
    return n_bytes
