"""A workspace read into memory: its images with their digests, its stores, its catalog."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from embedcache.data.image_files import ImageFile, hash_images
from embedcache.data.images import split_frame
from embedcache.data.manifest import image_paths, read_manifest
from embedcache.errors import ManifestError, MissingEmbeddingsError, StoreMismatchError
from embedcache.files.cores import usable_cores
from embedcache.files.digests import DigestCache, Stamp
from embedcache.files.durable import (
    canonical_json,
    new_id,
    publish_table,
    read_document,
    read_table,
    table_stem,
    utc_now,
)
from embedcache.store.embedding_store import EmbeddingStore
from embedcache.store.layout import DOCUMENT
from embedcache.verbs import catalog
from embedcache.workspace import Workspace

_SNAPSHOT: Final = b"embedcache"

is_catalog_stale = catalog.is_catalog_stale
renew_catalog = catalog.renew_catalog


@dataclass(frozen=True, slots=True)
class Images:
    """The images of a workspace.

    Parameters
    ----------
    table
        Every manifest column, and `sha256`: of the file where it is here, of the manifest or of
        the last extraction where it is not, NULL where nobody knows it or where the file is not
        the one that the manifest states.
    files
        The same images as files, in the same order; empty where there is no manifest, only a store.
    absent
        Numbers of the images whose files are not here: they can be looked up, but not encoded.
    manifest_stamp
        Size, inode and time stamps of the manifest before it was read; None where there is none.
    """

    table: pa.Table
    files: tuple[ImageFile, ...]
    absent: frozenset[int] = frozenset()
    manifest_stamp: Stamp | None = None

    @property
    def keys(self) -> list[str | None]:
        """SHA-256 of each image, in order."""
        keys: list[str | None] = self.table["sha256"].to_pylist()
        return keys


def image_files(workspace: Workspace) -> tuple[pa.Table, tuple[ImageFile, ...]]:
    """Return the manifest as a table, and its images as files; reads none of them."""
    manifest = read_manifest(workspace.manifest)
    paths = image_paths(manifest, workspace.data_root)
    expected = manifest.columns.get("sha256", ("",) * len(manifest))
    plain, frames = zip(*map(split_frame, paths), strict=True)
    files = tuple(map(ImageFile, manifest.column("image_id"), plain, expected, frames))
    return manifest.table(), files


def load_images(workspace: Workspace, digests: DigestCache | None = None) -> Images:
    """Return the images with their digests; a file is read only if it is not known already.

    Raises
    ------
    ManifestError
        There is neither a manifest nor a store that remembers one.
    """
    snapshot = latest_snapshot(workspace)
    if not workspace.manifest.is_file():
        if snapshot is None:
            raise ManifestError(f"{workspace.manifest}: no such manifest; pass --manifest FILE")
        return Images(table=snapshot, files=())
    stamp = catalog.manifest_stamp(workspace)
    table, files = image_files(workspace)
    digests = digests or DigestCache(workspace.digests)
    found = hash_images(files, digests, max(2, usable_cores()))
    if workspace.store.is_dir():
        digests.save()
    absent = frozenset(number for number, key in enumerate(found) if not key)
    keys: list[str | None] = [
        file.key_of(digest) if digest and file.expected in {"", digest} else None
        for file, digest in zip(files, found, strict=True)
    ]
    if absent:
        remembered = _remembered(snapshot)
        for number in absent:
            file, path = files[number], table["path"][number].as_py()
            said = file.key_of(file.expected) if file.expected else None
            keys[number] = said or remembered.get((file.image_id, path))
    return Images(_with_digests(table, keys), files, absent, stamp)


def _with_digests(table: pa.Table, keys: Sequence[str | None]) -> pa.Table:
    if "sha256" in table.column_names:
        table = table.drop_columns(["sha256"])
    return table.append_column("sha256", pa.array(keys, pa.string()))


def _remembered(snapshot: pa.Table | None) -> dict[tuple[str, str], str | None]:
    """Return the keys of the images of the last extraction, by image and path."""
    if snapshot is None:
        return {}
    columns = (snapshot[name].to_pylist() for name in ("image_id", "path", "sha256"))
    return {(image, path): key for image, path, key in zip(*columns, strict=True)}


def snapshot_files(workspace: Workspace) -> list[Path]:
    """Return the manifests that were worked with, oldest first."""
    return sorted(workspace.manifests.glob("*.parquet"))


def snapshot_metadata(table: pa.Table) -> dict[str, Any]:
    """Return what is known of a remembered manifest: name, content digest, parent, created."""
    return dict(json.loads(table.schema.metadata[_SNAPSHOT]))


def latest_snapshot(workspace: Workspace) -> pa.Table | None:
    """Return the images of the last extraction with this manifest, or None.

    A store that came from elsewhere knows the manifest under another path; then its name counts.
    """
    tables = [read_table(path) for path in reversed(snapshot_files(workspace))]
    by_path = (table for table in tables if is_snapshot_of(workspace, table))
    name = workspace.manifest.name
    by_name = (table for table in tables if snapshot_metadata(table)["manifest"] == name)
    return next(by_path, None) or next(by_name, None)


def is_snapshot_of(workspace: Workspace, table: pa.Table) -> bool:
    """Tell whether a remembered manifest is this workspace's own, at an earlier time perhaps."""
    return bool(snapshot_metadata(table).get("path") == str(workspace.manifest.resolve()))


