"""Fold tables in a store: which fold each patient is tested in, one file a table."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import pyarrow as pa

from embedcache.data.folds import FoldTable, assign_folds, folds_identity
from embedcache.errors import StoreCorruptError, StoreReadError
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
from embedcache.files.shapes import is_count, is_text, optional
from embedcache.workspace import Workspace

_log = logging.getLogger(__name__)

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
    return None if file is None else _read(file)[0]


def _read(file: Location) -> tuple[dict[str, int], list[str | None]]:
    """Return the fold of each patient, and the value that it is of, None where it is of none."""
    table = read_table(file)
    with known_shape(file):
        rows = table.to_pydict()
        patients = dict(zip(rows["patient_id"], rows["fold"], strict=True))
        is_usual = all(map(is_text, patients)) and all(map(is_count, patients.values()))
        if not is_usual or not 0 < len(patients) == len(table):
            raise ValueError("no fold for each patient")
        values = rows.get("value", [None] * len(table))  # absent but for folds by a column
        if not all(map(optional(is_text), values)):
            raise ValueError("the value of a fold is no text")
    return patients, values


def stored_folds(
    workspace: Workspace,
    patient_id: Sequence[str],
    label: Sequence[str],
    n_folds: int,
    seed: int,
) -> FoldTable:
    """Return the stored folds of some images, or assign them; see `assign_folds`.

    An assignment stays as it was made, whatever this release would make of it.
    """
    folds_id = folds_identity(patient_id, label, n_folds, seed)
    try:
        patients = read_fold_table(workspace, folds_id)
    except (StoreCorruptError, StoreReadError) as error:
        # Its name is a digest of all that it is made of.
        _log.warning("folds are assigned again, for their table is damaged: %s", error)
        patients = None
    if patients is None:
        return assign_folds(patient_id, label, n_folds=n_folds, seed=seed)
    return FoldTable(folds_id, n_folds, seed, patients)


def fold_rows(file: Location) -> pa.Table:
    """Return the fold of each patient in a table's file, as rows of the catalog.

    Raises
    ------
    StoreCorruptError
        The table does not match its checksum.
    StoreReadError
        It is whole, but none of folds.
    """
    patients, values = _read(file)
    return pa.table(
        {
            "folds_id": pa.array([table_stem(file.name)] * len(patients), pa.string()),
            "patient_id": pa.array(patients, pa.string()),
            "fold": pa.array(patients.values(), pa.int64()),
            "value": pa.array(values, pa.string()),
        }
    )


def store_fold_table(
    workspace: Workspace, folds_id: str, patients: Mapping[str, int], values: Sequence[str] = ()
) -> None:
    """Store the fold of each patient, unless a table of that id is there.

    Another release of Arrow would write the same table under another checksum.

    Parameters
    ----------
    workspace
        Workspace of the fold tables.
    folds_id
        Digest of what the table was made from.
    patients
        Number of the fold, from 0, by patient.
    values
        Value of a manifest column that each fold is of; empty where folds are not by a column.
    """
    if find_table(workspace.folds, folds_id) is not None:
        return
    workspace.create_store()
    columns: dict[str, list[Any]] = {"patient_id": [*patients], "fold": [*patients.values()]}
    if values:
        columns["value"] = [values[fold] for fold in patients.values()]
    put_table(workspace.folds, folds_id, pa.table(columns))


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
            _read(item)
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
