"""Where things are: the manifest, the images' root, and the store with its parts."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from embedcache.errors import ManifestError, StoreMismatchError
from embedcache.files.durable import publish, read_document, seal_document, utc_now

FORMAT_VERSION: Final = 1
MANIFEST_NAME: Final = "data_manifest.csv"
STORE_NAME: Final = ".embedcache"


@dataclass(frozen=True, slots=True)
class Workspace:
    """One manifest and the store that goes with it.

    Parameters
    ----------
    manifest
        The CSV file. It may be absent where only the store was copied (a laptop that probes what a
        GPU machine has encoded).
    data_root
        The folder that relative image paths start from.
    store
        The folder of everything `embedcache` writes.
    """

    manifest: Path
    data_root: Path
    store: Path

    @property
    def format_file(self) -> Path:
        """The file that says which format this store has."""
        return self.store / "embedcache.json"

    @property
    def encoders(self) -> Path:
        """One folder an encoder fingerprint."""
        return self.store / "encoders"

    @property
    def manifests(self) -> Path:
        """The manifests that were worked with, with the digest of each image."""
        return self.store / "manifests"

    @property
    def folds(self) -> Path:
        """Fold tables, one file each."""
        return self.store / "folds"

    @property
    def runs(self) -> Path:
        """One folder a run."""
        return self.store / "runs"

    @property
    def pixels(self) -> Path:
        """Images at training size, one folder a way of fitting them: derived, deletable."""
        return self.store / "pixels"

    @property
    def training(self) -> Path:
        """State of fine-tuning under way, one folder a run, until the run is published."""
        return self.store / "training"

    @property
    def weights(self) -> Path:
        """Fine-tuned weights that were kept, one folder a run."""
        return self.store / "weights"

    @property
    def logs(self) -> Path:
        """TensorBoard's event files, one folder a run: derived, deletable."""
        return self.store / "logs"

    @property
    def catalog(self) -> Path:
        """The DuckDB index: derived, deletable."""
        return self.store / "catalog.duckdb"

    @property
    def digests(self) -> Path:
        """What is known of files by their size and time stamps: derived, deletable."""
        return self.store / "digests.tsv"

    def create_store(self) -> None:
        """Make the store's folder and its format file where there is none yet."""
        if not self.format_file.exists():
            document = {"format": "embedcache", "version": FORMAT_VERSION, "created": utc_now()}
            with contextlib.suppress(FileExistsError):
                publish(self.format_file, seal_document(document))
        self.check_format()

    def check_format(self) -> None:
        """Refuse a store of another format.

        Raises
        ------
        StoreMismatchError
            The store was written by another format version.
        StoreCorruptError
            The format file is missing or damaged.
        """
        document = read_document(self.format_file)
        if document.get("version") != FORMAT_VERSION:
            raise StoreMismatchError(
                f"{self.format_file}: format version {document.get('version')}, this release reads "
                f"version {FORMAT_VERSION}; install the release that wrote it, or use another "
                "--store"
            )


def find_workspace(
    path: Path | str = ".",
    *,
    manifest: Path | str | None = None,
    data_root: Path | str | None = None,
    store: Path | str | None = None,
) -> Workspace:
    """Return the workspace of a folder or of a manifest file.

    Parameters
    ----------
    path
        A folder with a `data_manifest.csv`, or a manifest file itself.
    manifest, data_root, store
        Override `<folder>/data_manifest.csv`, the manifest's folder, and `.embedcache` beside the
        manifest.

    Raises
    ------
    ManifestError
        Neither a manifest nor a store is there.
    StoreMismatchError
        The store is no folder.
    """
    if manifest is None:
        given = Path(path)
        manifest = given / MANIFEST_NAME if given.is_dir() else given
        if not given.exists() and not given.suffix:
            raise ManifestError(f"{given}: no such folder or manifest")
    manifest = Path(manifest)
    store = Path(store) if store is not None else manifest.parent / STORE_NAME
    if store.exists() and not store.is_dir():
        raise StoreMismatchError(f"{store}: a file, not a store's folder; name a folder as --store")
    if not manifest.is_file() and not (store / "manifests").is_dir():
        raise ManifestError(
            f"{manifest}: no such manifest; write one with `embedcache manifest folder --root "
            "DIR`, name one with --manifest, or start with `embedcache quickstart`"
        )
    root = Path(data_root) if data_root is not None else manifest.parent
    return Workspace(manifest=manifest, data_root=root, store=store)
