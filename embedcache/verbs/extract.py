"""`extract`: bring every model's store up to the manifest."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Final, TypeVar

import pyarrow as pa

from embedcache.data.checks import check_at_least
from embedcache.data.claims import images_digest, manifest_path, put_claim
from embedcache.data.image_files import ImageFile
from embedcache.data.tabular import TabularSequence
from embedcache.encoder_folders import ENCODER_DOCUMENT
from embedcache.encoders import registry
from embedcache.encoders.devices import check_device, free_memory_gb
from embedcache.encoders.registry import Identified
from embedcache.encoders.select import EncoderOptions, identify_models
from embedcache.encoders.spec import Encoder
from embedcache.errors import RunError, StoreCorruptError, StoreWriteError
from embedcache.extract.flow import run_pass
from embedcache.extract.lane import Job
from embedcache.extract.order import put_in_order, seconds_per_image
from embedcache.extract.report import PassReport, Progress, merge_reports
from embedcache.files.backend import Location
from embedcache.files.durable import utc_now
from embedcache.store.embedding_store import EmbeddingStore
from embedcache.store.sweep import sweep
from embedcache.verbs.catalog import renew_catalog
from embedcache.verbs.left_out import leaving_out
from embedcache.verbs.session import Session

OnProgress = Callable[[Progress], None]
OnMessage = Callable[[str], None]
_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True)
class ExtractOptions:
    """How to extract; of all this only `encoders` decides a value.

    Parameters
    ----------
    encoders
        Sources of encoders, and precision of their computation.
    device
        'auto', 'cpu', 'cuda', 'cuda:N' or 'mps'.
    batch_size
        Number of images a batch; None for what suits the encoder.
    workers
        Number of threads that read and decode; None for what suits the machine.
    fail_fast
        Whether the first image that fails ends the pass.
    retry_failed
        Whether images that failed before are tried again.
    shard
        (i, n): only every n-th image, starting with the i-th, from 1; None for all.
    shared
        Whether a store that is made now can be read by its folder's group.
    """

    encoders: EncoderOptions = field(default_factory=EncoderOptions)
    device: str = "auto"
    batch_size: int | None = None
    workers: int | None = None
    fail_fast: bool = False
    retry_failed: bool = False
    shard: tuple[int, int] | None = None
    shared: bool = False

    def __post_init__(self) -> None:
        check_at_least("batch_size", self.batch_size, 1)
        check_at_least("workers", self.workers, 1)
        if self.shard is not None and not 1 <= self.shard[0] <= self.shard[1]:
            raise RunError(f"shard is {self.shard}; expected (i, n) with i from 1 to n")


@dataclass(frozen=True, slots=True)
class Plan:
    """What an extraction would do, for one model.

    Parameters
    ----------
    encoder, fingerprint
        Name of the encoder, and its fingerprint; '' where only loading can tell it.
    n_images, n_hits, n_misses, n_failed
        Number of images in all; held; to be encoded; not to be had (missing files, failed before).
    size_bytes
        Bytes that the misses will take on disk.
    estimate_s
        Seconds that it will take, from the rate of earlier passes; None if there was none.
    """

    encoder: str
    fingerprint: str
    n_images: int
    n_hits: int
    n_misses: int
    n_failed: int
    size_bytes: int
    estimate_s: float | None


_PLANS: Final = pa.schema(
    [
        ("encoder", pa.string()),
        ("fingerprint", pa.string()),
        ("n_images", pa.int64()),
        ("n_hits", pa.int64()),
        ("n_misses", pa.int64()),
        ("n_failed", pa.int64()),
        ("size_bytes", pa.int64()),
        ("estimate_s", pa.float64()),
    ]
)


@dataclass(frozen=True, slots=True, repr=False)
class Plans(TabularSequence[Plan]):
    """What an extraction would do.

    Parameters
    ----------
    plans
        What it would do for each model.
    """

    plans: tuple[Plan, ...]

    def _items(self) -> tuple[Plan, ...]:
        return self.plans

    def table(self) -> pa.Table:
        """Return one row a model."""
        return pa.Table.from_pylist([asdict(plan) for plan in self.plans], schema=_PLANS)


def plan(session: Session, models: Sequence[str], options: ExtractOptions) -> Plans:
    """Return what `extract` would do; changes nothing."""
    documents = session.encoder_documents.values()
    encoders = identify_models(
        session.workspace, models, options.encoders, session.digests, documents, fetch=False
    )
    keys = _shard(session.images.keys, options.shard)
    return Plans(tuple(_plan_one(session, encoder, keys) for encoder in encoders))


def _plan_one(session: Session, encoder: Identified, keys: Sequence[str | None]) -> Plan:
    rows: set[str] = set()
    failures: set[str] = set()
    rate = None
    if encoder.fingerprint is not None:
        folder = session.workspace.encoder_folder(encoder.spec.name, encoder.fingerprint)
        if folder in session.workspace.encoder_folders():
            store = session.open_store(folder)
            rows, failures = set(store.row_keys()), set(store.failures)
            rate = seconds_per_image(store)
    wanted = {key for key in keys if key} - rows - failures
    n_hits = sum(key in rows for key in keys)
    n_failed = sum(key is None or key in failures for key in keys)
    return Plan(
        encoder=encoder.spec.name,
        fingerprint=encoder.fingerprint or "",
        n_images=len(keys),
        n_hits=n_hits,
        n_misses=len(keys) - n_hits - n_failed,
        n_failed=n_failed,
        # By digest, unlike the counts: images of equal bytes share a row.
        size_bytes=len(wanted) * encoder.spec.dim * 4,
        estimate_s=None if rate is None else rate * len(wanted),
    )


def extract(
    session: Session,
    models: Sequence[str],
    options: ExtractOptions,
    on_progress: OnProgress = lambda _: None,
    on_message: OnMessage = lambda _: None,
) -> PassReport:
    """Encode what is missing, store it, put the rows in patient order, renew the catalog."""
    check_device(options.device)
    with contextlib.suppress(StoreWriteError):  # all may be there already
        session.workspace.create_store(shared=options.shared)
    if options.shared and not session.workspace.is_shared:
        folder = session.workspace.local
        on_message(f"{folder} is its owner's alone; run `chmod -R g+rX {folder}` to share it")
    # Idle OpenMP threads that spin would take the cores from the threads that decode (1.7 times
    # slower on two cores). It is read when torch is first imported, and has no effect later.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    files = _shard(session.image_files, options.shard)
    documents = session.encoder_documents.values()
    encoders = identify_models(
        session.workspace, models, options.encoders, session.digests, documents
    )
    encoders = _storable(session, encoders, models)
    turns = in_turns(encoders, free_memory_gb(options.device))
    if len(turns) > 1:
        on_message(f"memory is short of all {len(encoders)} models at once: {len(turns)} turns")
    reports = [
        encode_images(session, turn, files, options, on_progress=on_progress, on_message=on_message)
        for turn in turns
    ]
    return merge_reports(reports)


def _storable(
    session: Session, encoders: Sequence[Identified], models: Sequence[str]
) -> list[Identified]:
    """Return the encoders of which no damage is stored; see `leaving_out`."""
    storable = []
    for encoder in encoders:
        with leaving_out(encoder.spec.name, models):
            if encoder.fingerprint is not None:
                name = encoder.spec.name
                folder = session.workspace.encoder_folder(name, encoder.fingerprint)
                if (folder / ENCODER_DOCUMENT).exists():
                    session.open_store(folder)
            storable.append(encoder)
    return storable


def in_turns(encoders: Sequence[Identified], memory_gb: float) -> list[list[Identified]]:
    """Return the models in groups that fit into memory together, each at least one model."""
    turns: list[list[Identified]] = [[]]
    free_gb = memory_gb
    for encoder in encoders:
        if turns[-1] and encoder.spec.memory_gb > free_gb:
            turns.append([])
            free_gb = memory_gb
        turns[-1].append(encoder)
        free_gb -= encoder.spec.memory_gb
    return turns


def encode_images(
    session: Session,
    encoders: Sequence[Identified],
    files: Sequence[ImageFile],
    options: ExtractOptions,
    *,
    on_progress: OnProgress = lambda _: None,
    on_message: OnMessage = lambda _: None,
) -> PassReport:
    """Encode what is missing of some images, and leave the stores in order."""
    claim = _Claim(session)
    if files:
        # On a store that can only be read, all may be there already.
        with contextlib.suppress(StoreWriteError):
            claim.put()
    with ExitStack() as stack:
        jobs = _jobs(session, encoders, options, stack, on_message)
        report = run_pass(
            files,
            jobs,
            session.digests,
            workers=options.workers,
            fail_fast=options.fail_fast,
            on_progress=on_progress,
            before_commit=claim.put,
        )
        session.forget_images()
        errors: list[StoreCorruptError] = []
        if options.shard is None:
            # With shards, others may still append; the next pass without them does this.
            errors += filter(None, [_tidy(session, job.store) for job in jobs])
            claim.release()
        renew_catalog(session)
        for error in errors:  # each of them cost the others nothing
            raise error
    return report


def _tidy(session: Session, store: EmbeddingStore) -> StoreCorruptError | None:
    """Put the rows of an encoder in order and sweep; return what is damaged, if anything is."""
    try:
        put_in_order(store, session.images, {"manifest": session.snapshot})
    except StoreCorruptError as error:
        return error
    with contextlib.suppress(StoreWriteError):  # a store that can only be read
        sweep(store.folder)
    return None


class _Claim:
    """The claim of one pass; see `embedcache/data/claims.py`.

    Parameters
    ----------
    session
        The workspace.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._file: Location | None = None

    def put(self) -> None:
        """Put the claim, unless it is there."""
        if self._file is None:
            workspace, manifest = self._session.workspace, self._session.manifest
            self._file = put_claim(
                workspace,
                path=manifest_path(workspace),
                images=images_digest(workspace, manifest),
            )

    def release(self) -> None:
        """Take the claim back: the snapshot that is there says all."""
        if self._file is not None:
            with contextlib.suppress(StoreWriteError):  # then it only keeps `gc` from some rows
                self._file.delete()


