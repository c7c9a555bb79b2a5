"""Stores of embeddings as one kind of artefact."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from embedcache.files.backend import Location
from embedcache.files.kinds import (
    SNAPSHOTS,
    ArtefactKind,
    Damage,
    Mended,
    Reference,
    sweep_temporaries,
)
from embedcache.store import care
from embedcache.workspace import Workspace


class EmbeddingStores(ArtefactKind):
    """The stores of embeddings of a workspace, one folder an encoder fingerprint.

    Parameters
    ----------
    workspace
        Workspace of the stores.
    """

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace

    @property
    def name(self) -> str:
        """Plural name of the kind."""
        return "embeddings"

    @property
    def folder(self) -> Location:
        """The folder in which all of them lie."""
        return self._workspace.encoders

    def items(self) -> Sequence[Location]:
        """Return the folder of each encoder."""
        return self._workspace.encoder_folders()

    def check(self, item: Location) -> Iterator[Damage]:
        """Compare an encoder's folder with its checksums."""
        return care.check_store(item)

    def mend(self, item: Location) -> Mended:
        """Save the rows that are whole; lost ones have to be encoded again."""
        self._workspace.create_store()
        return care.mend_store(item)

    def sweep(self, grace_s: float) -> int:
        """Delete replaced records, their segments and leftovers of killed writes."""
        freed = sum(care.sweep(item, grace_s=grace_s) for item in self.items())
        return freed + sweep_temporaries(self.folder, grace_s)

    def references(self, item: Location) -> Iterator[Reference]:
        """Return the snapshots that live records name as the manifest they were made for."""
        for record in care.live_records(item):
            if "manifest" in record.context:
                yield Reference(SNAPSHOTS, str(record.context["manifest"]))
