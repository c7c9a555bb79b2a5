"""Tables of folds as they are kept: one file each, named by what it was made from."""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa

from embedcache.data.folds import FoldTable
from embedcache.files.documents import find_table, put_table, read_table
from embedcache.workspace import Workspace


def find_fold_table(workspace: Workspace, folds_id: str) -> FoldTable | None:
    """Return a kept table, without its seed and notes; None where it is lost.

    Raises
    ------
    StoreCorruptError
        The file does not match the checksum in its name.
    """
    file = find_table(workspace.folds, folds_id)
    if file is None:
        return None
    rows = read_table(file).to_pydict()
    patients = dict(zip(rows["patient_id"], rows["fold"], strict=True))
    return FoldTable(folds_id, len(set(patients.values())), 0, patients)


def keep_fold_table(workspace: Workspace, table: FoldTable) -> None:
    """Keep a table of folds under its id."""
    workspace.create_store()
    rows = {"patient_id": list(table.patients), "fold": list(table.patients.values())}
    put_table(workspace.folds, table.folds_id, pa.table(rows))


def without_class_notes(table: FoldTable) -> FoldTable:
    """Return a table without notes on classes, where these are but strata of another label."""
    return replace(table, notes=())
