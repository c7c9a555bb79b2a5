"""Queries over the views: read-only, on an in-memory connection that can reach no file.

The tables are handed over as Arrow; then DuckDB's access to files and its settings are locked, so
that whatever a query says, it can read these tables and nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import duckdb
import numpy as np
import pyarrow as pa

from embedcache.catalog.index import Sources, index_tables, run_tables, views_sql
from embedcache.errors import CatalogError
from embedcache.store.embedding_store import EmbeddingStore

_EMBEDDINGS: Final = re.compile(r"\bembeddings(_\w+)?\b", re.IGNORECASE)
_READING: Final = {
    duckdb.StatementType.SELECT,
    duckdb.StatementType.EXPLAIN,
    duckdb.StatementType.MULTI,  # PIVOT: a temporary type, then a SELECT
}


def connect(sources: Sources, query: str = "") -> duckdb.DuckDBPyConnection:
    """Return an in-memory connection with every view.

    Parameters
    ----------
    sources
        The files.
    query
        What will be asked: embeddings are read from their stores only where it names them.
    """
    connection = duckdb.connect(
        config={"autoinstall_known_extensions": "false", "autoload_known_extensions": "false"}
    )
    for name, table in {**index_tables(sources), **run_tables(sources)}.items():
        connection.register(name, table)
    connection.execute(views_sql())
    if _EMBEDDINGS.search(query):
        _register_embeddings(connection, sources)
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    return connection


def view_name(encoder: str) -> str:
    """Return the name of an encoder's own view: `embeddings_`, other characters as `_`."""
    return "embeddings_" + re.sub(r"\W", "_", encoder)


def _register_embeddings(connection: duckdb.DuckDBPyConnection, sources: Sources) -> None:
    names = [store.name for store in sources.stores]
    tables = [embedding_table(store, sources.images) for store in sources.stores]
    for store, table in zip(sources.stores, tables, strict=True):
        name = view_name(store.name)
        if names.count(store.name) > 1:  # several fingerprints of one name
            name = f"{name}_{store.fingerprint[:12]}"
        connection.register(name, table)
    if len({store.dim for store in sources.stores}) != 1:
        # Arrays of different lengths have no common type; lists have.
        tables = [_with_lists(table) for table in tables]
    schema = tables[0].schema if tables else _with_lists(_empty_embeddings()).schema
    connection.register("embeddings", pa.concat_tables([schema.empty_table(), *tables]))


def _empty_embeddings() -> pa.Table:
    return _embedding_table("", "", [], np.empty((0, 1), np.float32))


def embedding_table(store: EmbeddingStore, images: pa.Table) -> pa.Table:
    """Return an encoder's rows as a table: image_id, encoder, fingerprint, vector FLOAT[dim].

    Images that the store does not hold are absent.
    """
    pairs = zip(images["image_id"].to_pylist(), images["sha256"].to_pylist(), strict=True)
    held = [(image_id, key) for image_id, key in pairs if key in store]
    return _embedding_table(
        store.name,
        store.fingerprint,
        [image_id for image_id, _ in held],
        store.read([key for _, key in held]),
    )


def _embedding_table(
    encoder: str, fingerprint: str, image_id: Sequence[str], X: np.ndarray
) -> pa.Table:
    vector = pa.FixedSizeListArray.from_arrays(pa.array(X.reshape(-1)), X.shape[1])
    n = len(image_id)
    return pa.table(
        {
            "image_id": pa.array(image_id, pa.string()),
            "encoder": pa.array([encoder] * n, pa.string()),
            "fingerprint": pa.array([fingerprint] * n, pa.string()),
            "vector": vector,
        }
    )


def _with_lists(table: pa.Table) -> pa.Table:
    vector = table["vector"].cast(pa.list_(pa.float32()))
    return table.set_column(table.schema.get_field_index("vector"), "vector", vector)


def run_query(sources: Sources, query: str) -> pa.Table:
    """Return the result of one reading statement.

    Raises
    ------
    CatalogError
        The statement is wrong, is not one, or would write.
    """
    check_reading(query)
    with connect(sources, query) as connection:
        try:
            table = connection.sql(query).to_arrow_table()
        except duckdb.Error as error:
            raise CatalogError(_one_line(error)) from None
    return table.rename_columns(_told_apart(table.column_names))


def _told_apart(names: Sequence[str]) -> list[str]:
    """Return column names that are unique but for case: `a`, `a`, as DuckDB writes them `a`, `a_1`.

    A join with `*` has such columns. Arrow would keep both names, a row as a dict but one value.
    """
    found: dict[str, str] = {}
    for name in names:
        number, unique = 0, name
        while unique.lower() in found:
            number += 1
            unique = f"{name}_{number}"
        found[unique.lower()] = unique
    return list(found.values())


def check_reading(query: str) -> None:
    """Refuse anything but one statement that reads.

    Raises
    ------
    CatalogError
    """
    try:
        statements = duckdb.extract_statements(query)
    except duckdb.Error as error:
        raise CatalogError(_one_line(error)) from None
    if len(statements) != 1:
        raise CatalogError(f"{len(statements)} statements; expected one SELECT")
    kind = statements[0].type
    if kind not in _READING:
        raise CatalogError(
            f"{kind.name} is refused, SQL is read-only here; expected SELECT (export with "
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
    numbered = images.append_column("_number", pa.array(range(len(images)), pa.int64()))
    with duckdb.connect(config={"enable_external_access": "false"}) as connection:
        try:
            kept = connection.from_arrow(numbered).filter(where).project("_number").fetchall()
        except duckdb.Error as error:
            raise CatalogError(
                f"--where {where!r}: {_one_line(error)}; columns: {', '.join(images.column_names)}"
            ) from None
    return sorted(number for (number,) in kept)


def _one_line(error: duckdb.Error) -> str:
    return " ".join(str(error).split("\n\n")[0].split())
