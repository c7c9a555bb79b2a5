"""What the catalog of a workspace is made of.

Listing touches no image and reads no table: names and time stamps tell what is new. What works
with images, stores and runs is imported by the functions that load it, so that a query on a
catalog that is up to date pays for none of it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from embedcache.catalog.index import update
from embedcache.catalog.query import CatalogSource
from embedcache.catalog.sources import Kind, SourceItem
from embedcache.encoder_folders import COMMITS
from embedcache.errors import StoreWriteError
from embedcache.files.backend import Location
from embedcache.files.digests import file_stamp
from embedcache.files.documents import known_shape, table_files
from embedcache.workspace import AUDIT_DOCUMENT, COMPARISON_DOCUMENT, Workspace

if TYPE_CHECKING:
    import pyarrow as pa

    from embedcache.store.embedding_store import EmbeddingStore
    from embedcache.verbs.session import Session

_Load: TypeAlias = "Callable[[Location], dict[str, pa.Table]]"


def catalog_source(workspace: Workspace, session: Session | None = None) -> CatalogSource:
    """Return the catalog of a workspace with the items that it is made of; loads none of them.

    Parameters
    ----------
    workspace
        The manifest and its store.
    session
        Images, stores and runs that are read already; None to read what is needed.

    Raises
    ------
    StoreMismatchError
        The store was written by another format version.
    """
    workspace.check_readable()
    lazy = _LazySession(workspace, session)
    items = [
        _manifest_item(workspace, session, lazy),
        *(_encoder_item(folder, lazy) for folder in workspace.encoder_folders()),
        *map(_folds_item, table_files(workspace.folds).values()),  # of each id one
        *(
            _run_item(run_id, f"{size} {modified_ns}", lazy)
            for run_id, (size, modified_ns) in workspace.run_stamps().items()
        ),
        *_result_items(workspace),
    ]
    return CatalogSource(workspace.catalog, items, lazy.stores)


def renew_catalog(session: Session, *, anew: bool = False) -> None:
    """Bring the catalog up to date with what a session has read, where it can be written.

    It is derived: a verb whose result is there already works on a store that can only be read.

    Parameters
    ----------
    session
        Images, stores and runs that are read already.
    anew
        Whether to write all of it, even where it is up to date.

    Raises
    ------
    StoreWriteError
        The storage refused, and all of it was to be written.
    """
    with contextlib.nullcontext() if anew else contextlib.suppress(StoreWriteError):
        session.workspace.create_store()
        source = catalog_source(session.workspace, session)
        update(source.path, source.items, anew=anew)


class _LazySession:
    """A session that is begun when something has to be loaded."""

    def __init__(self, workspace: Workspace, session: Session | None) -> None:
        self._workspace, self._session = workspace, session

    @property
    def session(self) -> Session:
        """The session."""
        if self._session is None:
            from embedcache.verbs.session import Session

            self._session = Session(self._workspace)
        return self._session

    def stores(self) -> list[EmbeddingStore]:
        """Return the store of every encoder."""
        return self.session.stores()


def _manifest_item(workspace: Workspace, session: Session | None, lazy: _LazySession) -> SourceItem:
    def load() -> dict[str, pa.Table]:
        return {"images": lazy.session.images.table.replace_schema_metadata(None)}

    # Of before the manifest was read: an edit meanwhile is noticed.
    stamp = file_stamp(workspace.manifest) if session is None else session.manifest_stamp
    # A pass over the images may find other digests, which the manifest that it remembers has.
    snapshots = _table_names(workspace.manifests)
    name = json.dumps([str(workspace.manifest.resolve()), str(workspace.data_root.resolve())])
    return SourceItem("manifest", name, json.dumps([stamp, *snapshots[-1:]]), load)


def _encoder_item(folder: Location, lazy: _LazySession) -> SourceItem:
    def load() -> dict[str, pa.Table]:
        from embedcache.catalog.embeddings import encoder_tables

        store = lazy.session.open_store(folder)
        with known_shape(folder):
            return encoder_tables(store)

    # Names of records end in checksums of them, so equal names are equal rows.
    names = "\n".join(_table_names(folder / COMMITS))
    stamp = hashlib.sha256(names.encode()).hexdigest()
    return SourceItem("encoder", folder.name, stamp, load)


def _folds_item(file: Location) -> SourceItem:
    def load() -> dict[str, pa.Table]:
        from embedcache.data.fold_tables import fold_rows

        return {"folds": fold_rows(file)}

    # No stamp: the name ends in a checksum of the content.
    return SourceItem("folds", file.name, "", load)


def _run_item(run_id: str, stamp: str, lazy: _LazySession) -> SourceItem:
    return SourceItem("run", run_id, stamp, partial(_run_tables, run_id, lazy))


def _run_tables(run_id: str, lazy: _LazySession) -> dict[str, pa.Table]:
    import pyarrow as pa

    from embedcache.catalog.sources import one_row
    from embedcache.runs.tables import SCHEMAS
    from embedcache.verbs.run_row import run_row

    runs = lazy.session.runs
    if runs.is_copy(run_id):  # which is no run of its own
        return {"runs": pa.table({"run_id": pa.array([], pa.string())})}
    tables = {name: runs.table(run_id, name) for name in SCHEMAS}
    return {"runs": one_row(run_row(runs.record(run_id))), **tables}


def _result_items(workspace: Workspace) -> Iterator[SourceItem]:
    """Yield the findings of the last audit, if there was one, and each comparison."""
    folders: tuple[tuple[Kind, Location, str, _Load], ...] = (
        ("audit", workspace.audits, AUDIT_DOCUMENT, _audit_tables),
        ("comparison", workspace.comparisons, COMPARISON_DOCUMENT, _comparison_tables),
    )
    for kind, folder, pattern, load in folders:
        for entry in folder.list():
            if fnmatchcase(entry.name, pattern):
                stamp = f"{entry.size} {entry.modified_ns}"
                yield SourceItem(kind, entry.name, stamp, partial(load, folder / entry.name))


def _audit_tables(file: Location) -> dict[str, pa.Table]:
    from embedcache.verbs.audit_files import audit_tables

    return audit_tables(file)


def _comparison_tables(file: Location) -> dict[str, pa.Table]:
    from embedcache.verbs.comparison_files import comparison_tables

    return comparison_tables(file)


def _table_names(folder: Location) -> list[str]:
    return [entry.name for entry in folder.list() if entry.name.endswith(".parquet")]
