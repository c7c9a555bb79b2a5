"""Results as tables: in a terminal, in a notebook, and as frames of pandas or polars."""

from __future__ import annotations

import html
import importlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar, overload

from embedcache.errors import MissingExtraError
from embedcache.visible import visible_text

if TYPE_CHECKING:
    import pyarrow as pa

Item_co = TypeVar("Item_co", covariant=True)


class Tabular(ABC):
    """A result that prints as a table and turns into frames."""

    __slots__ = ()

    @abstractmethod
    def table(self) -> pa.Table:
        """Return the result as an Arrow table, one row an item."""

    def __repr__(self) -> str:
        table = self.table()
        rows = [list(row.values()) for row in table.to_pylist()]
        return text_table(table.column_names, rows)

    def _repr_html_(self) -> str:
        table = self.table()
        return html_table(table.column_names, [list(row.values()) for row in table.to_pylist()])

    def to_pandas(self) -> Any:
        """Return the table as a `pandas.DataFrame`.

        Raises
        ------
        MissingExtraError
            pandas is not installed.
        """
        check_installed("pandas")
        return self.table().to_pandas()

    def to_polars(self) -> Any:
        """Return the table as a `polars.DataFrame`.

        Raises
        ------
        MissingExtraError
            polars is not installed.
        """
        return check_installed("polars").from_arrow(self.table())


class TabularSequence(Tabular, Sequence[Item_co]):
    """A result that is the sequence of its items, and prints as a table of them."""

    __slots__ = ()

    @abstractmethod
    def _items(self) -> tuple[Item_co, ...]:
        """Return the items, in their order."""

    def __len__(self) -> int:
        return len(self._items())

    @overload
    def __getitem__(self, number: int) -> Item_co: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[Item_co]: ...
    def __getitem__(self, number: int | slice) -> Item_co | Sequence[Item_co]:
        return self._items()[number]


def check_installed(name: str) -> Any:
    """Return a package that only some users have.

    Raises
    ------
    MissingExtraError
        It is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        raise MissingExtraError(
            f"a frame of {name} needs {name}; run `pip install {name}`"
        ) from None


def text_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return rows as aligned text, numbers to the right; nothing is cut off.

    Control characters and line breaks are shown escaped: a row is a line.
    """
    cells = [[cell_text(value) for value in row] for row in rows]
    header = [visible_text(name) for name in header]
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    numeric = _numeric(header, rows)
    lines = []
    for row in ([*header], ["-" * width for width in widths], *cells):
        padded = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def html_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return rows as an HTML table; every text is escaped."""
    numeric = _numeric(header, rows)
    head = "".join(f"<th>{html.escape(visible_text(name))}</th>" for name in header)
    lines = []
    for row in rows:
        cells = (
            f'<td style="text-align: right">{html.escape(cell_text(value))}</td>'
            if right
            else f"<td>{html.escape(cell_text(value))}</td>"
            for value, right in zip(row, numeric, strict=True)
        )
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _numeric(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[bool]:
    return [
        bool(rows) and all(isinstance(row[i], int | float | None) for row in rows)
        for i in range(len(header))
    ]


def cell_text(value: Any) -> str:
    """Return a value as a cell shows it, control characters escaped."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e-3 or abs(value) >= 1e5 else f"{value:.3f}"
    return visible_text(str(value))
