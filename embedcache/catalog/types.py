"""Types of a query's columns, and what those become that Python, JSON, Arrow or Parquet lack."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import duckdb

# Types by their `id`. Values of these are plain numbers, texts and truth values in Python.
PLAIN: Final = frozenset(
    {"varchar", "boolean", "float", "double", "decimal", "tinyint", "smallint", "integer"}
    | {"bigint", "hugeint", "utinyint", "usmallint", "uinteger", "ubigint", "uhugeint"}
)
# Values of these mean the same in Arrow and in Parquet. UHUGEINT, BIT and a time with its zone do
# not, and an INTERVAL cannot be written.
ARROW: Final = PLAIN - {"uhugeint"} | {
    *("null", "enum", "uuid", "blob", "date", "time", "time_ns", "timestamp"),
    *("timestamp_s", "timestamp_ms", "timestamp_ns", "timestamp with time zone"),
}
_NESTED: Final = {"list", "array", "map", "struct", "tuple"}


def with_types(relation: duckdb.DuckDBPyRelation, types: frozenset[str]) -> duckdb.DuckDBPyRelation:
    """Return the rows of a query with values of every other type as the text that DuckDB shows.

    Parameters
    ----------
    relation
        Result of a query.
    types
        Types that stay as they are: `PLAIN` or `ARROW`. Inside lists, maps and structs too.
    """
    wanted = [_type_text(kind, types) for kind in relation.types]
    if wanted == [str(kind) for kind in relation.types]:
        return relation
    # By number: names may occur twice.
    columns = (f"CAST(#{number} AS {kind})" for number, kind in enumerate(wanted, 1))
    return relation.project(", ".join(columns))


def _type_text(kind: Any, types: frozenset[str]) -> str:
    """Return a type in SQL, with VARCHAR in the place of what is not among `types`."""
    match kind.id, *(kind.children if kind.id in _NESTED else ()):
        case "list", (_, child):
            return f"{_type_text(child, types)}[]"
        case "array", (_, child), (_, size):
            return f"{_type_text(child, types)}[{size}]"
        case "map", (_, key), (_, value):
            # A key of JSON is a text, and a key of a dict cannot be a list.
            key_text = "VARCHAR" if types is PLAIN else _type_text(key, types)
            return f"MAP({key_text}, {_type_text(value, types)})"
        case "struct" | "tuple", *fields:
            return _struct_text(kind, fields, types)
    return str(kind) if kind.id in types else "VARCHAR"


def _struct_text(kind: Any, fields: Sequence[tuple[str, Any]], types: frozenset[str]) -> str:
    texts = [_type_text(child, types) for _, child in fields]
    if fields and all(
        child.id == "null" or text == str(child)
        for (_, child), text in zip(fields, texts, strict=True)
    ):
        return str(kind)
    if not all(name for name, _ in fields) or not fields:
        return "VARCHAR"  # a type without names or fields cannot be written down
    names = (name.replace('"', '""') for name, _ in fields)
    inner = ", ".join(f'"{name}" {text}' for name, text in zip(names, texts, strict=True))
    return f"STRUCT({inner})"
