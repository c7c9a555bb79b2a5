"""What the catalog of a workspace is made of, and when it is brought up to date.

Listing touches no image and reads no table: names and time stamps tell what is new. What works
with images and stores is imported by the functions that load it, so that a query on an up-to-date
catalog pays for none of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from embedcache.catalog.index import is_fresh, update
from embedcache.catalog.query import CatalogSource
from embedcache.catalog.sources import RunRow, SourceItem, one_row
from embedcache.files.digests import Stamp, stamp_of
from embedcache.workspace import Workspace

if TYPE_CHECKING:
    import pyarrow as pa

    from embedcache.store.embedding_store import EmbeddingStore
    from embedcache.verbs.state import Images

_QUESTION: Final = (
    "label", "task", "train_cohort", "external", "where", "class_map", "classes", "n_folds",
)  # fmt: skip


def catalog_source(workspace: Workspace, images: Images | None = None) -> CatalogSource:
    """Return the catalog of a workspace with the items that it is made of; loads none of them.

    Parameters
    ----------
    workspace
        The manifest and its store.
    images
        The images, where they have been loaded already.

    Raises
    ------
    StoreMismatchError
        The store was written by another format version.
    """
    if workspace.store.is_dir():
        workspace.check_format()
    items = [
        _manifest_item(workspace, images),
        *map(_encoder_item, _folders(workspace.encoders)),
        *map(_folds_item, _tables(workspace.folds)),
        *map(_run_item, _folders(workspace.runs)),
    ]
    return CatalogSource(workspace.catalog, items, partial(_open_stores, workspace))


def is_catalog_stale(workspace: Workspace) -> bool:
    """Return whether anything was committed, or the manifest edited, since it was written."""
    source = catalog_source(workspace)
    return not is_fresh(source.path, source.items)


def renew_catalog(
    workspace: Workspace, images: Images | None = None, *, force: bool = False
) -> bool:
    """Bring the catalog up to date.

    Parameters
    ----------
    workspace
        The manifest and its store.
    images
        The images, where they have been loaded already.
    force
        Whether to write the catalog anew, also where it is up to date.

    Returns
    -------
    Whether it was written.
    """
    workspace.create_store()
    source = catalog_source(workspace, images)
    return update(source.path, source.items, anew=force)


def manifest_stamp(workspace: Workspace) -> Stamp | None:
    """Return size, inode and time stamps of the manifest; None where there is none."""
    try:
        return stamp_of(workspace.manifest.stat())
    except OSError:
        return None


def _manifest_item(workspace: Workspace, images: Images | None) -> SourceItem:
    """Return the item of the images: new where the manifest was edited or its images extracted.

    The files of the images are not looked at: the catalog has their digests as the last pass over
    them found them. The stamp is of before the manifest is read: an edit meanwhile is noticed.
    """

    def load() -> dict[str, pa.Table]:
        from embedcache.verbs import state

        table = (images or state.load_images(workspace)).table
        return {"images": table.replace_schema_metadata(None)}

    name = json.dumps([str(workspace.manifest.resolve()), str(workspace.data_root.resolve())])
    stamp = images.manifest_stamp if images else manifest_stamp(workspace)
    snapshots = [path.name for path in _tables(workspace.manifests)]
    return SourceItem("manifest", name, json.dumps([stamp, snapshots[-1:]]), load)


def _encoder_item(folder: Path) -> SourceItem:
    def load() -> dict[str, pa.Table]:
        from embedcache.catalog.embeddings import encoder_tables
        from embedcache.store.embedding_store import EmbeddingStore

        return encoder_tables(EmbeddingStore(folder))

    names = "\n".join(path.name for path in _tables(folder / "commit"))
    return SourceItem("encoder", folder.name, hashlib.sha256(names.encode()).hexdigest(), load)


def _folds_item(file: Path) -> SourceItem:
    def load() -> dict[str, pa.Table]:
        import pyarrow as pa

        from embedcache.files.durable import read_table, table_stem

        table = read_table(file).select(["patient_id", "fold"])
        folds_id = pa.array([table_stem(file)] * len(table), pa.string())
        return {"folds": table.append_column("folds_id", folds_id).replace_schema_metadata(None)}

    return SourceItem("folds", file.name, "", load)


def _run_item(folder: Path) -> SourceItem:
    def load() -> dict[str, pa.Table]:
        from embedcache.runs import files as run_files

        tables = {name: run_files.read_run_table(folder, name) for name in run_files.TABLES}
        return {"runs": one_row(run_row(run_files.read_run(folder))), **tables}

    try:
        status = (folder / "run.json").stat()
        stamp = f"{status.st_size} {status.st_mtime_ns}"
    except OSError:
        stamp = "no record"
    return SourceItem("run", folder.name, stamp, load)


def run_row(record: Mapping[str, Any]) -> RunRow:
    """Return the row of `runs` of a run's record."""
    asked: dict[str, Any] = dict(record["settings"])
    probe: dict[str, Any] = asked.pop("probe", None) or {}
    if "external" in probe:
        asked["external_by"] = probe.pop("external")
    settings = {"task": "classification", **probe, **asked}
    question = {name: settings[name] for name in _QUESTION if name in settings}
    method = {name: value for name, value in settings.items() if name not in question}
    return RunRow(
        run_id=record["run_id"],
        kind=record["kind"],
        task=settings["task"],
        encoder=record["encoder"],
        fingerprint=record["fingerprint"],
        probe=settings.get("probe"),
        protocol=settings.get("protocol"),
        rule=settings.get("rule"),
        regime=settings.get("regime", record["kind"]),
        external_by=settings.get("external_by"),
        label_column=settings.get("label"),
        train_cohort=settings.get("train_cohort"),
        n_folds=settings.get("n_folds"),
        folds_id=record["data"].get("folds_id"),
        seed=settings.get("seed"),
        n_resamples=settings.get("n_resamples"),
        created=record["created"],
        seconds=record["seconds"],
        question=json.dumps(question, sort_keys=True),
        method=json.dumps(method, sort_keys=True),
        settings=json.dumps(settings, sort_keys=True),
        results=json.dumps(record["results"], sort_keys=True),
    )


def _open_stores(workspace: Workspace) -> Sequence[EmbeddingStore]:
    from embedcache.verbs import state

    return state.open_stores(workspace)


def _folders(root: Path) -> list[Path]:
    return _entries(root, lambda path: path.is_dir())


def _tables(root: Path) -> list[Path]:
    return _entries(root, lambda path: path.suffix == ".parquet")


def _entries(root: Path, keep: Callable[[Path], bool]) -> list[Path]:
    """Return what a folder holds, by name; names that begin with a dot are nobody's data."""

    def visible() -> Iterator[Path]:
        if root.is_dir():
            yield from (path for path in root.iterdir() if not path.name.startswith("."))

    return sorted(path for path in visible() if keep(path))
