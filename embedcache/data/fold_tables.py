"""Fold tables in a store: which fold each patient is tested in, one file a table."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import pyarrow as pa

from embedcache.errors import StoreCorruptError
from embedcache.files.backend import Location
from embedcache.files.documents import (
    find_table,
    known_shape,
    put_table,
    read_table,
    table_files,
    table_stem,
)
from embedcache.files.kinds import FOLD_TABLES, ArtefactKind, Damage, Mended, sweep_temporaries
from embedcache.files.shapes import is_count, is_text
from embedcache.workspace import Workspace

_FOLDS_ID: Final = re.compile(r"[0-9a-f]{16}")


def read_fold_table(workspace: Workspace, folds_id: str) -> dict[str, int] | None:
    """Return the fold of each patient in a stored table, or None where there is no such table.

    Raises
    ------
    StoreCorruptError
        The table does not match its checksum.
    StoreReadError
        It is whole, but none of folds.
    """
    file = find_table(workspace.folds, folds_id)
    return None if file is None else _patients(file)


def _patients(file: Location) -> dict[str, int]:
    table = read_table(file)
    with known_shape(file):
        rows = table.to_pydict()
        patients = dict(zip(rows["patient_id"], rows["fold"], strict=True))
        is_usual = all(map(is_text, patients)) and all(map(is_count, patients.values()))
        if not is_usual or not 0 < len(patients) == len(table):
            raise ValueError("no fold for each patient")
    return patients


def fold_rows(file: Location) -> pa.Table:
    """Return the fold of each patient in a table's file, as rows of the catalog.

    Raises
    ------
    StoreCorruptError
        The table does not match its checksum.
    StoreReadError
        It is whole, but none of folds.
    """
    patients = _patients(file)
    return pa.table(
        {
            "folds_id": pa.array([table_stem(file.name)] * len(patients), pa.string()),
            "patient_id": pa.array(patients, pa.string()),
            "fold": pa.array(patients.values(), pa.int64()),
        }
    )


def store_fold_table(workspace: Workspace, folds_id: str, patients: Mapping[str, int]) -> None:
    """Store the fold of each patient, unless a table of that id is there.

    Another release of Arrow would write the same table under another checksum.
    """
    if find_table(workspace.folds, folds_id) is not None:
        return
    workspace.create_store()
    rows = {"patient_id": list(patients), "fold": list(patients.values())}
    put_table(workspace.folds, folds_id, pa.table(rows))


def fold_table_files(folder: Location) -> dict[str, Location]:
    """Return the fold tables of a folder by id, sorted by id."""
    files = table_files(folder)
    return {folds_id: file for folds_id, file in files.items() if _FOLDS_ID.fullmatch(folds_id)}


class FoldTables(ArtefactKind):
    """The fold tables of a workspace's store as one kind of artefact.

    Parameters
    ----------
    workspace
        Workspace of the fold tables.
    """

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace

    @property
    def name(self) -> str:
        """Plural name of the kind."""
        return FOLD_TABLES

    @property
    def folder(self) -> Location:
        """The folder in which all of them lie."""
        return self._workspace.folds

    def items(self) -> Sequence[Location]:
        """Return the file of each fold table."""
        return list(fold_table_files(self.folder).values())

    def check(self, item: Location) -> Iterator[Damage]:
        """Compare a fold table with the checksum in its name, and look whether it is one."""
        try:
            _patients(item)
        except StoreCorruptError as error:
            yield Damage(item, error.problem)

    def mend(self, item: Location) -> Mended:
        """Remove a fold table; the question of a run that names it makes it again."""
        item.delete()
        return Mended(f"{item} removed; it is made again from the runs that name it")

    def sweep(self, grace_s: float) -> int:
        """Delete leftovers of killed writes."""
        return sweep_temporaries(self.folder, grace_s)

    def holds(self, artefact: str) -> bool:
        """Tell whether the fold table of that id is there."""
        return artefact in fold_table_files(self.folder)
