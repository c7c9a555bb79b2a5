"""Pictures at training size: decoded and fitted once, kept as bytes, in a store like any other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from embedcache.data.image_files import ImageFile
from embedcache.encoders.pixels import PixelsEncoder
from embedcache.encoders.preprocess import Preprocess
from embedcache.encoders.registry import library_versions
from embedcache.encoders.spec import EncoderSpec, WeightsSource, fingerprint_of, identity
from embedcache.extract.flow import run_pass
from embedcache.extract.lane import Job
from embedcache.extract.report import PassReport, Progress
from embedcache.files.digests import DigestCache
from embedcache.files.durable import TEMPORARY, utc_now
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
    known = {**identity(spec, "none", "fp32"), "dtype": "uint8"}
    return spec, {
        "name": spec.name,
        "fingerprint": fingerprint_of(known),
        "identity": known,
        "spec": spec.document(),
        "versions": library_versions(),
        "created": utc_now(),
    }


def pixel_folders(workspace: Workspace) -> list[Path]:
    """Return the folder of each way of fitting pictures."""
    folders = (path for path in workspace.pixels.glob("*") if path.is_dir())
    return sorted(path for path in folders if not path.name.startswith(TEMPORARY))
