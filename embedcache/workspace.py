"""Where things are: the manifest, the images' root, the store, and what a store holds."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import platformdirs

from embedcache.encoder_folders import (
    original_first,
    plain_name,
    read_encoder_document,
    store_folders,
)
from embedcache.errors import (
    ManifestError,
    StoreCorruptError,
    StoreMismatchError,
    StoreReadError,
)
from embedcache.files.backend import Location, on_disk
from embedcache.files.documents import read_document, seal
from embedcache.files.durable import access, make_folder, utc_now, write_error
from embedcache.files.regular import kind_of
from embedcache.visible import is_unicode

_log = logging.getLogger(__name__)

FORMAT_VERSION: Final = 2
READABLE_VERSIONS: Final = (1, 2)
MANIFEST_NAME: Final = "data_manifest.csv"
STORE_NAME: Final = ".embedcache"
RUN_DOCUMENT: Final = "run.json"
# Patterns of `fnmatch`: a file that fits none of them is not ours.
AUDIT_DOCUMENT: Final = "findings.json"
COMPARISON_DOCUMENT: Final = f"compare-{'[0-9a-f]' * 12}.json"
# Entries of which a store has one at least, whatever it has lost.
_STORE_NAMES: Final = frozenset({"embedcache.json", "encoders", "manifests", "folds", "runs"})


@dataclass(frozen=True, slots=True)
class Workspace:
    """One manifest and the store that goes with it.

    Parameters
    ----------
    manifest
        The CSV file. It may be absent where only the store was copied (a laptop that probes what a
        GPU machine has encoded).
    data_root
        Folder that relative image paths start from.
    store
        Root of everything that `embedcache` writes.
    """

    manifest: Path
    data_root: Path
    store: Location

    @property
    def format_file(self) -> Location:
        """The document that says which format the store has."""
        return self.store / "embedcache.json"

    @property
    def encoders(self) -> Location:
        """Stores of embeddings, one folder an encoder fingerprint."""
        return self.store / "encoders"

    @property
    def manifests(self) -> Location:
        """The manifests that were worked with, with the digest of each image."""
        return self.store / "manifests"

    @property
    def folds(self) -> Location:
        """Fold tables, one file each."""
        return self.store / "folds"

    @property
    def runs(self) -> Location:
        """Runs, one folder each."""
        return self.store / "runs"

    @property
    def pixels(self) -> Location:
        """Pictures at training size, one folder a way of fitting them: derived, deletable."""
        return self.store / "pixels"

    @property
    def audits(self) -> Location:
        """What audits took from pictures, and what the last one found: derived, deletable."""
        return self.store / "audit"

    @property
    def comparisons(self) -> Location:
        """What comparisons found, one document each."""
        return self.store / "comparisons"

    @property
    def local(self) -> Path:
        """Folder for what has to be files of this machine.

        The store's own folder where that is on this machine, else one below the user's cache
        folder, which the store's address names.
        """
        if self.store.local_path is not None:
            return self.store.local_path
        name = hashlib.sha256(str(self.store).encode()).hexdigest()[:16]
        return platformdirs.user_cache_path("embedcache") / "stores" / name

    @property
    def training(self) -> Path:
        """State of trainings under way, one folder a run, until the run is published."""
        return self.local / "training"

    @property
    def weights(self) -> Path:
        """Fine-tuned weights that were kept, one folder a run."""
        return self.local / "weights"

    @property
    def logs(self) -> Path:
        """TensorBoard's event files, one folder a run: derived, deletable."""
        return self.local / "logs"

    @property
    def catalog(self) -> Path:
        """The DuckDB index: derived, deletable."""
        return self.local / "catalog.duckdb"

    @property
    def digests(self) -> Path:
        """Digests of image files by size and time stamps: derived, deletable."""
        return self.local / "digests.tsv"

    def has_store(self) -> bool:
        """Tell whether anything is stored."""
        return bool(self.store.list())

    @property
    def is_shared(self) -> bool:
        """Whether the group of the store's folder can read it."""
        return bool(access(self.local) & stat.S_IRGRP)

    def check_store(self) -> None:
        """Check that what lies in the store's folder was written by `embedcache`.

        Raises
        ------
        StoreMismatchError
            The folder holds something, but nothing that tells a store.
        """
        names = {entry.name.removesuffix("/") for entry in self.store.list()}
        if names and not names & _STORE_NAMES:
            raise StoreMismatchError(
                f"{self.store}: no store: it holds none of {', '.join(sorted(_STORE_NAMES))}; name "
                "the folder of a store as --store"
            )

    def create_store(self, *, shared: bool = False) -> None:
        """Prepare the store for a write of this release; called before anything is written.

        A store without a format file, or with a damaged one, gets one. A store of an earlier format
        version becomes one of this version, which an earlier release refuses instead of misreading
        new records.

        Parameters
        ----------
        shared
            Whether a folder that is made for it can be read by its group, not by its owner alone.

        Raises
        ------
        StoreMismatchError
            The store has a format version that this release does not know.
        StoreWriteError
            The storage refused.
        """
        try:
            make_folder(self.local, mode=0o750 if shared else 0o700)
        except OSError as error:
            raise write_error(self.local, error) from error
        if not self.format_file.exists():
            with contextlib.suppress(FileExistsError):
                self.format_file.put(seal(_format_document()))
        try:
            version = self.check_format()
        except StoreCorruptError as error:
            _log.warning("%s: written anew", error.problem)
            self.mend_format()
            return
        if version != FORMAT_VERSION:
            document = read_document(self.format_file)
            self.format_file.replace(seal({**document, "version": FORMAT_VERSION}))

    def check_readable(self) -> None:
        """Check that nothing says that the store has a format which this release does not know.

        A format file that is missing or damaged says nothing, which the log tells: what else is
        stored has checksums of its own.

        Raises
        ------
        StoreMismatchError
            The store has a format version that this release does not know.
        """
        if self.format_file.exists():
            try:
                self.check_format()
            except (StoreCorruptError, StoreReadError) as error:
                _log.warning("%s", error)

    def check_format(self) -> int:
        """Return the store's format version, if this release can read it.

        Raises
        ------
        StoreMismatchError
            The store has a format version that this release does not know.
        StoreCorruptError
            The format file is missing or damaged.
        """
        version = read_document(self.format_file).get("version")
        if version not in READABLE_VERSIONS:
            raise StoreMismatchError(
                f"{self.format_file}: format version {version}, this release reads versions "
                f"{', '.join(map(str, READABLE_VERSIONS))}; install the release that wrote it, or "
                "use another --store"
            )
        return int(version)

    def mend_format(self) -> None:
        """Write a format file where it is missing or damaged."""
        self.format_file.replace(seal(_format_document()))

    def encoder_folders(self) -> tuple[Location, ...]:
        """Return the folder of each encoder fingerprint that holds anything, by name.

        Of several folders of one fingerprint, the one that is named as its encoder, or the first;
        see `copied_encoder_folders`.
        """
        return tuple(folders[0] for folders in self._folders_by_fingerprint())

    def copied_encoder_folders(self) -> dict[Location, Location]:
        """Return each folder that is passed over, and the one of the same fingerprint before it."""
        return {
            copy: folders[0] for folders in self._folders_by_fingerprint() for copy in folders[1:]
        }

    def _folders_by_fingerprint(self) -> list[list[Location]]:
        folders: dict[str, list[Location]] = {}
        for folder in store_folders(self.encoders):
            folders.setdefault(folder.name[-12:], []).append(folder)
        return [original_first(copies) for copies in folders.values()]

    def encoder_documents(self) -> dict[Location, dict[str, Any]]:
        """Return the content of each `encoder.json`, by its encoder's folder.

        The log tells of those that cannot be read.
        """
        documents = {}
        for folder in self.encoder_folders():
            try:
                documents[folder] = read_encoder_document(folder)
            except (StoreCorruptError, StoreReadError) as error:
                _log.warning("encoder '%s' is left out: %s", folder.name, error)
        return documents

    def encoder_folder(self, name: str, fingerprint: str) -> Location:
        """Return the folder of a fingerprint: the one there is, whatever its name, or a new one.

        Parameters
        ----------
        name
            Name of the encoder, for a new folder.
        fingerprint
            Fingerprint of the encoder, 64 hexadecimal digits.
        """
        suffix = f"-{fingerprint[:12]}"
        present = (folder for folder in self.encoder_folders() if folder.name.endswith(suffix))
        return next(present, self.encoders / f"{plain_name(name)}{suffix}")

    def run_stamps(self) -> dict[str, tuple[int, int]]:
        """Return size and time of each run's record, by run id, sorted.

        They differ where a run was removed and made again.
        """
        entries = self.runs.list(deep=True)
        folders = ((entry, *entry.name.rpartition("/")[::2]) for entry in entries)
        return {
            run_id: (entry.size, entry.modified_ns)
            for entry, run_id, name in folders
            if name == RUN_DOCUMENT and run_id and "/" not in run_id
        }

    def has_run(self, run_id: str) -> bool:
        """Tell whether a run is published."""
        return (self.runs / run_id / RUN_DOCUMENT).exists()

    def unfinished_trainings(self) -> list[Location]:
        """Return the folder of each training under way or stopped, whose run is not published."""
        folders = on_disk(self.training).folders()
        return [folder for folder in folders if not self.has_run(folder.name)]


