"""`gc`: drop rows that no manifest wants, and files that nothing needs any more."""

from __future__ import annotations

from dataclasses import dataclass

from embedcache.data.snapshots import is_snapshot_of, snapshot_files
from embedcache.files.documents import read_table
from embedcache.store.care import GRACE_S
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
    store named last.

    Parameters
    ----------
    session
        The workspace.
    grace_s
        Age in seconds up to which files stay: a reader may hold on to them.
    dry_run
        Whether to count only, and change nothing.
    """
    wanted = {key for key in session.images.keys if key}
    for table in map(read_table, snapshot_files(session.workspace)):
        if not is_snapshot_of(session.workspace, table):
            wanted |= set(table["sha256"].to_pylist())
    n_rows = freed = 0
    for store in session.stores():
        n_rows += sum(key not in wanted for key in store.row_keys())
        if not dry_run:
            with store.lock():
                # Asked again under the lock: a pass may have stored rows since.
                rows = [key for key in store.row_keys() if key in wanted]
                if len(rows) < len(store):
                    store.rewrite(rows)
    if not dry_run:
        freed = sum(kind.sweep(grace_s) for kind in artefact_kinds(session))
        renew_catalog(session)
    return GcReport(n_rows, freed)
