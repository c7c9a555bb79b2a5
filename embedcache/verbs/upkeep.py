"""`status` and `gc`: what a store holds against what is wanted, and what it can drop."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from embedcache.data.fold_tables import FoldTables
from embedcache.data.snapshots import Snapshots, is_snapshot_of, snapshot_files
from embedcache.encoders.kept import KeptWeights
from embedcache.extract.pictures import PictureStores
from embedcache.files.documents import read_table
from embedcache.files.durable import TEMPORARY
from embedcache.finetune.states import Trainings
from embedcache.runs.files import run_folders
from embedcache.store import care
from embedcache.store.embedding_store import EmbeddingStore
from embedcache.verbs import state
from embedcache.workspace import Workspace


@dataclass(frozen=True, slots=True)
class EncoderStatus:
    """What the store holds of one encoder, against what the manifest wants.

    Parameters
    ----------
    encoder, fingerprint, dim, precision
        Which.
    n_wanted, n_held, n_failed, n_missing
        Images of the manifest: in all, with a row, recorded as failed, neither.
    n_spare
        Rows of images that are not in the manifest.
    size_bytes
        Of the live rows.
    seconds
        By stage, over all passes.
    """

    encoder: str
    fingerprint: str
    dim: int
    precision: str
    n_wanted: int
    n_held: int
    n_failed: int
    n_missing: int
    n_spare: int
    size_bytes: int
    seconds: dict[str, float]


@dataclass(frozen=True, slots=True)
class Status:
    """What a workspace holds.

    Parameters
    ----------
    manifest, store
        Where.
    n_images, n_patients, n_unreadable
        Images and patients of the manifest; images whose file is not here and whose digest nobody
        knows.
    cohorts
        Cohort to number of images.
    encoders
        One entry a fingerprint.
    n_runs
        Stored runs.
    """

    manifest: Path
    store: Path
    n_images: int
    n_patients: int
    n_unreadable: int
    cohorts: dict[str, int]
    encoders: tuple[EncoderStatus, ...]
    n_runs: int


def status(workspace: Workspace) -> Status:
    """Return what the store holds, against what the manifest wants."""
    images = state.load_images(workspace)
    cohort = images.table["cohort"].to_pylist()
    return Status(
        manifest=workspace.manifest,
        store=Path(str(workspace.store)),
        n_images=len(cohort),
        n_patients=len(set(images.table["patient_id"].to_pylist())),
        n_unreadable=images.keys.count(None),
        cohorts={name: cohort.count(name) for name in sorted(set(cohort))},
        encoders=tuple(
            _encoder_status(store, images.keys) for store in state.open_stores(workspace)
        ),
        n_runs=len(run_folders(workspace.runs)),
    )


def _encoder_status(store: EmbeddingStore, keys: Sequence[str | None]) -> EncoderStatus:
    n_held = sum(key in store for key in keys)
    n_failed = sum(key in store.failures for key in keys)
    seconds: dict[str, float] = {}
    for record in store.records:
        for stage, spent in record.context.get("seconds", {}).items():
            seconds[stage] = round(seconds.get(stage, 0.0) + spent, 3)
    return EncoderStatus(
        encoder=store.name,
        fingerprint=store.fingerprint,
        dim=store.dim,
        precision=str(store.document["identity"]["precision"]),
        n_wanted=len(keys),
        n_held=n_held,
        n_failed=n_failed,
        n_missing=len(keys) - n_held - n_failed,
        n_spare=len(set(store.row_keys()) - set(keys)),
        size_bytes=store.size_bytes,
        seconds=seconds,
    )


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
    for table in map(read_table, snapshot_files(workspace)):
        if not is_snapshot_of(workspace, table):
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
        for folder in Path(workspace.runs).glob(f"{TEMPORARY}*"):
            shutil.rmtree(folder)
        # The pictures last: they go once no training is left.
        for kind in (FoldTables, Snapshots, KeptWeights, Trainings, PictureStores):
            freed += kind(workspace).sweep(grace_s)
        state.renew_catalog(workspace, images)
    return GcReport(n_rows, freed)
