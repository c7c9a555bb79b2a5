"""The stores of a workspace, opened, and its catalog."""

from __future__ import annotations

from embedcache.catalog.index import Sources, write_catalog
from embedcache.data import snapshots
from embedcache.data.image_table import Images, image_files, load_images
from embedcache.errors import MissingEmbeddingsError, StoreMismatchError
from embedcache.files.backend import Location
from embedcache.store.embedding_store import EmbeddingStore
from embedcache.workspace import Workspace

__all__ = [
    "Images",
    "find_store",
    "image_files",
    "is_catalog_stale",
    "load_images",
    "open_stores",
    "renew_catalog",
    "save_snapshot",
    "sources",
]


def save_snapshot(workspace: Workspace, images: Images) -> str:
    """Remember the images as they are now; see `data.snapshots.save_snapshot`."""
    return snapshots.save_snapshot(workspace, images.table)


def open_stores(workspace: Workspace) -> list[EmbeddingStore]:
    """Open every encoder's store.

    Raises
    ------
    StoreCorruptError
        A record or a segment is missing or damaged.
    """
    if workspace.has_store():
        workspace.check_format()
    return [EmbeddingStore(folder) for folder in workspace.encoder_folders()]


def find_store(workspace: Workspace, model: str) -> EmbeddingStore:
    """Open the store of a model: `name`, or `name@fingerprint` where there are several.

    Raises
    ------
    MissingEmbeddingsError
        The store holds nothing of that name.
    StoreMismatchError
        It holds several fingerprints of it; lists them.
    """
    name, _, prefix = model.partition("@")
    plain = name.replace("_", "-")
    documents = {
        str(document["fingerprint"]): document
        for document in workspace.encoder_documents()
        if str(document["name"]).replace("_", "-") == plain
        and str(document["fingerprint"]).startswith(prefix)
    }
    if not documents:
        held = sorted({str(d["name"]) for d in workspace.encoder_documents()})
        raise MissingEmbeddingsError(
            f"no embeddings of '{model}' in {workspace.store}; it holds "
            f"{', '.join(held) or 'none'}; run `embedcache extract --model {name}`"
        )
    if len(documents) > 1:
        choices = ", ".join(f"{name}@{fingerprint[:12]}" for fingerprint in documents)
        raise StoreMismatchError(f"'{model}' has several fingerprints; name one of {choices}")
    fingerprint = next(iter(documents))
    return EmbeddingStore(workspace.encoder_folder(name, fingerprint))


def sources(workspace: Workspace, images: Images | None = None) -> Sources:
    """Return what the catalog's tables are made of."""
    images = images or load_images(workspace)
    return Sources(
        images=images.table.replace_schema_metadata(None),
        stores=open_stores(workspace),
        folds=workspace.folds,
        runs=workspace.runs,
    )


def is_catalog_stale(workspace: Workspace) -> bool:
    """Tell whether anything was committed, or the manifest edited, since it was written."""
    if not workspace.catalog.exists():
        return True
    stamps = [workspace.manifest.stat().st_mtime_ns] if workspace.manifest.exists() else []
    stamps += _changes(workspace.store, {"manifests/", "folds/", "runs/", "encoders/"})
    for folder in workspace.encoder_folders():
        stamps += _changes(folder, {"commit/"})
    return workspace.catalog.stat().st_mtime_ns <= max(stamps, default=0)


def _changes(folder: Location, names: set[str]) -> list[int]:
    """Return when some sub-folders were last changed, in nanoseconds since 1970."""
    return [entry.modified_ns for entry in folder.list() if entry.name in names]


def renew_catalog(
    workspace: Workspace, images: Images | None = None, *, force: bool = False
) -> bool:
    """Write the catalog anew if anything was committed since it was written.

    Returns
    -------
    Whether it was written.
    """
    if not force and not is_catalog_stale(workspace):
        return False
    workspace.create_store()
    write_catalog(workspace.catalog, sources(workspace, images))
    return True
