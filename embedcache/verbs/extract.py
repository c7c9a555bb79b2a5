"""`extract`: bring every model's store up to the manifest."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

from embedcache.data.image_files import ImageFile
from embedcache.encoders import registry
from embedcache.encoders.devices import check_device, free_memory_gb
from embedcache.encoders.kept import PREFIX, kept_encoders
from embedcache.encoders.plugins import register_file
from embedcache.encoders.registry import Identified
from embedcache.encoders.spec import Encoder, Precision
from embedcache.encoders.weights import find_weights
from embedcache.errors import EncoderError, EncoderWeightsError, RunError
from embedcache.extract.flow import run_pass
from embedcache.extract.lane import Job
from embedcache.extract.report import PassReport, Progress, merge_reports
from embedcache.files.digests import DigestCache
from embedcache.files.durable import utc_now
from embedcache.store.care import sweep
from embedcache.store.embedding_store import EmbeddingStore
from embedcache.verbs import state
from embedcache.workspace import Workspace

ALL: Final = "all"


@dataclass(frozen=True, slots=True)
class ExtractOptions:
    """How to extract.

    Of all this only `weights`, `preprocess`, `precision` and `encoder_file` decide a value.

    Parameters
    ----------
    device
        'auto', 'cpu', 'cuda', 'cuda:N' or 'mps'.
    precision
        'auto' is 'fp32' with TF32 off, on every device.
    weights
        A weights file, for one model only.
    batch_size, workers
        None: what suits the encoder and the machine.
    preprocess
        Another way of fitting pictures than the encoders' own.
    encoder_file
        A Python file that defines encoders.
    offline
        Never ask the hub.
    fail_fast
        Stop at the first image that fails.
    retry_failed
        Try images again that failed before.
    shard
        (i, n): only every n-th image, starting with the i-th, from 1.
    """

    device: str = "auto"
    precision: Precision | Literal["auto"] = "auto"
    weights: Path | None = None
    batch_size: int | None = None
    workers: int | None = None
    preprocess: str | None = None
    encoder_file: Path | None = None
    offline: bool = False
    fail_fast: bool = False
    retry_failed: bool = False
    shard: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What an extraction would do, for one model.

    Parameters
    ----------
    encoder, fingerprint
        Which; the fingerprint is '' where only loading can tell it.
    n_images, n_hits, n_misses, n_failed
        Images in all; held; to be encoded; not to be had (missing files, failed before).
    size_bytes
        What the misses will take on disk.
    estimate_s
        Seconds, from the rate of earlier passes; None if there was none.
    """

    encoder: str
    fingerprint: str
    n_images: int
    n_hits: int
    n_misses: int
    n_failed: int
    size_bytes: int
    estimate_s: float | None


def select_models(workspace: Workspace, models: Sequence[str], *, offline: bool) -> list[str]:
    """Return the models meant: 'all' is every registered encoder whose weights are here."""
    if ALL not in models:
        return list(dict.fromkeys(models))
    here = []
    for name in registry.registered():
        if ":" in name:  # another output of the same network
            continue
        try:
            find_weights(registry.find_spec(name), offline=offline, fetch=False)
        except EncoderError:  # no weights, or a plug-in that is broken
            continue
        here.append(name)
    held = [str(document["name"]) for document in workspace.encoder_documents()]
    return list(dict.fromkeys([*here, *held, *(m for m in models if m != ALL)]))


def identify_models(
    workspace: Workspace,
    models: Sequence[str],
    options: ExtractOptions,
    digests: DigestCache,
    *,
    fetch: bool = True,
) -> list[Identified]:
    """Find each model's weights and fingerprint; two names of one fingerprint count once.

    Raises
    ------
    RunError
        `weights` with several models.
    """
    if options.encoder_file is not None:
        register_file(options.encoder_file)
    names = select_models(workspace, models, offline=options.offline)
    if not names:
        raise RunError("no model named; pass -m NAME, see `embedcache encoders`")
    if options.weights is not None and len(names) != 1:
        raise RunError(f"--weights is for one model, {len(names)} were named: {', '.join(names)}")
    precision: Precision = "fp32" if options.precision == "auto" else options.precision
    known = workspace.encoder_documents()
    found = [
        one
        for name in names
        for one in _identify(
            workspace,
            name,
            digests=digests,
            known=known,
            weights=options.weights,
            preprocess=options.preprocess,
            precision=precision,
            offline=options.offline,
            fetch=fetch,
        )
    ]
    return list({one.presumed_fingerprint: one for one in reversed(found)}.values())[::-1]