def save_snapshot(workspace: Workspace, images: Images) -> str:
    """Remember the images as they are now, unless that is what was remembered last.

    Returns
    -------
    Digest of the content, by which `has_snapshot` knows it.
    """
    content = hashlib.sha256(canonical_json(images.table.to_pydict())).hexdigest()[:16]
    latest = latest_snapshot(workspace)
    is_known = latest is not None and is_snapshot_of(workspace, latest)
    if not is_known or snapshot_metadata(latest)["content"] != content:
        files = snapshot_files(workspace)
        metadata = {
            "manifest": workspace.manifest.name,
            "path": str(workspace.manifest.resolve()),
            "content": content,
            "parent": _content_of(files[-1]) if files else None,
            "created": utc_now(),
        }
        table = images.table.replace_schema_metadata({_SNAPSHOT: json.dumps(metadata).encode()})
        publish_table(workspace.manifests, f"{new_id()[:21]}-{content}", table)
    return content


def has_snapshot(workspace: Workspace, content: str) -> bool:
    """Tell whether a manifest of this content is remembered."""
    return content in map(_content_of, snapshot_files(workspace))


def _content_of(path: Path) -> str:
    return table_stem(path).rpartition("-")[2]


def encoder_folders(workspace: Workspace) -> list[Path]:
    """Return the folder of each encoder fingerprint, by name."""
    return sorted(
        path
        for path in workspace.encoders.glob("*")
        if path.is_dir() and not path.name.startswith(".")
    )


def encoder_documents(workspace: Workspace) -> list[dict[str, Any]]:
    """Return what `encoder.json` says, for each encoder the store knows."""
    return [
        read_document(folder / DOCUMENT)
        for folder in encoder_folders(workspace)
        if (folder / DOCUMENT).exists()
    ]


def encoder_folder(workspace: Workspace, name: str, fingerprint: str) -> Path:
    """Return the folder of a fingerprint: the one there is, under whatever name, or a new one."""
    held = list(workspace.encoders.glob(f"*-{fingerprint[:12]}"))
    plain = re.sub(r"[^A-Za-z0-9._]+", "-", name)
    return held[0] if held else workspace.encoders / f"{plain}-{fingerprint[:12]}"


def open_stores(workspace: Workspace) -> list[EmbeddingStore]:
    """Open every encoder's store.

    Raises
    ------
    StoreCorruptError
        A record or a segment is missing or damaged.
    """
    if workspace.store.is_dir():
        workspace.check_format()
    return [EmbeddingStore(folder) for folder in encoder_folders(workspace)]


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
        for document in encoder_documents(workspace)
        if str(document["name"]).replace("_", "-") == plain
        and str(document["fingerprint"]).startswith(prefix)
    }
    if not documents:
        held = sorted({str(d["name"]) for d in encoder_documents(workspace)})
        raise MissingEmbeddingsError(
            f"no embeddings of '{model}' in {workspace.store}; it holds "
            f"{', '.join(held) or 'none'}; run `embedcache extract --model {name}`"
        )
    if len(documents) > 1:
        choices = ", ".join(f"{name}@{fingerprint[:12]}" for fingerprint in documents)
        raise StoreMismatchError(f"'{model}' has several fingerprints; name one of {choices}")
    fingerprint = next(iter(documents))
    return EmbeddingStore(encoder_folder(workspace, name, fingerprint))
