"""The images of a workspace with their digests, from the manifest or from the newest snapshot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from embedcache.data.image_files import ImageFile, hash_images
from embedcache.data.images import split_frame
from embedcache.data.manifest import Manifest, image_paths
from embedcache.data.snapshots import latest_snapshot
from embedcache.errors import ManifestError
from embedcache.files.cores import usable_cores
from embedcache.files.digests import DigestCache
from embedcache.workspace import Workspace


@dataclass(frozen=True, slots=True)
class Images:
    """The images of a workspace.

    Parameters
    ----------
    table
        Every manifest column, and `sha256`: of the file where it is here, of the manifest or of
        the newest snapshot where it is not, NULL where nobody knows it or where the file is not
        the one that the manifest states.
    files
        The same images as files, in the same order; empty where there is no manifest, only a store.
    absent
        Row numbers in `table` of the images whose files are not here: their embeddings can be
        looked up, but they cannot be encoded.
    """

    table: pa.Table
    files: tuple[ImageFile, ...]
    absent: frozenset[int] = frozenset()

    @property
    def keys(self) -> list[str | None]:
        """SHA-256 of each image, in the order of the table."""
        keys: list[str | None] = self.table["sha256"].to_pylist()
        return keys

    def column(self, name: str, numbers: Sequence[int]) -> tuple[str, ...]:
        """Return one column of the images with these row numbers."""
        values = self.table[name].take(pa.array(numbers, pa.int64()))
        return tuple(values.to_pylist())


def image_files(manifest: Manifest, data_root: Path) -> tuple[ImageFile, ...]:
    """Return the images of a manifest as files, in its order; reads none of them.

    Raises
    ------
    ManifestError
        A path that leaves the data root.
    """
    paths = image_paths(manifest, data_root)
    expected = manifest.columns.get("sha256", ("",) * len(manifest))
    plain, frames = zip(*map(split_frame, paths), strict=True)
    return tuple(map(ImageFile, manifest.column("image_id"), plain, expected, frames))


def remembered_images(workspace: Workspace) -> Images:
    """Return the images of the newest snapshot, where the manifest is elsewhere.

    Raises
    ------
    ManifestError
        The store has no snapshot of the manifest.
    """
    snapshot = latest_snapshot(workspace)
    if snapshot is None:
        raise ManifestError(f"{workspace.manifest}: no such manifest; pass --manifest FILE")
    return Images(table=snapshot, files=())


def load_images(
    workspace: Workspace,
    manifest: Manifest,
    files: tuple[ImageFile, ...],
    digests: DigestCache,
) -> Images:
    """Return the images with their digests; a file is read only if its digest is not remembered.

    Parameters
    ----------
    workspace
        Workspace of the manifest.
    manifest, files
        The checked manifest, and its images as files.
    digests
        Remembered digests of files.
    """
    table = manifest.table()
    file_digests = hash_images(files, digests, max(2, usable_cores()))
    if workspace.has_store():
        digests.save()
    absent = frozenset(number for number, digest in enumerate(file_digests) if not digest)
    keys: list[str | None] = [
        file.key_of(digest) if digest and file.expected in {"", digest} else None
        for file, digest in zip(files, file_digests, strict=True)
    ]
    if absent:
        remembered = _snapshot_keys(latest_snapshot(workspace))
        for number in absent:
            file, path = files[number], table["path"][number].as_py()
            stated = file.key_of(file.expected) if file.expected else None
            keys[number] = stated or remembered.get((file.image_id, path))
    return Images(table=_with_digests(table, keys), files=files, absent=absent)


def _with_digests(table: pa.Table, keys: Sequence[str | None]) -> pa.Table:
    if "sha256" in table.column_names:
        table = table.drop_columns(["sha256"])
    return table.append_column("sha256", pa.array(keys, pa.string()))


def _snapshot_keys(snapshot: pa.Table | None) -> dict[tuple[str, str], str | None]:
    """Return the SHA-256 of each image of a snapshot, by image id and path."""
    if snapshot is None:
        return {}
    columns = (snapshot[name].to_pylist() for name in ("image_id", "path", "sha256"))
    return {(image, path): key for image, path, key in zip(*columns, strict=True)}
