"""Pictures at training size: decoded and fitted once, kept as bytes, in a store like any other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Final

from embedcache.data.image_files import ImageFile
from embedcache.encoder_folders import store_folders
from embedcache.encoders.pixels import PixelsEncoder
from embedcache.encoders.preprocess import Preprocess
from embedcache.encoders.registry import library_versions
from embedcache.encoders.spec import EncoderSpec, WeightsSource, fingerprint_of, identity_of
from embedcache.extract.flow import run_pass
from embedcache.extract.lane import Job
from embedcache.extract.report import PassReport, Progress
from embedcache.files.backend import Location
from embedcache.files.digests import DigestCache
from embedcache.files.durable import utc_now
from embedcache.files.kinds import ArtefactKind, Damage, Mended, size_of, sweep_temporaries
from embedcache.files.locks import if_unmarked
from embedcache.store import care
from embedcache.store.embedding_store import EmbeddingStore
from embedcache.workspace import Workspace

_BATCH_BYTES: Final = 16 << 20


def hold_pixels(
    workspace: Workspace,
    preprocess: Preprocess,
    files: Sequence[ImageFile],
    *,
    workers: int | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
    on_message: Callable[[str], None] = lambda _: None,
) -> tuple[EmbeddingStore, PassReport]:
    """Bring the store of an encoder's fitted pictures up to some images.

    It is keyed as embeddings are: by how pictures are fitted, and by their bytes. Encoders that fit
    them alike share it.

    Returns
    -------
    The store, its rows uint8 of shape (3, height, width) flattened, and what was done.
    """
    spec, document = _described(preprocess)
    name = f"{preprocess.fit}-{preprocess.height}x{preprocess.width}"
    folder = workspace.pixels / f"{name}-{document['fingerprint'][:12]}"
    workspace.create_store()
    store = EmbeddingStore.open_or_create(folder, document)
    encoder = PixelsEncoder(spec, document["identity"])
    waiting = "another process is decoding the same pictures; waiting for it to end"
    with store.lock(partial(on_message, waiting)):
        batch_size = max(1, _BATCH_BYTES // (4 * spec.dim))
        job = Job(spec, store, lambda: encoder, batch_size=batch_size)
        digests = DigestCache(workspace.digests)
        report = run_pass(files, [job], digests, workers=workers, on_progress=on_progress)
    return store, report


def _described(preprocess: Preprocess) -> tuple[EncoderSpec, dict[str, Any]]:
    fitted = preprocess.unnormalised()
    spec = EncoderSpec(
        name="pictures at training size",
        architecture="pixels",
        output="bytes",
        dim=3 * fitted.height * fitted.width,
        preprocess=fitted,
        weights=WeightsSource(kind="none"),
        loader="embedcache.encoders.pixels:load",
    )
    identity = {**identity_of(spec, "none", "fp32"), "dtype": "uint8"}
    return spec, {
        "name": spec.name,
        "fingerprint": fingerprint_of(identity),
        "identity": identity,
        "spec": spec.document(),
        "versions": library_versions(),
        "created": utc_now(),
    }


class PictureStores(ArtefactKind):
    """The pictures at training size of a workspace, one folder a way of fitting them.

    Parameters
    ----------
    workspace
        Workspace of the pictures.
    """

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace

    @property
    def name(self) -> str:
        """Plural name of the kind."""
        return "pictures at training size"

    @property
    def folder(self) -> Location:
        """The folder in which all of them lie."""
        return self._workspace.pixels

    def items(self) -> Sequence[Location]:
        """Return the folder of each way of fitting pictures."""
        return store_folders(self.folder)

    def check(self, item: Location) -> Iterator[Damage]:
        """Compare a folder of pictures with its checksums; no embedding is lost with a picture."""
        return (Damage(damage.path, damage.problem) for damage in care.check_store(item))

    def mend(self, item: Location) -> Mended:
        """Remove damaged pictures, unless a training reads them: the next one makes them again."""
        with if_unmarked(self._workspace.training) as is_unused:
            if not is_unused:
                return Mended(f"{item} is in use by a training; repair it when that has ended")
            item.delete()
        return Mended(f"{item} removed; the next `embedcache finetune` makes it again")

    def sweep(self, grace_s: float) -> int:
        """Delete all pictures, of any age, unless a training runs or has yet to end.

        Trainings whose run is published have to be swept before.
        """
        is_empty = not self.folder.list(hidden=True)
        if is_empty or self._workspace.unfinished_trainings():
            return 0
        with if_unmarked(self._workspace.training) as is_unused:
            if not is_unused:
                return 0
            items = self.items()
            freed = sum(map(size_of, items))
            for item in items:
                item.delete()
            return freed + sweep_temporaries(self.folder, grace_s)
