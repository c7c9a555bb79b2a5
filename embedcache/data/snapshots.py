"""The manifests that were worked with: tables that let a store be used where the images are not."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from embedcache.data.claims import Claim, manifest_path, put_claim
from embedcache.errors import StoreCorruptError, StoreReadError, StoreWriteError
from embedcache.files.backend import Location
from embedcache.files.documents import (
    known_shape,
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

_log = logging.getLogger(__name__)

_METADATA: Final = b"embedcache"
_COLUMNS: Final = ("image_id", "path", "sha256")
_STEM: Final = re.compile(r"\d{8}T\d{12}-(?P<content>[0-9a-f]{16})")


def snapshot_files(workspace: Workspace) -> list[Location]:
    """Return the snapshots, oldest first."""
    files = table_files(workspace.manifests)
    return [file for stem, file in files.items() if _STEM.fullmatch(stem)]


def read_snapshot(file: Location) -> pa.Table:
    """Return a snapshot: every manifest column, and `sha256`.

    Raises
    ------
    StoreCorruptError
        It is missing or does not match its checksum.
    StoreReadError
        It is whole, and of a shape that this release does not know.
    """
    table = read_table(file)
    with known_shape(file):
        for name in _COLUMNS:
            _ = table[name]
        for name in ("manifest", "content"):
            _ = snapshot_metadata(table)[name]
    return table


def readable_snapshots(files: Iterable[Location]) -> Iterator[tuple[Location, pa.Table]]:
    """Yield snapshots that can be read, with their files; the log tells of the others."""
    for file in files:
        try:
            yield file, read_snapshot(file)
        except (StoreCorruptError, StoreReadError) as error:
            _log.warning("a snapshot is left out: %s", error)


def snapshot_metadata(table: pa.Table) -> dict[str, Any]:
    """Return facts about a snapshot: manifest's name and path, content digest, parent, created."""
    return dict(json.loads(table.schema.metadata[_METADATA]))


def is_snapshot_of(workspace: Workspace, table: pa.Table) -> bool:
    """Tell whether a snapshot is of this workspace's own manifest, at an earlier time perhaps."""
    return bool(snapshot_metadata(table).get("path") == str(workspace.manifest.resolve()))


def latest_snapshot(workspace: Workspace) -> pa.Table | None:
    """Return the newest readable snapshot of the workspace's manifest, or None.

    A store that came from elsewhere knows the manifest under another path; then its name counts.
    But beside a manifest of this workspace, one that is still at that path is another one.
    """
    namesake = None
    has_own = workspace.manifest.is_file()
    for _, table in readable_snapshots(reversed(snapshot_files(workspace))):
        if is_snapshot_of(workspace, table):
            return table
        about = snapshot_metadata(table)
        is_namesake = about["manifest"] == workspace.manifest.name
        is_other = has_own and Path(about.get("path") or "").is_file()
        if namesake is None and is_namesake and not is_other:
            namesake = table
    return namesake


def find_snapshot(workspace: Workspace, content: str) -> pa.Table | None:
    """Return the snapshot of a content digest, or None where it is gone or cannot be read."""
    files = (file for file in snapshot_files(workspace) if _content_of(file) == content)
    return next((table for _, table in readable_snapshots(files)), None)


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


def release_claims(workspace: Workspace, claims: Iterable[Claim], content: str) -> None:
    """Take back claims that a snapshot settles, where the storage can be written.

    Parameters
    ----------
    workspace
        Workspace of the manifest.
    claims
        Claims that were there before the manifest was read.
    content
        Content digest of the snapshot that was saved of it.
    """
    for claim in claims:
        is_settled = claim.path == manifest_path(workspace) or claim.snapshot == content
        if is_settled:
            with contextlib.suppress(StoreWriteError):
                claim.file.delete()


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
            read_snapshot(item)
        except StoreCorruptError as error:
            yield Damage(item, error.problem)

    def mend(self, item: Location) -> Mended:
        """Remove a snapshot; `save_snapshot` makes that of the manifest as it is now again.

        A claim takes its place, or `gc` would drop what nobody remembers to be wanted.
        """
        put_claim(self._workspace, snapshot=_content_of(item))
        item.delete()
        return Mended(f"{item} removed; it cannot be made again if the manifest has changed since")

    def sweep(self, grace_s: float) -> int:
        """Delete leftovers of killed writes."""
        return sweep_temporaries(self.folder, grace_s)

    def references(self, item: Location) -> Iterator[Reference]:
        """Return the snapshot that came before."""
        with contextlib.suppress(StoreCorruptError):
            parent = snapshot_metadata(read_snapshot(item)).get("parent")
            if parent:
                yield Reference(SNAPSHOTS, parent)

    def holds(self, artefact: str) -> bool:
        """Tell whether a snapshot of that content is there."""
        return artefact in map(_content_of, self.items())
