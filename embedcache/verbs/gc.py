"""`gc`: drop rows that no manifest wants, and files that nothing needs any more."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

from embedcache.data.claims import claim_files, images_digest, manifest_path, read_claims
from embedcache.data.snapshots import (
    is_snapshot_of,
    read_snapshot,
    snapshot_files,
    snapshot_metadata,
)
from embedcache.errors import StoreCorruptError, StoreReadError
from embedcache.files.backend import Location
from embedcache.files.kinds import GRACE_S
from embedcache.store.embedding_store import EmbeddingStore
from embedcache.verbs.artefacts import artefact_kinds
from embedcache.verbs.catalog import renew_catalog
from embedcache.verbs.session import Session


@dataclass(frozen=True, slots=True)
class GcReport:
    """What `gc` dropped, or would drop.

    Parameters
    ----------
    n_rows
        Number of rows of images that no manifest wants.
    freed_bytes
        Bytes deleted; 0 in a dry run.
    n_undecided
        Number of rows that stay although nobody is known to want them.
    notes
        What could not be decided or looked at, why, and what to do.
    """

    n_rows: int
    freed_bytes: int
    n_undecided: int = 0
    notes: tuple[str, ...] = ()


def gc(
    session: Session,
    *,
    grace_s: float = GRACE_S,
    dry_run: bool = False,
    on_message: Callable[[str], None] = lambda _: None,
) -> GcReport:
    """Drop rows that no manifest wants, and files that nothing needs any more.

    Wanted is what the manifest names now, and whatever any other manifest that worked with this
    store named. It is asked anew under each store's lock. Where it cannot be told in full, no row
    is dropped: a pass over another manifest has not ended, or nobody knows the digest of an image.

    Parameters
    ----------
    session
        The workspace.
    grace_s
        Age in seconds up to which files stay: a reader may hold on to them.
    dry_run
        Whether to count only, and change nothing.
    on_message
        Function called with what a user should know, such as what is waited for.

    Raises
    ------
    StoreMismatchError
        The store's folder holds something, but no store.
    """
    session.workspace.check_store()
    wanted = _Wanted(session)
    cleaning = _Cleaning(wanted, dry_run, on_message)
    for folder in session.workspace.encoder_folders():
        with cleaning.unless_damaged(folder.name):
            cleaning.drop_rows(session.open_store(folder))
    if not dry_run:
        for kind in artefact_kinds(session):
            with cleaning.unless_damaged(kind.name):
                cleaning.freed_bytes += kind.sweep(grace_s)
        renew_catalog(session)
    return cleaning.report()


@dataclass(slots=True)
class _Cleaning:
    """How far a cleaning is.

    Parameters
    ----------
    wanted
        What any manifest wants.
    dry_run
        Whether nothing is changed.
    on_message
        Function called with what is waited for.
    n_rows, n_undecided
        Number of rows that were dropped, and of rows that stay though nobody is known to want them.
    freed_bytes
        Bytes deleted.
    notes
        What could not be looked at.
    """

    wanted: _Wanted
    dry_run: bool
    on_message: Callable[[str], None]
    n_rows: int = 0
    n_undecided: int = 0
    freed_bytes: int = 0
    notes: list[str] = field(default_factory=list)

    @contextlib.contextmanager
    def unless_damaged(self, name: str) -> Iterator[None]:
        """Note what cannot be read in the block, and go on."""
        try:
            yield
        except (StoreCorruptError, StoreReadError) as error:
            self.notes.append(f"{name} is left as it is: {error}")

    def drop_rows(self, store: EmbeddingStore) -> None:
        """Drop a store's rows that no manifest wants, and forget such that were lost."""
        waiting = f"another process is working on '{store.name}'; waiting for it to end"
        lock = store.lock(partial(self.on_message, waiting))
        with contextlib.nullcontext() if self.dry_run else lock:
            # The rows first: a pass puts a claim before its first row, and takes it back when its
            # manifest is remembered, which is before it lets go of the lock.
            store.refresh()
            rows, lost = store.row_keys(), store.lost
            self.wanted.renew()
            remaining = [key for key in rows if key in self.wanted.keys]
            n_spare = len(rows) - len(remaining)
            if self.wanted.reasons():
                self.n_undecided += n_spare
                return
            self.n_rows += n_spare
            if (n_spare or not lost <= self.wanted.keys) and not self.dry_run:
                store.rewrite(remaining, lost=lost & self.wanted.keys)

    def report(self) -> GcReport:
        """Return what was done."""
        notes = list(self.notes)
        if self.n_undecided:
            notes += [f"{self.n_undecided} rows stay: {why}" for why in self.wanted.reasons()]
        return GcReport(self.n_rows, self.freed_bytes, self.n_undecided, tuple(notes))


