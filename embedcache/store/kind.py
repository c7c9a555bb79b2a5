"""Stores of embeddings as one kind of artefact."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from embedcache.encoder_folders import is_encoder_folder
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
from embedcache.store.sweep import sweep
from embedcache.workspace import Workspace


class EmbeddingStores(ArtefactKind):
    """The stores of embeddings of a workspace, one folder an encoder fingerprint.

    Parameters
    ----------
    workspace
        Workspace of the stores.
    image_keys
        Function that returns the SHA-256 of each image of the manifest; see `care.mend_store`.
    """

    def __init__(
        self, workspace: Workspace, image_keys: Callable[[], Iterable[str]] = lambda: ()
    ) -> None:
        self._workspace, self._image_keys = workspace, image_keys

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

    def check(self, item: Location) -> Iterable[Damage]:
        """Compare an encoder's folder with its checksums."""
        return care.check_store(item)

    def mend(self, item: Location) -> Mended:
        """Save the rows that are whole; lost ones have to be encoded again."""
        self._workspace.create_store()
        return care.mend_store(item, self._image_keys)

    def sweep(self, grace_s: float) -> int:
        """Delete replaced records, their segments and leftovers of killed writes."""
        freed = sum(sweep(item, grace_s=grace_s) for item in self.items())
        # Where a write was killed before the first document was there, too.
        for folder in self.folder.folders():
            if is_encoder_folder(folder):
                freed += sweep_temporaries(folder, grace_s)
        return freed + sweep_temporaries(self.folder, grace_s)

    def strangers(self) -> Iterator[str]:
        """Yield a line about each thing that is not read: also copies of folders and of records."""
        for copy, folder in self._workspace.copied_encoder_folders().items():
            yield f"{copy} is a copy of {folder.name}, and is not read: left alone"
        yield from super().strangers()
        for item in self.items():
            for file in care.copied_records(item):
                yield f"{file} is a copy of another record, and is not read: left alone"

    def is_under_way(self, name: str) -> bool:
        """Tell whether a folder may become one of embeddings; copies have a line of their own."""
        copies = {copy.name for copy in self._workspace.copied_encoder_folders()}
        return name in copies or super().is_under_way(name)

    def references(self, item: Location) -> Iterator[Reference]:
        """Return the snapshots that live records name as the manifest they were made for."""
        for record in care.live_records(item):
            if "manifest" in record.context:
                yield Reference(SNAPSHOTS, str(record.context["manifest"]))
