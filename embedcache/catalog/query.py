"""Queries over a catalog: read-only, on a connection that can reach no file.

The catalog file is opened read-only; then DuckDB's access to files and its settings are locked, so
that whatever a query says, it can read these tables and nothing else.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import duckdb

from embedcache.catalog import connection as connections
from embedcache.catalog.connection import one_line
from embedcache.catalog.index import check_catalog, connect_memory, open_fresh, update
from embedcache.catalog.output import QueryRows, plain_value
from embedcache.catalog.sources import SourceItem
from embedcache.catalog.types import ARROW, PLAIN, with_types
from embedcache.errors import CatalogError, StoreWriteError
from embedcache.visible import as_unicode

if TYPE_CHECKING:
    import pyarrow as pa

    from embedcache.store.embedding_store import EmbeddingStore

Result = TypeVar("Result")

# Words that may name a view; one inside a text constant costs time and does no harm.
_EMBEDDINGS: Final = re.compile(r"\bembeddings(?:_\w+)?\b", re.IGNORECASE)
_READING: Final = {
    duckdb.StatementType.SELECT,
    duckdb.StatementType.EXPLAIN,
    duckdb.StatementType.MULTI,  # PIVOT: a temporary type, then a SELECT
}


@dataclass(frozen=True, slots=True)
class CatalogSource:
    """A catalog and what it is made of.

    Parameters
    ----------
    path
        The catalog file, which is brought up to date first where it can be written.
    items
        Every item that the catalog is to be made of.
    open_stores
        Function that opens every embedding store; called only for a query that names embeddings.
    """

    path: Path
    items: Sequence[SourceItem]
    open_stores: Callable[[], Sequence[EmbeddingStore]]


def query_table(source: CatalogSource, query: str) -> pa.Table:
    """Return the result of one reading statement as an Arrow table.

    A value of a type that Parquet lacks, such as INTERVAL, is the text that DuckDB shows for it.

    Raises
    ------
    CatalogError
        The statement is wrong, is not one, or would write.
    """
    return _run(source, query, _as_table)


def query_rows(source: CatalogSource, query: str) -> QueryRows:
    """Return the result of one reading statement as rows of numbers, texts, lists and dicts.

    A value of another type, such as a date, is the text that DuckDB shows for it.

    Raises
    ------
    CatalogError
        As `query_table`.
    """
    return _run(source, query, _as_rows)


def _run(
    source: CatalogSource, query: str, fetch: Callable[[duckdb.DuckDBPyRelation], Result]
) -> Result:
    query = _unicode("the statement", query)
    check_reading(query)
    return ask(source, lambda connection: _answer(source, connection, query, fetch))


def ask(source: CatalogSource, work: Callable[[duckdb.DuckDBPyConnection], Result]) -> Result:
    """Return what some work makes of a catalog, which is written anew where it turns out damaged.

    Raises
    ------
    CatalogError
        DuckDB refuses.
    StoreCorruptError
        The manifest had to be loaded, and what remembers it is damaged.
    """
    try:
        with reading(source) as connection:
            return work(connection)
    except duckdb.Error as error:
        if not connections.is_of_storage(error) or not check_catalog(source.path):
            raise CatalogError(one_line(error)) from None
    # A block of the file is damaged: the items hold all that was in it.
    with contextlib.suppress(StoreWriteError):
        update(source.path, source.items, anew=True)
    try:
        with reading(source) as connection:
            return work(connection)
    except duckdb.Error as error:
        raise CatalogError(one_line(error)) from None


def _answer(
    source: CatalogSource,
    connection: duckdb.DuckDBPyConnection,
    query: str,
    fetch: Callable[[duckdb.DuckDBPyRelation], Result],
) -> Result:
    names = sorted({name.lower() for name in _EMBEDDINGS.findall(query)})
    if names:
        from embedcache.catalog.embeddings import register_embeddings

        register_embeddings(connection, source.open_stores(), names)
    connections.lock(connection)
    # Nothing before this line has run any text of the user's.
    return fetch(connection.sql(query))


@contextlib.contextmanager
def reading(source: CatalogSource) -> Iterator[duckdb.DuckDBPyConnection]:
    """Yield a connection to a catalog of exactly these items: the file, or memory where it must be.

    Raises
    ------
    StoreCorruptError
        The manifest had to be loaded, and what remembers it is damaged.
    """
    connection = open_fresh(source.path, source.items)
    if connection is None:
        with contextlib.suppress(StoreWriteError):
            items = update(source.path, source.items)
            connection = open_fresh(source.path, source.items if items is None else items)
    # The folder cannot be written, or another writer was faster.
    connection = connection or connect_memory(source.path, source.items)
    with contextlib.closing(connection):
        yield connection


def _as_table(relation: duckdb.DuckDBPyRelation) -> pa.Table:
    names = _distinct(relation.columns)
    return with_types(relation, ARROW).to_arrow_table().rename_columns(names)


def _as_rows(relation: duckdb.DuckDBPyRelation) -> QueryRows:
    names = _distinct(relation.columns)
    rows = with_types(relation, PLAIN).fetchall()
    return QueryRows(tuple(names), tuple(tuple(map(plain_value, row)) for row in rows))


def _distinct(names: Sequence[str]) -> list[str]:
    """Return column names that are unique but for case: `a`, `a`, as DuckDB writes them `a`, `a_1`.

    A join with `*` has such columns. Arrow would keep both names, a row as a dict but one value.
    """
    by_lower_case: dict[str, str] = {}
    for name in names:
        number, unique = 0, name
        while unique.lower() in by_lower_case:
            number += 1
            unique = f"{name}_{number}"
        by_lower_case[unique.lower()] = unique
    return list(by_lower_case.values())


def check_reading(query: str) -> None:
    """Refuse anything but one statement that reads.

    Raises
    ------
    CatalogError
    """
    try:
        # Split by DuckDB's own parser: a semicolon may stand inside a text.
        statements = duckdb.extract_statements(query)
    except duckdb.Error as error:
        raise CatalogError(one_line(error)) from None
    if len(statements) != 1:
        raise CatalogError(f"{len(statements)} statements; expected one SELECT")
    try:
        kind, name = statements[0].type, statements[0].type.name
    except ValueError:  # a statement that DuckDB's Python package has no name for
        kind, name = None, "such a statement"
    if kind not in _READING:
        raise CatalogError(
            f"{name} is refused, SQL is read-only here; expected SELECT (export with "
            "--format parquet -o FILE, or open catalog.duckdb with your own client)"
        )


def select_images(images: pa.Table, where: str | None) -> list[int]:
    """Return the numbers of the images that a predicate over the manifest's columns keeps.

    Parameters
    ----------
    images
        One row an image.
    where
        A SQL predicate, or None for all images.

    Raises
    ------
    CatalogError
        The predicate cannot be evaluated; names the columns there are.
    """
    if where is None:
        return list(range(len(images)))
    where = _unicode("--where", where)
    import pyarrow as pa

    number = "number"  # made longer than any column of the manifest, so that it is none of them
    number += "_" * max(map(len, images.column_names))
    numbered = images.append_column(number, pa.array(range(len(images)), pa.int64()))
    with connections.connect() as connection:
        connections.lock(connection)
        try:
            rows = connection.from_arrow(numbered).filter(where).project(number).fetchall()
        except duckdb.Error as error:
            raise CatalogError(
                f"--where {where!r}: {one_line(error)}; columns: {', '.join(images.column_names)}"
            ) from None
    return sorted(row[0] for row in rows)


def _unicode(word: str, text: str) -> str:
    """Return a text that DuckDB can take.

    Raises
    ------
    CatalogError
        It is not UTF-8.
    """
    decoded = as_unicode(text)
    if decoded is None:
        raise CatalogError(f"{word} is not UTF-8: {text}")
    return decoded
