"""`verify`: hold everything stored against its checksum, and mend what can be mended."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from embedcache.catalog.index import check_catalog
from embedcache.data.fold_tables import FoldTables
from embedcache.data.snapshots import Snapshots
from embedcache.encoders.kept import KeptWeights
from embedcache.encoders.plugins import register_file
from embedcache.errors import EmbedcacheError, EncoderError, StoreCorruptError
from embedcache.extract.pictures import PictureStores
from embedcache.extract.report import PassReport, Progress
from embedcache.files.digests import DigestCache
from embedcache.files.kinds import ArtefactKind, check_references
from embedcache.runs.files import check_runs, read_run, run_folders
from embedcache.store import care
from embedcache.store.embedding_store import EmbeddingStore
from embedcache.store.kind import EmbeddingStores
from embedcache.verbs import state
from embedcache.verbs.cohorts import CohortOptions, choose_cohorts
from embedcache.verbs.extract import ExtractOptions, encode_images, identify_store
from embedcache.workspace import Workspace


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
    if not workspace.has_store():
        return VerifyReport(0, 0, ())
    derived = [*_check_derived(workspace)]  # first: naming the images may write digests anew
    names = _image_names(workspace)
    findings = [*_check_format(workspace)]
    for kind in _kinds(workspace):
        for item in kind.items():
            for damage in kind.check(item):
                lost = tuple(name for key in damage.keys for name in names.get(key, [key[:12]]))
                encoder = item.name if isinstance(kind, EmbeddingStores) else ""
                findings.append(Finding(Path(str(damage.path)), damage.problem, encoder, lost))
    findings += [Finding(path, problem) for path, problem in check_runs(workspace.runs)]
    findings += _check_references(workspace)
    findings += derived
    folders = workspace.encoder_folders()
    n_rows = sum(len(care.recorded_keys(folder)) for folder in folders)
    return VerifyReport(len(folders), n_rows, tuple(findings))


def _kinds(workspace: Workspace) -> list[ArtefactKind]:
    kinds = (EmbeddingStores, FoldTables, Snapshots, KeptWeights, PictureStores)
    return [kind(workspace) for kind in kinds]


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
    except StoreCorruptError as error:
        yield Finding(Path(str(workspace.format_file)), error.problem)


def _check_references(workspace: Workspace) -> Iterator[Finding]:
    """Find fold tables and remembered manifests that something names but that are gone."""
    for damage in check_references(_kinds(workspace)):
        yield Finding(Path(str(damage.path)), damage.problem)
    tables, snapshots = FoldTables(workspace), Snapshots(workspace)
    for folder, run in _readable_runs(workspace):
        for kind, name in ((tables, "folds_id"), (snapshots, "manifest")):
            if name in run["data"] and not kind.holds(run["data"][name]):
                path = Path(str(kind.folder / run["data"][name]))
                yield Finding(path, f"is missing, but {folder.name} names it")


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
    if any(finding.path == Path(str(workspace.format_file)) for finding in report.findings):
        workspace.mend_format()
    notes, lost = _mend_items(workspace, on_message)
    notes += _mend_tables(workspace)
    passes = []
    for name, keys in lost.items():
        try:
            passes.append(_encode_again(workspace, name, keys, options, on_progress, on_message))
        except EncoderError as error:
            notes.append(f"{name}: lost rows are not encoded again yet: {error}")
    state.renew_catalog(workspace, force=True)
    return replace(report, repaired=True, passes=tuple(passes), notes=tuple(notes))


def _mend_items(
    workspace: Workspace, on_message: Callable[[str], None]
) -> tuple[list[str], dict[str, frozenset[str]]]:
    """Mend what is damaged; return notes, and the lost images of each encoder's folder."""
    notes: list[str] = []
    lost: dict[str, frozenset[str]] = {}
    for kind in _kinds(workspace):
        for item in kind.items():
            if not any(kind.check(item)):
                continue
            mended = kind.mend(item)
            if isinstance(kind, EmbeddingStores):
                on_message(mended.message)
                # Where a record is lost, so is the list of its images: all that is missing counts.
                wanted = _wanted(workspace) if mended.lost_keys is None else mended.lost_keys
                lost[item.name] = wanted
            elif not isinstance(kind, FoldTables | Snapshots):
                notes.append(mended.message)
    return notes, lost


def _wanted(workspace: Workspace) -> frozenset[str]:
    return frozenset(key for key in state.load_images(workspace).keys if key)


def _mend_tables(workspace: Workspace) -> Iterator[str]:
    """Make fold tables and remembered manifests again; drop runs that cannot be read."""
    for folder in sorted({path.parent for path, _ in check_runs(workspace.runs)}):
        shutil.rmtree(folder)
        yield f"run {folder.name} removed; make it again with the same command"
    images = state.load_images(workspace)
    state.save_snapshot(workspace, images)
    for _, run in _readable_runs(workspace):
        if not FoldTables(workspace).holds(run["data"].get("folds_id", "")):
            _assign_again(workspace, images, run["settings"])
    for finding in _check_references(workspace):
        yield f"{finding.path} cannot be made again: the manifest or the folds have changed since"


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
    keys: frozenset[str],
    options: ExtractOptions,
    on_progress: Callable[[Progress], None],
    on_message: Callable[[str], None],
) -> PassReport:
    store = EmbeddingStore(workspace.encoders / folder)
    images = state.load_images(workspace)
    lost = keys - set(store.row_keys()) - set(store.failures)
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
