"""`verify`: hold everything stored against its checksum, and mend what can be mended."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from embedcache.catalog.index import check_catalog
from embedcache.encoders.kept import check_encoders
from embedcache.encoders.plugins import register_file
from embedcache.errors import EmbedcacheError, EncoderError, StoreCorruptError
from embedcache.extract.pictures import pixel_folders
from embedcache.extract.report import PassReport, Progress
from embedcache.files.digests import DigestCache
from embedcache.files.durable import (
    check_named_file,
    find_table,
    publish,
    read_document,
    read_table,
    remove_folder,
    seal_document,
    utc_now,
)
from embedcache.files.locks import if_unmarked
from embedcache.runs.files import check_runs, read_run, run_folders
from embedcache.store import care
from embedcache.store.embedding_store import EmbeddingStore
from embedcache.verbs import state
from embedcache.verbs.cohorts import CohortOptions, choose_cohorts
from embedcache.verbs.extract import ExtractOptions, encode_images, identify_store
from embedcache.workspace import FORMAT_VERSION, Workspace


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
    if not workspace.store.is_dir():
        return VerifyReport(0, 0, ())
    derived = [*_check_derived(workspace)]  # first: naming the images may write digests anew
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
    findings += [Finding(path, problem) for path, problem in check_encoders(workspace)]
    for folder in pixel_folders(workspace):
        findings += [Finding(one.path, one.problem) for one in care.check_store(folder)]
    findings += _check_references(workspace)
    findings += derived
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
    """Find fold tables and remembered manifests that something names but that are gone."""
    manifests: dict[str, str] = {}  # content to who names it
    for folder in state.encoder_folders(workspace):
        for content in care.named_in_context(folder, "manifest"):
            manifests[content] = folder.name
    for folder, run in _readable_runs(workspace):
        manifests[run["data"]["manifest"]] = folder.name
        if find_table(workspace.folds, run["data"]["folds_id"]) is None:
            path = workspace.folds / f"{run['data']['folds_id']}.*.parquet"
            yield Finding(path, f"is missing, but {folder.name} names it")
    for path in state.snapshot_files(workspace):
        with contextlib.suppress(StoreCorruptError):
            parent = state.snapshot_metadata(read_table(path))["parent"]
            if parent:
                manifests[parent] = path.name
    for content, by in manifests.items():
        if not state.has_snapshot(workspace, content):
            path = workspace.manifests / f"*-{content}.*.parquet"
            yield Finding(path, f"is missing, but {by} names it")


def _readable_runs(workspace: Workspace) -> Iterator[tuple[Path, dict[str, Any]]]:
    for folder in run_folders(workspace.runs):
        with contextlib.suppress(StoreCorruptError):
            yield folder, read_run(folder)


def _check_derived(workspace: Workspace) -> Iterator[Finding]:
    """Find derived files that are not as they were written."""
    if DigestCache(workspace.digests).is_damaged:
        yield Finding(workspace.digests, "does not match its checksum (derived: it is ignored)")
    differing = check_catalog(workspace.catalog) if workspace.catalog.exists() else []
    if differing:
        yield Finding(workspace.catalog, f"is damaged in {', '.join(differing)}")


def repair(
    workspace: Workspace,
    options: ExtractOptions,
    *,
    on_progress: Callable[[Progress], None] = lambda _: None,
    on_message: Callable[[str], None] = lambda _: None,
) -> VerifyReport:
    """Mend what `verify` finds: lost rows are encoded again, and nothing else is.

    Fold tables and remembered manifests are made again. What is damaged of a run, of kept weights
    or of pictures at training size is removed: the same command makes it again.
    """
    report = verify(workspace)
    if not report.findings:
        return report
    if options.encoder_file is not None:
        register_file(options.encoder_file)
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
    notes += [*_mend_tables(workspace), *_drop_damaged(workspace)]
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


def _mend_tables(workspace: Workspace) -> Iterator[str]:
    """Make fold tables and remembered manifests again; drop runs that cannot be read."""
    for folder in sorted({path.parent for path, _ in check_runs(workspace.runs)}):
        shutil.rmtree(folder)
        yield f"run {folder.name} removed; make it again with the same command"
    for finding in list(_check_tables(workspace)):
        finding.path.unlink()
    images = state.load_images(workspace)
    state.save_snapshot(workspace, images)
    for _, run in _readable_runs(workspace):
        if find_table(workspace.folds, run["data"]["folds_id"]) is None:
            _assign_again(workspace, images, run["settings"])
    for finding in _check_references(workspace):
        yield f"{finding.path} cannot be made again: the manifest or the folds have changed since"


def _drop_damaged(workspace: Workspace) -> Iterator[str]:
    """Drop damaged pictures at training size, which can be made again, and damaged weights."""
    with if_unmarked(workspace.training) as unused:
        for folder in pixel_folders(workspace):
            if any(care.check_store(folder)) and unused:
                remove_folder(folder)
                yield f"{folder} removed; the next `embedcache finetune` makes it again"
            elif any(care.check_store(folder)):
                yield f"{folder} is in use by a training; repair it when that has ended"
    for folder in sorted({path.parent for path, _ in check_encoders(workspace)}):
        shutil.rmtree(folder)
        yield f"{folder} removed; make it again with the same `embedcache finetune --save`"


def _assign_again(workspace: Workspace, images: state.Images, settings: dict[str, Any]) -> None:
    from embedcache.verbs.probing import find_folds

    names = ("label", "train_cohort", "where", "class_map", "seed")
    options = CohortOptions(
        **{name: settings[name] for name in names},
        folds=settings["n_folds"],
        external=tuple(settings["external"]),
    )
    with contextlib.suppress(EmbedcacheError):  # what cannot be assigned again stays missing
        find_folds(workspace, choose_cohorts(images, options), options)


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
    found = identify_store(
        workspace, store, digests, weights=options.weights, offline=options.offline
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
