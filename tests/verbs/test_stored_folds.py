"""`folds`: assigned once, stored, shared by all probes."""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from embedcache.files.durable import crc32c
from embedcache.verbs import session


def test_folds_are_assigned_once_and_shared(project):
    table, sizes = project.folds()
    files = list(Path(project.workspace.folds).iterdir())
    assert project.folds()[0].patients == table.patients
    assert list(Path(project.workspace.folds).iterdir()) == files
    assert sum(size.n_images for size in sizes) == 72
    project.extract("pixels")
    (outcome,) = project.probe("pixels")
    assert outcome.record.request.data.folds_id == table.folds_id
    stored = project.sql("SELECT patient_id, fold FROM folds").to_pylist()
    assert {row["patient_id"]: row["fold"] for row in stored} == table.patients


def test_a_stored_fold_table_is_used_even_if_it_would_be_made_otherwise_today(project, monkeypatch):
    project.extract("pixels")
    table, _ = project.folds()
    monkeypatch.setattr(session, "assign_folds", lambda *_, **__: pytest.fail("assigned again"))
    assert project.folds()[0] == table


def test_a_table_that_another_release_of_arrow_wrote_is_not_stored_twice(project, tmp_path):
    table, _ = project.folds()
    [file] = Path(project.workspace.folds).iterdir()
    rows = pq.read_table(file)
    data = io.BytesIO()
    pq.write_table(rows, data, compression="none")
    other = file.with_name(f"{table.folds_id}.{crc32c(data.getvalue()):08x}.parquet")
    other.write_bytes(data.getvalue())
    file.unlink()
    assert project.folds()[0] == table
    given = tmp_path / "given.csv"
    lines = (f"{patient},{fold}" for patient, fold in table.patients.items())
    given.write_text("\n".join(["patient_id,fold", *lines]))
    project.folds(folds=given)
    assert sum(one.name.startswith(table.folds_id) for one in other.parent.iterdir()) == 1
    # A store of an earlier release may have both.
    pq.write_table(rows, file, compression="zstd")
    query = f"SELECT count(*) AS n FROM folds WHERE folds_id = '{table.folds_id}'"
    assert project.sql(query)["n"].to_pylist() == [len(table.patients)]
