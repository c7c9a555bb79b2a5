"""Claims of passes on rows, made before anybody knows the digests of their images.

A snapshot names images by their digests, which only reading the files tells. A pass therefore puts
a claim before its first row and takes it back once its snapshot is there; that of a killed pass
stays, until the manifest is worked with to the end. `gc` drops nothing while a claim of another
manifest stands. A claim also stands for a snapshot that was damaged and removed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from embedcache.data.manifest import Manifest
from embedcache.errors import StoreCorruptError, StoreReadError
from embedcache.files.backend import Location
from embedcache.files.documents import read_document, seal
from embedcache.files.durable import canonical_json, new_id, utc_now
from embedcache.workspace import Workspace

_PREFIX: Final = ".claim-"


@dataclass(frozen=True, slots=True)
class Claim:
    """What somebody may want of a store, unknown as yet.

    Parameters
    ----------
    file
        File of the claim.
    path
        Path of the manifest; '' where nobody knows it.
    images
        Digest of the images that the manifest names, and of where they lie; '' of a snapshot.
    snapshot
        Content digest of a snapshot that was removed; '' of a pass.
    """

    file: Location
    path: str
    images: str
    snapshot: str

    @property
    def reason(self) -> str:
        """Why no row can be told to be unwanted, and what to do."""
        if self.snapshot or not self.path:
            return (
                "a damaged snapshot was removed, so nobody knows what its manifest wants; use that "
                f"manifest again, and then delete {self.file}"
            )
        return (
            f"a pass over {self.path} has not ended; run `embedcache extract` with it to its end, "
            f"or delete {self.file} if nobody wants it any more"
        )


def claim_files(workspace: Workspace) -> list[Location]:
    """Return the files of all claims, oldest first."""
    entries = workspace.manifests.list(hidden=True)
    return [workspace.manifests / e.name for e in entries if e.name.startswith(_PREFIX)]


def read_claims(files: Iterable[Location]) -> list[Claim]:
    """Return what the files of claims say; one that was taken back meanwhile is left out."""
    claims = []
    for file in files:
        try:
            document = read_document(file)
        except (StoreCorruptError, StoreReadError) as error:
            if isinstance(error, StoreCorruptError) and error.is_missing:
                continue
            document = {}  # whatever it says, somebody may want something
        texts = (str(document.get(name) or "") for name in ("path", "images", "snapshot"))
        claims.append(Claim(file, *texts))
    return claims


def put_claim(
    workspace: Workspace, *, path: str = "", images: str = "", snapshot: str = ""
) -> Location:
    """Put a claim durably and return its file; see `Claim`."""
    workspace.create_store()
    file = workspace.manifests / f"{_PREFIX}{new_id()}"
    texts = {"path": path, "images": images, "snapshot": snapshot, "created": utc_now()}
    file.put(seal(dict(texts)))
    return file


def manifest_path(workspace: Workspace) -> str:
    """Return what claims call the manifest: its path, as UTF-8 can hold it."""
    return _absolute(workspace.manifest)


def images_digest(workspace: Workspace, manifest: Manifest) -> str:
    """Return a digest of the images that a manifest names, and of where they lie."""
    columns = [manifest.columns.get(name) for name in ("image_id", "path", "sha256")]
    facts = [_absolute(workspace.data_root), *columns]
    return hashlib.sha256(canonical_json(facts)).hexdigest()


def _absolute(path: Path) -> str:
    return str(path.resolve()).encode(errors="backslashreplace").decode()