def _identify(
    workspace: Workspace, name: str, *, preprocess: str | None, **settings: Any
) -> list[Identified]:
    """Find an encoder, or those that a fine-tuning run has kept."""
    if not name.startswith(PREFIX):
        return [registry.identify(name, preprocess=preprocess, **settings)]
    kept = kept_encoders(workspace, name)
    if settings["weights"] is not None or preprocess not in {None, kept[0][0].preprocess.fit}:
        raise RunError(f"'{name}' has its own weights and preprocessing; leave out the options")
    return [registry.identify_spec(spec, **{**settings, "weights": file}) for spec, file in kept]


def identify_store(
    workspace: Workspace,
    store: EmbeddingStore,
    digests: DigestCache,
    *,
    weights: Path | None = None,
    offline: bool = False,
) -> Identified:
    """Find the encoder that a store's rows came from, with the weights that made them.

    Raises
    ------
    EncoderWeightsError
        The weights here are other ones.
    """
    [found] = _identify(
        workspace,
        store.name,
        digests=digests,
        known=workspace.encoder_documents(),
        weights=weights,
        preprocess=store.document["identity"]["preprocess"]["fit"],
        precision=store.document["identity"]["precision"],
        offline=offline,
    )
    if found.fingerprint not in {None, store.fingerprint}:
        raise EncoderWeightsError(
            f"the weights here are not those of {store.folder.name}; pass the original file as "
            "--weights"
        )
    return found


def plan(workspace: Workspace, models: Sequence[str], options: ExtractOptions) -> list[Plan]:
    """Return what `extract` would do; changes nothing."""
    digests = DigestCache(workspace.digests)
    found = identify_models(workspace, models, options, digests, fetch=False)
    images = state.load_images(workspace, digests)
    files, keys = images.files, images.keys
    numbers = _shard(range(len(files)), options.shard)
    return [_plan_one(workspace, one, [(files[n], keys[n]) for n in numbers]) for one in found]


def _plan_one(
    workspace: Workspace, found: Identified, images: Sequence[tuple[ImageFile, str | None]]
) -> Plan:
    held: set[str] = set()
    failed: set[str] = set()
    rate = None
    if found.fingerprint is not None:
        folder = workspace.encoder_folder(found.spec.name, found.fingerprint)
        if folder.list():
            store = EmbeddingStore(folder)
            held, failed, rate = (
                set(store.row_keys()),
                set(store.failures),
                seconds_per_image(store),
            )
    wanted = {key for _, key in images if key} - held - failed
    n_hits = sum(key in held for _, key in images)
    n_failed = sum(key is None or key in failed for _, key in images)
    return Plan(
        encoder=found.spec.name,
        fingerprint=found.fingerprint or "",
        n_images=len(images),
        n_hits=n_hits,
        n_misses=len(images) - n_hits - n_failed,
        n_failed=n_failed,
        size_bytes=len(wanted) * found.spec.dim * 4,
        estimate_s=None if rate is None else rate * len(wanted),
    )


def seconds_per_image(store: EmbeddingStore) -> float | None:
    """Return the seconds an image took the encoder in earlier passes, or None."""
    timed = [record for record in store.records if "seconds" in record.context]
    n_rows = sum(len(record.keys) for record in timed)
    spent = sum(float(record.context["seconds"]["encode"]) for record in timed)
    return spent / n_rows if n_rows else None


def extract(
    workspace: Workspace,
    models: Sequence[str],
    options: ExtractOptions,
    *,
    on_progress: Callable[[Progress], None] = lambda _: None,
    on_message: Callable[[str], None] = lambda _: None,
) -> PassReport:
    """Encode what is missing, store it, put the rows in patient order, renew the catalog."""
    check_device(options.device)
    workspace.create_store()
    digests = DigestCache(workspace.digests)
    _, files = state.image_files(workspace)
    # Idle OpenMP threads that spin would take the cores from the threads that decode (1.7 times
    # slower on two cores). It is read when torch is first imported, and has no effect later.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    found = identify_models(workspace, models, options, digests)
    chosen = [files[number] for number in _shard(range(len(files)), options.shard)]
    turns = in_turns(found, free_memory_gb(options.device))
    if len(turns) > 1:
        on_message(f"memory is short of all {len(found)} models at once: {len(turns)} turns")
    reports = [
        encode_images(
            workspace,
            turn,
            chosen,
            options,
            digests,
            on_progress=on_progress,
            on_message=on_message,
        )
        for turn in turns
    ]
    return merge_reports(reports)


