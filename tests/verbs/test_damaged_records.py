"""One record that cannot be read: what does not need it goes on, and says that it is left out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from edits import flip

from embedcache.files.backend import LocalBackend
from embedcache.files.durable import read_error
from embedcache.runs.files import RunFiles
from embedcache.verbs.session import Session

FEW = {"n_resamples": 100, "folds": 3}


@pytest.fixture
def damaged(project) -> str:
    """Name of a run of 'pixels' whose record is damaged, beside two that are sound."""
    project.extract("pixels")
    for probe in ("knn", "prototype", "logistic"):
        (outcome,) = project.probe("pixels", probe=probe, **FEW)
    flip(Path(project.workspace.runs / outcome.run_id / "run.json"))
    os.utime(Path(project.workspace.runs / outcome.run_id / "run.json"))
    return outcome.run_id


def test_a_damaged_record_stops_no_verb_that_does_not_need_it(project, damaged, command, caplog):
    caplog.clear()
    result = command("sql", "SELECT count(*) AS n FROM runs", "--format", "csv")
    assert (result.code, result.out.split()) == (0, ["n", "2"])
    [note] = [record.getMessage() for record in caplog.records]
    assert note.startswith(f"run '{damaged}' is left out: ")
    assert f"{damaged}/run.json does not match its checksum" in note
    for arguments in (
        ["status"], ["compare"], ["gc", "--grace", "0"], ["extract", "-m", "pixels"], ["index"],
        ["probe", "-m", "pixels", "--probe", "ridge"],
    ):  # fmt: skip
        result = command(*arguments)
        assert result.code == 0, (arguments, result.err)
    assert (damaged,) not in project.compare(n_resamples=100).runs.values()
    assert command("compare", damaged).code == 4
    assert command("verify").code == 4


def test_a_mended_run_is_in_the_catalog_again(project, damaged):
    assert len(project.sql("FROM runs")) == 2
    assert project.verify(repair=True).is_whole
    project.probe("pixels", **FEW)
    assert damaged in project.sql("FROM runs")["run_id"].to_pylist()


def test_a_query_of_embeddings_leaves_out_the_damaged_encoder_and_says_so(project, command, caplog):
    for settings in ({}, {"preprocess": "crop"}):
        project.extract("pixels", **settings)
    damaged, sound = project.workspace.encoder_folders()
    flip(Path(damaged / "encoder.json"))
    project.workspace.catalog.unlink()
    caplog.clear()
    result = command("sql", "SELECT count(*) AS n FROM embeddings", "--format", "csv")
    assert (result.code, result.out.split()) == (0, ["n", "132"])
    assert f"encoder '{damaged.name}' is left out: " in caplog.text
    assert "run `embedcache verify --repair`" in caplog.text
    assert sound.name not in caplog.text
    result = command("export", "-m", f"pixels@{damaged.name[-12:]}", "-o", "x.npy")
    assert (result.code, damaged.name in result.err) == (4, True)


def test_a_damaged_fold_table_is_left_out(project, damaged):
    n_tables = len(project.sql("SELECT DISTINCT folds_id FROM folds"))
    [table] = Path(project.workspace.folds).glob("*.parquet")
    flip(table)
    project.workspace.catalog.unlink()
    assert (n_tables, len(project.sql("FROM folds"))) == (1, 0)


@pytest.mark.parametrize("name", ["run.json", "encoder.json", "embedcache.json"])
def test_a_file_that_may_not_be_read_is_a_finding_and_no_repair_removes_it(
    project, monkeypatch, name
):
    project.extract("pixels")
    (outcome,) = project.probe("pixels", **FEW)
    read = LocalBackend.read

    def refused(self, path, *arguments, **settings):
        if path.endswith(name):
            raise read_error(Path(path), PermissionError(13, "Permission denied"))
        return read(self, path, *arguments, **settings)

    monkeypatch.setattr(LocalBackend, "read", refused)
    assert any("Permission denied" in one.problem for one in project.verify().findings)
    if name == "run.json":
        report = project.verify(repair=True)
        assert not report.is_whole
        assert any("Permission denied" in note for note in report.notes)
    monkeypatch.undo()
    assert outcome.run_id in RunFiles(project.workspace)
    assert Session(project.workspace).runs.readable_records()
    assert project.verify().findings == ()