class _Wanted:
    """What any manifest wants, as far as the store tells.

    Parameters
    ----------
    session
        The workspace.

    Attributes
    ----------
    keys
        SHA-256 of each image that a manifest wants; grows while other processes work.
    """

    def __init__(self, session: Session) -> None:
        self._workspace = workspace = session.workspace
        self.keys = {key for key in session.images.keys if key}
        self._unknown: dict[str, str] = {}  # by manifest: what nobody knows of it
        self._read_images(session)
        # Of this manifest only what is remembered from now on: it is what the manifest says now.
        self._seen: set[Location] = set()
        self._settled = self._own_claims(session)
        for file in snapshot_files(workspace):
            self._add(file, is_earlier=True)

    def _read_images(self, session: Session) -> None:
        """Note the images of this manifest whose digest nobody knows."""
        images = session.images
        paths = images.table["path"].to_pylist()
        files = images.files or [None] * len(paths)
        unknown = []
        for path, key, file in zip(paths, images.keys, files, strict=True):
            if key is None and file is not None and file.expected:
                self.keys.add(file.key_of(file.expected))  # the picture that the manifest means
            elif key is None:
                unknown.append(path)
        manifest = str(self._workspace.manifest.resolve())
        self._note(manifest, unknown, "make the files readable, and run it again")

    def _own_claims(self, session: Session) -> set[Location]:
        """Return the claims of passes over the very images that are known here."""
        if not self._workspace.manifest.is_file():
            return set()
        own = manifest_path(self._workspace), images_digest(self._workspace, session.manifest)
        return {c.file for c in session.earlier_claims if (c.path, c.images) == own}

    def renew(self) -> None:
        """Look again at what passes claim, and add what was remembered meanwhile."""
        # Claims first: one that is gone by now has a snapshot below.
        files = [file for file in claim_files(self._workspace) if file not in self._settled]
        self._claims = [claim.reason for claim in read_claims(files)]
        for file in snapshot_files(self._workspace):
            self._add(file)

    def reasons(self) -> list[str]:
        """Return why no row can be told to be unwanted; empty where it can."""
        return [*self._unknown.values(), *dict.fromkeys(self._claims)]

    def _add(self, file: Location, *, is_earlier: bool = False) -> None:
        if file in self._seen:
            return
        self._seen.add(file)
        try:
            table = read_snapshot(file)
        except (StoreCorruptError, StoreReadError) as error:
            self._unknown[str(file)] = f"what it wants is not known: {error}"
            return
        if is_earlier and is_snapshot_of(self._workspace, table):
            return
        keys = table["sha256"].to_pylist()
        self.keys |= {key for key in keys if key}
        paths = table["path"].to_pylist()
        unknown = [path for path, key in zip(paths, keys, strict=True) if key is None]
        # The newest snapshot of a manifest counts: files are read oldest first.
        name = str(snapshot_metadata(table).get("path"))
        way_out = f"use that manifest where its images are, or delete {file}"
        self._note(name, unknown, way_out)

    def _note(self, manifest: str, unknown: list[str], way_out: str) -> None:
        self._unknown.pop(manifest, None)
        if unknown:
            self._unknown[manifest] = (
                f"the digest of {len(unknown)} images of {manifest} cannot be known now, first "
                f"'{unknown[0]}'; {way_out}"
            )