def _format_document() -> dict[str, Any]:
    return {"format": "embedcache", "version": FORMAT_VERSION, "created": utc_now()}


def find_workspace(
    path: Path | str = ".",
    *,
    manifest: Path | str | None = None,
    data_root: Path | str | None = None,
    store: Path | str | Location | None = None,
) -> Workspace:
    """Return the workspace of a folder or of a manifest file.

    Parameters
    ----------
    path
        Folder with a `data_manifest.csv`, or a manifest file itself.
    manifest
        Manifest file; None for `data_manifest.csv` in the folder.
    data_root
        Folder that relative image paths start from; None for the manifest's folder.
    store
        Folder of the store, or its root in another storage; None for `.embedcache` beside the
        manifest.

    Raises
    ------
    ManifestError
        Neither a manifest nor a store is there.
    StoreMismatchError
        The store is no folder, or has a path that is not UTF-8.
    """
    if manifest is None:
        given = Path(path)
        manifest = given / MANIFEST_NAME if given.is_dir() else given
        if not given.exists() and not given.suffix:
            raise ManifestError(f"{given}: no such folder or manifest")
    manifest = Path(manifest)
    if not isinstance(store, Location):
        folder = Path(store) if store is not None else manifest.parent / STORE_NAME
        if folder.exists() and not folder.is_dir():
            raise StoreMismatchError(f"{folder}: a file, not a store's; name a folder as --store")
        if not is_unicode(str(folder.absolute())):  # DuckDB opens no file there
            raise StoreMismatchError(f"{folder}: a path that is not UTF-8; name another as --store")
        store = on_disk(folder)
    _check_kinds(manifest, data_root)
    if not manifest.is_file() and not (store / "manifests").list():
        raise ManifestError(
            f"{manifest}: no such manifest; write one with `embedcache manifest folder --root "
            "DIR`, name one with --manifest, or start with `embedcache quickstart`"
        )
    root = Path(data_root) if data_root is not None else manifest.parent
    return Workspace(manifest=manifest, data_root=root, store=store)


def _check_kinds(manifest: Path, data_root: str | Path | None) -> None:
    """Refuse a manifest that is there but no file, and a data root that is no folder."""
    if kind := kind_of(manifest):
        raise ManifestError(f"{manifest}: {kind}, expected a CSV file as manifest")
    if data_root is not None and (kind := kind_of(data_root)) not in {"", "a folder"}:
        raise ManifestError(f"{data_root}: {kind}, expected the folder that image paths start from")
