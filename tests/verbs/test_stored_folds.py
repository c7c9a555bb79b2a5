"""`folds`: assigned once, stored, shared by all probes."""

from __future__ import annotations

from pathlib import Path

import pytest

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
