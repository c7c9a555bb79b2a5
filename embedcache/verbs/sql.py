"""`sql`: one reading statement over everything that is stored."""

from __future__ import annotations

from typing import TYPE_CHECKING

from embedcache.catalog.output import QueryRows
from embedcache.catalog.query import query_rows, query_table
from embedcache.verbs.catalog import catalog_source
from embedcache.workspace import Workspace

if TYPE_CHECKING:
    import pyarrow as pa


def sql(workspace: Workspace, query: str) -> pa.Table:
    """Return the result of a SELECT over the views of docs/sql.md.

    Raises
    ------
    CatalogError
        The statement is wrong, is not one, or would write.
    """
    return query_table(catalog_source(workspace), query)


def sql_rows(workspace: Workspace, query: str) -> QueryRows:
    """Return the result of a SELECT as column names and plain values, in less time than `sql`.

    Raises
    ------
    CatalogError
        The statement is wrong, is not one, or would write.
    """
    return query_rows(catalog_source(workspace), query)
