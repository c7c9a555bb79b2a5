"""`gc`: drop rows that no manifest wants, and files that nothing needs any more."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import pyarrow as pa

from embedcache.data.snapshots import is_snapshot_of, snapshot_files
from embedcache.files.documents import read_table
from embedcache.files.kinds import GRACE_S
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
    """

    n_rows: int
    freed_bytes: int


def gc(session: Session, *, grace_s: float = GRACE_S, dry_run: bool = False) -> GcReport:
    """Drop rows that no manifest wants, and files that nothing needs any more.

    Wanted is what the manifest names now, and whatever any other manifest that worked with this
    store named. It is asked anew under each store's lock: a pass that was waited for has remembered
    its manifest meanwhile.

    Parameters
    ----------
    session
        The workspace.
    grace_s
        Age in seconds up to which files stay: a reader may hold on to them.
    dry_run
        Whether to count only, and change nothing.
    """
    wanted = _Wanted(session)
    n_rows = freed = 0
    for store in session.stores():
        with contextlib.nullcontext() if dry_run else store.lock():
            # The rows first: a pass remembers its manifest before it lets go of the lock, and one
            # that takes no lock, a shard, before it stores a row.
            store.refresh()
            rows = store.row_keys()
            wanted.renew()
            kept = [key for key in rows if key in wanted.keys]
            n_rows += len(rows) - len(kept)
            if len(kept) < len(rows) and not dry_run:
                store.rewrite(kept)
    if not dry_run:
        freed = sum(kind.sweep(grace_s) for kind in artefact_kinds(session))
        renew_catalog(session)
    return GcReport(n_rows, freed)


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
        self.keys = {key for key in session.images.keys if key}
        self._workspace = session.workspace
        # Of this manifest only what is remembered from now on: it is what the manifest says now.
        self._seen = set(snapshot_files(self._workspace))
        for table in map(read_table, self._seen):
            if not is_snapshot_of(self._workspace, table):
                self._add(table)

    def renew(self) -> None:
        """Add what was remembered meanwhile."""
        files = set(snapshot_files(self._workspace)) - self._seen
        self._seen |= files
        for table in map(read_table, files):
            self._add(table)

    def _add(self, table: pa.Table) -> None:
        self.keys |= set(table["sha256"].to_pylist())
