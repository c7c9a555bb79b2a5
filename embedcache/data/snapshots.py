"""The manifests that were worked with: tables that let a store be used where the images are not."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, Final

import pyarrow as pa

from embedcache.errors import StoreCorruptError
from embedcache.files.backend import Location
from embedcache.files.documents import (
    checked_bytes,
    put_table,
    read_table,
    table_files,
    table_stem,
)
from embedcache.files.durable import canonical_json, new_id, utc_now
from embedcache.files.kinds import (
    SNAPSHOTS,
    ArtefactKind,
    Damage,
    Mended,
    Reference,
    sweep_temporaries,
)
from embedcache.workspace import Workspace

_METADATA: Final = b"embedcache"
_STEM: Final = re.compile(r"\d{8}T\d{12}-(?P<content>[0-9a-f]{16})")


def snapshot_files(workspace: Workspace) -> list[Location]:
    """Return the snapshots, oldest first."""
    files = table_files(workspace.manifests)
    return [file for stem, file in files.items() if _STEM.fullmatch(stem)]


def snapshot_metadata(table: pa.Table) -> dict[str, Any]:
    """Return facts about a snapshot: manifest's name and path, content digest, parent, created."""
    return dict(json.loads(table.schema.metadata[_METADATA]))


def is_snapshot_of(workspace: Workspace, table: pa.Table) -> bool:
    """Tell whether a snapshot is of this workspace's own manifest, at an earlier time perhaps."""
    return bool(snapshot_metadata(table).get("path") == str(workspace.manifest.resolve()))


def latest_snapshot(workspace: Workspace) -> pa.Table | None:
    """Return the newest snapshot of the workspace's manifest, or None.

    A store that came from elsewhere knows the manifest under another path; then its name counts.
    """
    namesake = None
    for file in reversed(snapshot_files(workspace)):
        table = read_table(file)
        if is_snapshot_of(workspace, table):
            return table
        if namesake is None and snapshot_metadata(table)["manifest"] == workspace.manifest.name:
            namesake = table
    return namesake


def read_snapshot(workspace: Workspace, content: str) -> pa.Table | None:
    """Return the snapshot of a content digest, or None where it is gone."""
    files = (file for file in snapshot_files(workspace) if _content_of(file) == content)
    file = next(files, None)
    return None if file is None else read_table(file)


def save_snapshot(workspace: Workspace, table: pa.Table) -> str:
    """Remember the images as they are now, unless the newest snapshot says the same.

    Parameters
    ----------
    workspace
        Workspace of the images.
    table
        One row an image: every manifest column, and `sha256`.

    Returns
    -------
    Digest of the content, 16 hexadecimal digits, by which records refer to the snapshot.
    """
    content = hashlib.sha256(canonical_json(table.to_pydict())).hexdigest()[:16]
    latest = latest_snapshot(workspace)
    is_own = latest is not None and is_snapshot_of(workspace, latest)
    if not is_own or snapshot_metadata(latest)["content"] != content:
        files = snapshot_files(workspace)
        metadata = {
            "manifest": workspace.manifest.name,
            "path": str(workspace.manifest.resolve()),
            "content": content,
            "parent": _content_of(files[-1]) if files else None,
            "created": utc_now(),
        }
        workspace.create_store()
        described = table.replace_schema_metadata({_METADATA: json.dumps(metadata).encode()})
        put_table(workspace.manifests, f"{new_id()[:21]}-{content}", described)
    return content


def _content_of(file: Location) -> str:
    return table_stem(file.name).rpartition("-")[2]


class Snapshots(ArtefactKind):
    """The snapshots of a workspace's store as one kind of artefact.

    Parameters
    ----------
    workspace
        Workspace of the snapshots.
    """

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace

    @property
    def name(self) -> str:
        """Plural name of the kind."""
        return SNAPSHOTS

    @property
    def folder(self) -> Location:
        """The folder in which all of them lie."""
        return self._workspace.manifests

    def items(self) -> Sequence[Location]:
        """Return the file of each snapshot, oldest first."""
        return snapshot_files(self._workspace)

    def check(self, item: Location) -> Iterator[Damage]:
        """Compare a snapshot with the checksum in its name."""
        try:
            checked_bytes(item)
        except StoreCorruptError as error:
            yield Damage(item, error.problem)

    def mend(self, item: Location) -> Mended:
        """Remove a snapshot; `save_snapshot` makes that of the manifest as it is now again."""
        item.delete()
        return Mended(f"{item} removed; it cannot be made again if the manifest has changed since")

    def sweep(self, grace_s: float) -> int:
        """Delete leftovers of killed writes."""
        return sweep_temporaries(self.folder, grace_s)

    def references(self, item: Location) -> Iterator[Reference]:
        """Return the snapshot that came before."""
        with contextlib.suppress(StoreCorruptError):
            parent = snapshot_metadata(read_table(item))["parent"]
            if parent:
                yield Reference(SNAPSHOTS, parent)

    def holds(self, artefact: str) -> bool:
        """Tell whether a snapshot of that content is there."""
        return artefact in map(_content_of, self.items())
