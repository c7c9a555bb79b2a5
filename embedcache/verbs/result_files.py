"""Results that a verb stores and makes again: how their files are checked, and read as tables."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, Final, TypeAlias

import pyarrow as pa

from embedcache.errors import StoreCorruptError
from embedcache.files.backend import Location
from embedcache.files.kinds import ArtefactKind, Damage, Mended, sweep_temporaries

Rows: TypeAlias = Iterable[Mapping[str, Any]]
_TYPES: Final[Mapping[str, pa.DataType]] = {
    "text": pa.string(),
    "texts": pa.list_(pa.string()),
    "number": pa.float64(),
    "numbers": pa.list_(pa.float64()),
    "count": pa.int32(),
    "counts": pa.list_(pa.int32()),
    "whole": pa.int64(),
    "flag": pa.bool_(),
}


def columns(**names: str) -> pa.Schema:
    """Return the columns of a table of the catalog.

    Parameters
    ----------
    names
        Names of the columns of each type, separated by blanks; types are those of `_TYPES`.
    """
    return pa.schema([(name, _TYPES[kind]) for kind in names for name in names[kind].split()])


def typed_tables(
    rows: Mapping[str, Rows], schemas: Mapping[str, pa.Schema], key: str, value: str
) -> dict[str, pa.Table]:
    """Return the rows of one result as tables of the catalog.

    Parameters
    ----------
    rows
        Rows by name of the table; values of other names than the table's columns are left out.
    schemas
        Columns of each table.
    key, value
        Column that names the result in every table, and its name.
    """
    return {
        name: pa.Table.from_pylist([{**row, key: value} for row in rows[name]], schema=schema)
        for name, schema in schemas.items()
    }


class ResultFiles(ArtefactKind):
    """Files that one verb stores, as one kind of artefact.

    Parameters
    ----------
    folder
        The folder in which all of them lie.
    """

    verb: ClassVar[str]

    def __init__(self, folder: Location) -> None:
        self._folder = folder

    @property
    def folder(self) -> Location:
        """The folder in which all of them lie."""
        return self._folder

    @abstractmethod
    def read(self, item: Location) -> object:
        """Return the content of a file, held against its checksum.

        Raises
        ------
        StoreCorruptError
            It is missing, or does not match.
        StoreReadError
            It is whole, and of another shape.
        """

    def check(self, item: Location) -> Iterator[Damage]:
        """Compare a file with its checksum, and look whether it is a result."""
        try:
            self.read(item)
        except StoreCorruptError as error:
            yield Damage(item, error.problem)

    def mend(self, item: Location) -> Mended:
        """Remove a file; the verb makes it again."""
        item.delete()
        return Mended(f"{item} removed; make it again with `embedcache {self.verb}`")

    def sweep(self, grace_s: float) -> int:
        """Delete leftovers of killed writes."""
        return sweep_temporaries(self.folder, grace_s)
