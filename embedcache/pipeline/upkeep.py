"""`status`, `verify`, `gc`, `index`: what a store holds, whether it is sound, what it can drop."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from embedcache.catalog.index import compare_catalog
from embedcache.catalog.run_files import check_runs, read_run, run_folders
from embedcache.digests import DigestCache
from embedcache.durable import (
    TEMPORARY,
    check_named_file,
    find_table,
    publish,
    read_document,
    read_table,
    seal_document,
    utc_now,
)
from embedcache.encoders import registry
from embedcache.errors import EncoderError, StoreCorruptError
from embedcache.extract.report import PassReport, Progress
from embedcache.pipeline import state
from embedcache.pipeline.encode import ExtractOptions, encode_images
from embedcache.store import care
from embedcache.store.embedding_store import EmbeddingStore
from embedcache.workspace import FORMAT_VERSION, Workspace


@dataclass(frozen=True, slots=True)
class EncoderStatus:
    """What the store holds of one encoder, against what the manifest wants.

    Parameters
    ----------
    encoder, fingerprint, dim, precision
        Which.
    n_wanted, n_held, n_failed, n_missing
        Images of the manifest: in all, with a row, recorded as failed, neither.
    n_spare
        Rows of images that are not in the manifest.
    size_bytes
        Of the live rows.
    seconds
        By stage, over all passes.
    """

    encoder: str
    fingerprint: str
    dim: int
    precision: str
    n_wanted: int
    n_held: int
    n_failed: int
    n_missing: int
    n_spare: int
    size_bytes: int
    seconds: dict[str, float]


@dataclass(frozen=True, slots=True)
class Status:
    """What a workspace holds.

    Parameters
    ----------
    manifest, store
        Where.
    n_images, n_patients, n_unreadable
        Images and patients of the manifest; images whose file is not here and whose digest nobody
        knows.
    cohorts
        Cohort to number of images.
    encoders
        One entry a fingerprint.
    n_runs
        Stored runs.
    """

    manifest: Path
    store: Path
    n_images: int
    n_patients: int
    n_unreadable: int
    cohorts: dict[str, int]
    encoders: tuple[EncoderStatus, ...]
    n_runs: int


def status(workspace: Workspace) -> Status:
    """Return what the store holds, against what the manifest wants."""
    images = state.load_images(workspace)
    cohort = images.table["cohort"].to_pylist()
    return Status(
        manifest=workspace.manifest,
        store=workspace.store,
        n_images=len(cohort),
        n_patients=len(set(images.table["patient_id"].to_pylist())),
        n_unreadable=images.keys.count(None),
        cohorts={name: cohort.count(name) for name in sorted(set(cohort))},
        encoders=tuple(
            _encoder_status(store, images.keys) for store in state.open_stores(workspace)
        ),
        n_runs=len(run_folders(workspace.runs)),
    )


def _encoder_status(store: EmbeddingStore, keys: Sequence[str | None]) -> EncoderStatus:
    n_held = sum(key in store for key in keys)
    n_failed = sum(key in store.failures for key in keys)
    seconds: dict[str, float] = {}
    for record in store.records:
        for stage, spent in record.context.get("seconds", {}).items():
            seconds[stage] = round(seconds.get(stage, 0.0) + spent, 3)
    return EncoderStatus(
        encoder=store.name,
        fingerprint=store.fingerprint,
        dim=store.dim,
        precision=str(store.document["identity"]["precision"]),
        n_wanted=len(keys),
        n_held=n_held,
        n_failed=n_failed,
        n_missing=len(keys) - n_held - n_failed,
        n_spare=len(set(store.row_keys()) - set(keys)),
        size_bytes=store.size_bytes,
        seconds=seconds,
    )


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong with a store.

    Parameters
    ----------
    path
        The file.
    problem
        What is wrong with it.
    encoder
        Folder of the encoder it belongs to, or ''.
    images
        Ids of the images whose rows are lost with it.
    """

    path: Path
    problem: str
    encoder: str = ""
    images: tuple[str, ...] = ()

    @property
    def is_record(self) -> bool:
        """Whether it is a commit record that is damaged or missing."""
        return self.path.parent.name == "commit" or self.path.suffix == ".zarr"


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What `verify` found.

    Parameters
    ----------
    n_encoders, n_rows
        What was checked.
    findings
        What is wrong.
    repaired
        Whether it was mended.
    passes
        The passes that encoded lost rows again.
    notes
        What could not be mended, and what to do.
    """

    n_encoders: int
    n_rows: int
    findings: tuple[Finding, ...]
    repaired: bool = False
    passes: tuple[PassReport, ...] = ()
    notes: tuple[str, ...] = field(default=())


def verify(workspace: Workspace) -> VerifyReport:
    """Hold every file of the store against its checksum, and every row."""
    names = _image_names(workspace)
    findings = [*_check_format(workspace)]
    n_rows = 0
    folders = state.encoder_folders(workspace)
    for folder in folders:
        for damage in care.check_store(folder):
            lost = tuple(name for key in damage.keys for name in names.get(key, [key[:12]]))
            findings.append(Finding(damage.path, damage.problem, folder.name, lost))
        n_rows += care.count_rows(folder)
    findings += _check_tables(workspace)
    findings += [Finding(path, problem) for path, problem in check_runs(workspace.runs)]
    findings += _check_references(workspace)
    findings += _check_derived(workspace, sound=not findings)
    return VerifyReport(len(folders), n_rows, tuple(findings))


def _image_names(workspace: Workspace) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    with contextlib.suppress(StoreCorruptError):  # a damaged snapshot is found further down
        images = state.load_images(workspace)
        for key, name in zip(images.keys, images.table["image_id"].to_pylist(), strict=True):
            names.setdefault(key or "", []).append(name)
    return names


def _check_format(workspace: Workspace) -> Iterator[Finding]:
    try:
        workspace.check_format()
    except StoreCorruptError:
        missing = not workspace.format_file.exists()
        problem = "is missing" if missing else "does not match its checksum"
        yield Finding(workspace.format_file, problem)


def _tables(workspace: Workspace) -> list[Path]:
    return sorted([*workspace.manifests.glob("*.parquet"), *workspace.folds.glob("*.parquet")])


def _check_tables(workspace: Workspace) -> Iterator[Finding]:
    for path in _tables(workspace):
        try:
            check_named_file(path)
        except StoreCorruptError:
            yield Finding(path, "does not match the checksum in its name")


def _check_references(workspace: Workspace) -> Iterator[Finding]:
    """Find tables that something names but that are gone."""
    wanted: dict[Path, str] = {}
    for folder in run_folders(workspace.runs):
        with contextlib.suppress(StoreCorruptError):
            data = read_run(folder)["data"]
            wanted[workspace.folds / data["folds_id"]] = folder.name
            wanted[workspace.manifests / data["manifest"]] = folder.name
    snapshots = state.snapshot_files(workspace)
    for path in snapshots:
        with contextlib.suppress(StoreCorruptError):
            parent = state.snapshot_metadata(read_table(path))["parent"]
            if parent:
                wanted[workspace.manifests / parent] = path.name
    for stem, by in wanted.items():
        if find_table(stem.parent, stem.name) is None:
            yield Finding(stem.with_suffix(".*.parquet"), f"is missing, but {by} names it")
    if state.encoder_folders(workspace) and not snapshots and not wanted:
        yield Finding(workspace.manifests, "holds no manifest, though there are embeddings")


def _check_derived(workspace: Workspace, *, sound: bool) -> Iterator[Finding]:
    """Find derived files that do not say what the files they were made from say."""
    if DigestCache(workspace.digests).is_damaged:
        yield Finding(workspace.digests, "does not match its checksum (derived: it is ignored)")
    if sound and workspace.catalog.exists() and not state.is_catalog_stale(workspace):
        differing = compare_catalog(workspace.catalog, state.sources(workspace))
        if differing:
            yield Finding(workspace.catalog, f"differs from the files in {', '.join(differing)}")


def repair(
    workspace: Workspace,
    options: ExtractOptions,
    *,
    on_progress: Callable[[Progress], None] = lambda _: None,
    on_message: Callable[[str], None] = lambda _: None,
) -> VerifyReport:
    """Mend what `verify` finds: lost rows are encoded again, and nothing else is.

    A damaged run, fold table or remembered manifest is removed: the same command makes it again.
    """
    report = verify(workspace)
    if not report.findings:
        return report
    _mend_format(workspace)
    damaged = sorted({finding.encoder for finding in report.findings if finding.encoder})
    notes: list[str] = []
    before: dict[str, set[str]] = {}
    for name in damaged:
        folder = workspace.encoders / name
        # Where a record is lost, so is the list of its images: then all that is missing counts.
        known = not any(
            finding.encoder == name and finding.is_record for finding in report.findings
        )
        before[name] = care.known_keys(folder) if known else _wanted(workspace)
        n_saved = care.mend_store(folder)
        on_message(f"{name}: {n_saved} rows of damaged segments saved")
    notes += _drop_damaged_files(workspace)
    passes = []
    for name in damaged:
        try:
            passes.append(
                _encode_again(workspace, name, before[name], options, on_progress, on_message)
            )
        except EncoderError as error:
            notes.append(f"{name}: lost rows are not encoded again yet: {error}")
    state.renew_catalog(workspace, force=True)
    return replace(report, repaired=True, passes=tuple(passes), notes=tuple(notes))


def _wanted(workspace: Workspace) -> set[str]:
    return {key for key in state.load_images(workspace).keys if key}


def _mend_format(workspace: Workspace) -> None:
    try:
        read_document(workspace.format_file)
    except StoreCorruptError:
        document = {"format": "embedcache", "version": FORMAT_VERSION, "created": utc_now()}
        workspace.format_file.unlink(missing_ok=True)
        publish(workspace.format_file, seal_document(document))


def _drop_damaged_files(workspace: Workspace) -> Iterator[str]:
    for finding in list(_check_tables(workspace)):
        finding.path.unlink()
        yield f"{finding.path.name} removed; it is written again by the next extract or probe"
    broken = {path.parent for path, _ in check_runs(workspace.runs)}
    for finding in list(_check_references(workspace)):
        broken |= {
            folder for folder in run_folders(workspace.runs) if folder.name in finding.problem
        }
    for folder in sorted(broken):
        shutil.rmtree(folder)
        yield f"run {folder.name} removed; make it again with the same `embedcache probe`"


def _encode_again(
    workspace: Workspace,
    folder: str,
    before: set[str],
    options: ExtractOptions,
    on_progress: Callable[[Progress], None],
    on_message: Callable[[str], None],
) -> PassReport:
    store = EmbeddingStore(workspace.encoders / folder)
    images = state.load_images(workspace)
    lost = before - set(store.row_keys()) - set(store.failures)
    files = [file for file, key in zip(images.files, images.keys, strict=False) if key in lost]
    digests = DigestCache(workspace.digests)
    found = registry.identify(
        store.name,
        digests=digests,
        known=state.encoder_documents(workspace),
        weights=options.weights,
        precision=store.document["identity"]["precision"],
        offline=options.offline,
    )
    if found.fingerprint not in {None, store.fingerprint}:
        raise EncoderError(
            f"the weights here are not those of {folder}; pass the original file as --weights"
        )
    return encode_images(
        workspace,
        [found],
        files,
        options,
        digests,
        on_progress=on_progress,
        on_message=on_message,
    )


@dataclass(frozen=True, slots=True)
class GcReport:
    """What `gc` dropped, or would drop.

    Parameters
    ----------
    n_rows
        Rows of images that no manifest wants.
    freed_bytes
        Bytes of segments deleted; 0 in a dry run.
    """

    n_rows: int
    freed_bytes: int


def collect_garbage(
    workspace: Workspace, *, grace_s: float = care.GRACE_S, dry_run: bool = False
) -> GcReport:
    """Drop rows that no manifest wants, and files that nothing needs any more.

    Wanted is what the manifest names now, and whatever any other manifest that worked with this
    store named last.

    Parameters
    ----------
    grace_s
        Files younger than this stay: a reader may hold on to them.
    dry_run
        Count, and change nothing.
    """
    images = state.load_images(workspace)
    wanted = {key for key in images.keys if key}
    for table in map(read_table, state.snapshot_files(workspace)):
        if state.snapshot_metadata(table)["manifest"] != workspace.manifest.name:
            wanted |= set(table["sha256"].to_pylist())
    n_rows = freed = 0
    for store in state.open_stores(workspace):
        n_rows += sum(key not in wanted for key in store.row_keys())
        if not dry_run:
            with store.lock():
                kept = [key for key in store.row_keys() if key in wanted]
                if len(kept) < len(store):
                    store.rewrite(kept)
            freed += care.sweep(store.folder, grace_s=grace_s)
    if not dry_run:
        for folder in workspace.runs.glob(f"{TEMPORARY}*"):
            shutil.rmtree(folder)
        state.renew_catalog(workspace, images)
    return GcReport(n_rows, freed)
