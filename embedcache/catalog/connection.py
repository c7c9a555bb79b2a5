"""DuckDB connections: how a catalog file is opened, and how a connection is locked for queries."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import duckdb

CATALOG: Final = "catalog"
SCHEMA_VERSION: Final = 5
_CONFIG: Final[dict[str, str | bool | int | float | list[str]]] = {
    # A query must not make DuckDB fetch or load code.
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    # Or a table's name in a query could mean a variable of the Python code around it.
    "python_enable_replacements": "false",
    # Without it DuckDB makes a folder `.tmp` where the command is run.
    "temp_directory": "",
}


def connect() -> duckdb.DuckDBPyConnection:
    """Return a connection to an empty in-memory database."""
    return duckdb.connect(config=_CONFIG)


def connect_file(path: Path, *, read_only: bool) -> duckdb.DuckDBPyConnection:
    """Return a connection whose current database is the catalog file.

    The file is attached to an in-memory database: in one process, DuckDB hands out an opened file
    again by its path, also where another file was renamed over it.

    Raises
    ------
    duckdb.Error
        The file cannot be opened.
    """
    connection = connect()
    # The whole file is new, so a write-ahead log would be a second copy of every row.
    way = "READ_ONLY" if read_only else "RECOVERY_MODE no_wal_writes"
    # Absolute, lest the path begins with a name that means another thing to DuckDB, as `md:` does.
    quoted = str(path.absolute()).replace("'", "''")
    try:
        connection.execute(f"ATTACH '{quoted}' AS {CATALOG} (TYPE duckdb, {way})")
        connection.execute(f"USE {CATALOG}")
    except BaseException:
        connection.close()
        raise
    return connection


@contextlib.contextmanager
def writing(path: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """Yield a connection to a catalog file that nobody else has open; at the end it holds all."""
    with contextlib.closing(connect_file(path, read_only=False)) as connection:
        yield connection
        # DuckDB does not detach the database that is the current one.
        connection.execute("USE memory")
        connection.execute(f"CHECKPOINT {CATALOG}")
        connection.execute(f"DETACH {CATALOG}")


def is_current(connection: duckdb.DuckDBPyConnection) -> bool:
    """Return whether the current database has this release's tables, written by this DuckDB.

    Hashes of rows, by which the tables are checked, are the same within one DuckDB version only.
    """
    try:
        rows = connection.execute("FROM internal.meta").fetchall()
    except duckdb.Error:
        return False
    return rows == [(SCHEMA_VERSION, duckdb.__version__)]


def is_of_storage(error: duckdb.Error) -> bool:
    """Return whether DuckDB raises such an error where a file or its disk is at fault.

    A block that does not match its checksum has no type of error to itself, a full disk has
    several.
    """
    kinds = (duckdb.OperationalError, duckdb.InternalError, duckdb.FatalException)
    return type(error) is duckdb.Error or isinstance(error, kinds)


def one_line(error: duckdb.Error) -> str:
    """Return what DuckDB says, without its advice and its picture of the statement."""
    return " ".join(str(error).split("\n\n")[0].split())


def lock(connection: duckdb.DuckDBPyConnection) -> None:
    """Take from a connection, for good, every way to files, extensions and settings."""
    connection.execute("SET enable_external_access = false")
    # Last: from here on no setting can be changed, this one neither.
    connection.execute("SET lock_configuration = true")