def in_turns(found: Sequence[Identified], memory_gb: float) -> list[list[Identified]]:
    """Return the models in groups that fit into memory together, each at least one model."""
    turns: list[list[Identified]] = [[]]
    room = memory_gb
    for one in found:
        if turns[-1] and one.spec.memory_gb > room:
            turns.append([])
            room = memory_gb
        turns[-1].append(one)
        room -= one.spec.memory_gb
    return turns


def encode_images(
    workspace: Workspace,
    found: Sequence[Identified],
    files: Sequence[ImageFile],
    options: ExtractOptions,
    digests: DigestCache,
    *,
    on_progress: Callable[[Progress], None] = lambda _: None,
    on_message: Callable[[str], None] = lambda _: None,
) -> PassReport:
    """Encode what is missing of some images, and leave the stores in order."""
    with ExitStack() as stack:
        jobs = _jobs(workspace, found, options, stack, on_message)
        report = run_pass(
            files,
            jobs,
            digests,
            workers=options.workers,
            fail_fast=options.fail_fast,
            on_progress=on_progress,
        )
        images = state.load_images(workspace, digests)
        snapshot = state.save_snapshot(workspace, images)
        if options.shard is None:
            for job in jobs:
                put_in_order(job.store, images, {"manifest": snapshot})
                sweep(job.store.folder)
        state.renew_catalog(workspace, images)
    return report


def _shard(numbers: Sequence[int], shard: tuple[int, int] | None) -> Sequence[int]:
    return numbers if shard is None else numbers[shard[0] - 1 :: shard[1]]


def _jobs(
    workspace: Workspace,
    found: Sequence[Identified],
    options: ExtractOptions,
    stack: ExitStack,
    on_message: Callable[[str], None],
) -> list[Job]:
    """Open the models' stores, held until `stack` ends: two passes never do the same work."""
    opened = [_open_store(workspace, one, options) for one in found]
    if options.shard is None:  # shards work side by side
        # In one order for all passes, or two of them would wait for each other for ever.
        for store, _ in sorted(opened, key=lambda one: str(one[0].folder)):
            waiting = f"another process is extracting '{store.name}'; waiting for it to end"
            stack.enter_context(store.lock(partial(on_message, waiting)))
    return [
        Job(
            one.spec,
            store,
            load,
            batch_size=options.batch_size,
            retry_failed=options.retry_failed,
        )
        for one, (store, load) in zip(found, opened, strict=True)
    ]


def _open_store(
    workspace: Workspace, found: Identified, options: ExtractOptions
) -> tuple[EmbeddingStore, Callable[[], Encoder]]:
    """Return a model's store, and what loads the model."""
    loaded: Encoder | None = None
    if found.identity is None:
        # Random weights: only drawing them tells their digest.
        loaded = registry.load(found, device=options.device)
        found = replace(found, weights_digest=loaded.identity["weights"])
    name = found.spec.name
    document = {
        "name": name,
        "fingerprint": found.fingerprint,
        "identity": found.identity,
        "spec": found.spec.document(),
        "versions": registry.library_versions(),
        "created": utc_now(),
    }
    folder = workspace.encoder_folder(name, str(found.fingerprint))
    store = EmbeddingStore.open_or_create(folder, document)
    return store, lambda: loaded or registry.load(found, device=options.device)


def put_in_order(store: EmbeddingStore, images: state.Images, context: dict[str, Any]) -> bool:
    """Compact a store: one segment, rows of a patient together, by cohort, patient and image.

    Rows of images that are not in the manifest go last; `gc` drops them.

    Returns
    -------
    Whether there was anything to do.
    """
    columns = (images.table[name].to_pylist() for name in ("cohort", "patient_id", "image_id"))
    by_patient = sorted(zip(*columns, images.keys, strict=True))
    wanted = dict.fromkeys(key for *_, key in by_patient if key in store)
    order = [*wanted, *(key for key in store.row_keys() if key not in wanted)]
    if len(store.records) <= 1 and order == store.row_keys():
        return False
    spent: dict[str, float] = {}
    for record in store.records:
        for stage, seconds in record.context.get("seconds", {}).items():
            spent[stage] = round(spent.get(stage, 0.0) + seconds, 3)
    store.rewrite(order, context={**context, "seconds": spent})
    return True