def _shard(items: Sequence[_Item], shard: tuple[int, int] | None) -> Sequence[_Item]:
    return items if shard is None else items[shard[0] - 1 :: shard[1]]


def _jobs(
    session: Session,
    encoders: Sequence[Identified],
    options: ExtractOptions,
    stack: ExitStack,
    on_message: OnMessage,
) -> list[Job]:
    """Open the models' stores, held until `stack` ends: two passes never do the same work."""
    opened = [_open_store(session, encoder, options.device) for encoder in encoders]
    if options.shard is None:  # shards work side by side
        # In one order for all passes, or two of them would wait for each other for ever.
        for store, _ in sorted(opened, key=lambda pair: str(pair[0].folder)):
            waiting = f"another process is extracting '{store.name}'; waiting for it to end"
            # Where no lock can be made no row can be stored: the first to be stored says so.
            with contextlib.suppress(StoreWriteError):
                stack.enter_context(store.lock(partial(on_message, waiting)))
    return [
        Job(
            encoder.spec,
            store,
            load,
            batch_size=options.batch_size,
            retry_failed=options.retry_failed,
        )
        for encoder, (store, load) in zip(encoders, opened, strict=True)
    ]


def _open_store(
    session: Session, encoder: Identified, device: str
) -> tuple[EmbeddingStore, Callable[[], Encoder]]:
    """Return a model's store, and what loads the model."""
    loaded: Encoder | None = None
    if encoder.identity is None:
        # Random weights: only drawing them tells their digest.
        loaded = registry.load(encoder, device=device)
        encoder = replace(encoder, weights_digest=loaded.identity["weights"])
    name = encoder.spec.name
    document = {
        "name": name,
        "fingerprint": encoder.fingerprint,
        "identity": encoder.identity,
        "spec": encoder.spec.document(),
        "versions": registry.library_versions(),
        "created": utc_now(),
    }
    folder = session.workspace.encoder_folder(name, str(encoder.fingerprint))
    store = session.create_store(folder, document)
    return store, lambda: loaded or registry.load(encoder, device=device)
