"""`catalog.duckdb`: native tables, made from the items of a workspace and updated by what is new.

A writer copies the file, changes the copy and renames it into place, so that no reader is ever
locked out and one that has the old file open keeps it. Nothing is known to the catalog alone: it
can be deleted at any time.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb

from embedcache.catalog.connection import (
    CATALOG,
    SCHEMA_VERSION,
    connect,
    connect_file,
    is_current,
    is_of_storage,
    one_line,
    writing,
)
from embedcache.catalog.sources import ROW_KEYS, TABLES, Kind, SourceItem
from embedcache.errors import EmbedcacheError, StoreCorruptError, StoreReadError
from embedcache.files.durable import TEMPORARY, access, fsync, write_error

if TYPE_CHECKING:
    import pyarrow as pa

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _StoredItem:
    """A row of `internal.sources`: an item as it was when its rows were written."""

    kind: Kind
    name: str
    stamp: str
    row_key: str | None


def open_fresh(path: Path, items: Sequence[SourceItem]) -> duckdb.DuckDBPyConnection | None:
    """Return a read-only connection to a catalog file that is made of exactly these items.

    Returns
    -------
    The connection, or None where the file is absent, out of date, damaged or of another version.
    """
    if not path.is_file():
        return None
    try:
        connection = connect_file(path, read_only=True)
    except duckdb.Error:
        return None
    try:
        if is_current(connection) and _is_made_of(connection, items):
            return connection
    except duckdb.Error:
        pass  # damaged, which is as good as none: all that it holds is derived
    connection.close()
    return None


def is_fresh(path: Path, items: Sequence[SourceItem]) -> bool:
    """Return whether the catalog file is made of exactly these items; loads none of them."""
    connection = open_fresh(path, items)
    if connection is not None:
        connection.close()
    return connection is not None


def update(
    path: Path, items: Sequence[SourceItem], *, anew: bool = False
) -> Sequence[SourceItem] | None:
    """Drop the rows of items that are gone or changed from the catalog file, and add the new ones.

    A file that is absent, damaged, of another schema version or of another DuckDB version is
    written anew. Of two writers at once the last one wins; what its items lack, the next
    `is_fresh` notices. A run, an encoder or a fold table that cannot be read is left out, which
    the log says; the next update tries it again.

    Parameters
    ----------
    path
        The catalog file.
    items
        Every item that the catalog is to be made of.
    anew
        Whether to write the whole file, also where it could be brought up to date.

    Returns
    -------
    The items that the file is made of now; None where it was up to date and was not written.

    Raises
    ------
    StoreWriteError
        The file system refused; the old file is untouched.
    StoreCorruptError
        The manifest had to be loaded, and what remembers it is damaged.
    """
    if not anew and is_fresh(path, items):
        return None
    try:
        with _beside(path) as aside:
            unread = None if anew else _update_copy(path, aside, items)
            if unread is None:
                unread = _write_anew(aside, items)
            _put(aside, path)
    except EmbedcacheError:  # of an item; some of them are OSErrors too
        raise
    except (OSError, duckdb.Error) as error:
        if isinstance(error, duckdb.Error) and not is_of_storage(error):
            raise
        reason = error if isinstance(error, OSError) else OSError(one_line(error))
        raise write_error(path, reason) from error
    left_out = {(item.kind, item.name) for item in unread}
    return [item for item in items if (item.kind, item.name) not in left_out]


def connect_memory(path: Path, items: Sequence[SourceItem]) -> duckdb.DuckDBPyConnection:
    """Return a connection to an in-memory catalog of these items, where no file can be written.

    Parameters
    ----------
    path
        A catalog file, out of date or absent, whose rows are used as far as they are valid.
    items
        Every item that the catalog is to be made of; see `update` for those that cannot be read.

    Raises
    ------
    StoreCorruptError
        The manifest had to be loaded, and what remembers it is damaged.
    """
    connection = _copied_to_memory(path)
    if connection is None:
        connection = connect()
        _create(connection)
    try:
        _apply(connection, items)
    except BaseException:
        connection.close()
        raise
    return connection


def check_catalog(path: Path) -> list[str]:
    """Return the tables of a catalog that are not what was written into it.

    A catalog of another version, which the next `update` writes anew, is not looked into.
    """
    try:
        with contextlib.closing(connect_file(path, read_only=True)) as connection:
            if connection.execute("SELECT schema_version FROM internal.meta").fetchall() and not (
                is_current(connection)
            ):
                return []
            return [
                table.removeprefix("internal.")
                for table, digest in _digests(connection).items()
                if digest != _digest(connection, table)
            ]
    except duckdb.Error:
        return ["a table that cannot be read"]


def _is_made_of(connection: duckdb.DuckDBPyConnection, items: Sequence[SourceItem]) -> bool:
    stored = sorted((item.kind, item.name, item.stamp) for item in _stored_items(connection))
    return stored == sorted((item.kind, item.name, item.stamp) for item in items)


def _stored_items(connection: duckdb.DuckDBPyConnection) -> list[_StoredItem]:
    rows = connection.execute("SELECT kind, name, stamp, row_key FROM internal.sources").fetchall()
    return [_StoredItem(*row) for row in rows]


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """Yield the path of a file to write, which is removed at the end if it is there still.

    DuckDB writes its log to `<path>.wal`, but puts `.wal` before a question mark: in a folder with
    one in its name it can read and cannot write.
    """
    name = f"{TEMPORARY}{secrets.token_hex(8)}.duckdb"
    if "?" in str(path.absolute()):
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder, name)
        return
    aside = path.with_name(name)
    try:
        yield aside
    finally:
        for leftover in (aside, aside.with_name(f"{name}.wal")):
            # A disk that refused the file may refuse this too: the first error counts.
            with contextlib.suppress(OSError):
                leftover.unlink(missing_ok=True)


def _put(aside: Path, path: Path) -> None:
    """Rename a written file into place, from another file system by way of a copy."""
    beside = path.with_name(aside.name)
    try:
        if aside != beside:
            shutil.copyfile(aside, beside)
        # Whoever was allowed to read the old file may read the new one.
        beside.chmod(path.stat().st_mode & 0o777 if path.exists() else access(path.parent))
        # Or a power cut could leave the new name without its content.
        fsync(beside)
        beside.replace(path)
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)


def _update_copy(path: Path, aside: Path, items: Sequence[SourceItem]) -> list[SourceItem] | None:
    """Copy a catalog and bring the copy up to date; return None where the catalog is of no use."""
    try:
        shutil.copyfile(path, aside)
        with writing(aside) as connection:
            if not is_current(connection):
                return None
            return _apply(connection, items)
    except (FileNotFoundError, duckdb.Error):
        return None


def _write_anew(aside: Path, items: Sequence[SourceItem]) -> list[SourceItem]:
    # What a failed update has left would be opened as a database.
    aside.unlink(missing_ok=True)
    with writing(aside) as connection:
        _create(connection)
        return _apply(connection, items)


def _copied_to_memory(path: Path) -> duckdb.DuckDBPyConnection | None:
    if not path.is_file():
        return None
    connection = None
    try:
        connection = connect_file(path, read_only=True)
        if is_current(connection):
            # A copy, for the file is opened to be read only.
            connection.execute("USE memory")
            connection.execute(f"COPY FROM DATABASE {CATALOG} TO memory")
            connection.execute(f"DETACH {CATALOG}")
            return connection
    except duckdb.Error:
        pass
    if connection is not None:
        connection.close()
    return None


def _create(connection: duckdb.DuckDBPyConnection) -> None:
    sql = files("embedcache.catalog").joinpath("schema.sql").read_text(encoding="utf-8")
    # The views name columns of `images`, so a table of that name must be there before them.
    connection.execute(
        "CREATE TABLE images (image_id VARCHAR, patient_id VARCHAR, cohort VARCHAR, "
        "label VARCHAR, sha256 VARCHAR)"
    )
    connection.execute(sql)
    connection.execute(
        "INSERT INTO internal.meta VALUES (?, ?)", [SCHEMA_VERSION, duckdb.__version__]
    )
    for tables in TABLES.values():
        for table in tables:
            connection.execute("INSERT INTO internal.digests VALUES (?, 0)", [table])


def _apply(connection: duckdb.DuckDBPyConnection, items: Sequence[SourceItem]) -> list[SourceItem]:
    """Make the current database one of exactly these items, in one transaction.

    Returns the items that could not be read, which the log names: they are in no table.
    """
    stored = _stored_items(connection)
    changed = _changed_names(stored, items)
    connection.begin()
    digests = _digests(connection)
    # All drops before the first addition: a new item may bring rows that an old one had.
    for old in stored:
        if (old.kind, old.name) in changed:
            _drop(connection, old, digests)
    unread = []
    for item in items:
        if (item.kind, item.name) in changed:
            try:
                tables = item.load()
            except (StoreCorruptError, StoreReadError) as error:
                if item.kind == "manifest":  # without it there is no `images`
                    raise
                _log.warning("%s '%s' is left out: %s", item.kind, item.name, error)
                unread.append(item)
            else:
                _add(connection, item, tables, digests)
    connection.executemany(
        "UPDATE internal.digests SET digest = ? WHERE table_name = ?",
        [(digest, table) for table, digest in digests.items()],
    )
    connection.commit()
    return unread


def _changed_names(
    stored: Sequence[_StoredItem], items: Sequence[SourceItem]
) -> set[tuple[Kind, str]]:
    before = {(item.kind, item.name, item.stamp) for item in stored}
    after = {(item.kind, item.name, item.stamp) for item in items}
    changed = {(kind, name) for kind, name, _ in before ^ after}
    # Two folders may hold rows of one key (a copied encoder): their rows go and come together.
    keys = {(i.kind, i.row_key) for i in stored if (i.kind, i.name) in changed}
    return changed | {(i.kind, i.name) for i in stored if (i.kind, i.row_key) in keys}


def _drop(
    connection: duckdb.DuckDBPyConnection, item: _StoredItem, digests: dict[str, int]
) -> None:
    for table in TABLES[item.kind]:
        # The one manifest has no key; `_insert` replaces its table as a whole.
        if item.kind in ROW_KEYS:
            digests[table] -= _digest(connection, table, item.kind, item.row_key)
            column = ROW_KEYS[item.kind]
            connection.execute(f"DELETE FROM {table} WHERE {column} = ?", [item.row_key])  # noqa: S608 - names of our own
    connection.execute(
        "DELETE FROM internal.sources WHERE kind = ? AND name = ?", [item.kind, item.name]
    )


def _add(
    connection: duckdb.DuckDBPyConnection,
    item: SourceItem,
    tables: Mapping[str, pa.Table],
    digests: dict[str, int],
) -> None:
    row_key = None
    if item.kind in ROW_KEYS:
        column = tables[TABLES[item.kind][0]][ROW_KEYS[item.kind]]
        row_key = column[0].as_py() if len(column) else None
    for name in TABLES[item.kind]:
        if name not in tables:
            continue
        # Rows of this key may be there already, from a copy of the item.
        before = _digest(connection, name, item.kind, row_key)
        _insert(connection, name, tables[name], item.kind, row_key)
        digests[name] += _digest(connection, name, item.kind, row_key) - before
    connection.execute(
        "INSERT INTO internal.sources VALUES (?, ?, ?, ?)",
        [item.kind, item.name, item.stamp, row_key],
    )


def _insert(
    connection: duckdb.DuckDBPyConnection,
    name: str,
    table: pa.Table,
    kind: Kind,
    row_key: str | None,
) -> None:
    """Add rows, each under the key of its item: `_drop` would miss one of another key."""
    connection.register("new_rows", table)
    if name == "images":  # whose columns are the manifest's
        connection.execute("DROP TABLE images")
        connection.execute("CREATE TABLE images AS FROM new_rows")
    else:
        rows = f"SELECT * REPLACE (? AS {ROW_KEYS[kind]}) FROM new_rows"  # noqa: S608 - names of our own
        connection.execute(f"INSERT INTO {name} BY NAME {rows}", [row_key])
    connection.unregister("new_rows")


def _digests(connection: duckdb.DuckDBPyConnection) -> dict[str, int]:
    return dict(connection.execute("FROM internal.digests").fetchall())


def _digest(
    connection: duckdb.DuckDBPyConnection,
    table: str,
    kind: Kind = "manifest",
    row_key: str | None = None,
) -> int:
    """Return the sum of the hashes of a table's rows, or of those of one item.

    A sum can be brought up to date by what comes and goes. DuckDB's own hash of a row takes a
    twentieth of the time of a cryptographic one of its text.
    """
    # The alias of a whole row: no column, for names of a manifest's columns are stripped.
    query = f'SELECT coalesce(sum(hash(" row")), 0) FROM {table} AS " row"'  # noqa: S608 - names of our own
    where, values = (f" WHERE {ROW_KEYS[kind]} = ?", [row_key]) if kind in ROW_KEYS else ("", [])
    [(total,)] = connection.execute(query + where, values).fetchall()
    return int(total)
