"""`verify --repair` of what runs need: fold tables are made again, whatever the kind of run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from edits import flip, rewrite_manifest
from every_kind import ASKED, make_project

import embedcache
from embedcache.data.fold_tables import fold_table_files
from embedcache.files.backend import Location
from embedcache.runs.files import RunFiles

FITTED = (
    *("probe", "knn", "official split", "folds by a column", "external by folds", "numbers"),
    *("labels", "curve"),
)


def fold_tables(project) -> dict[str, Path]:
    files = fold_table_files(project.workspace.folds)
    return {folds_id: Path(file) for folds_id, file in files.items()}


def lose(path: os.PathLike) -> None:
    Path(path).unlink()


def test_a_store_with_one_run_of_prompts_is_sound(tmp_path, monkeypatch, command):
    project, _ = make_project(tmp_path, monkeypatch, "zeroshot")
    assert fold_tables(project) == {}
    assert project.verify().findings == ()
    repaired = project.verify(repair=True)
    assert (repaired.findings, repaired.is_whole, repaired.notes) == ((), True, ())
    for arguments in (["verify"], ["verify", "--repair"]):
        result = command(*arguments)
        assert result.code == 0
        assert result.out.endswith("rows of 1 encoders checked: sound\n")


@pytest.mark.parametrize("harm", [lose, flip])
@pytest.mark.parametrize("name", FITTED)
def test_a_lost_fold_table_is_made_again_with_every_kind_of_run(
    tmp_path, monkeypatch, command, name, harm
):
    project, outcomes = make_project(tmp_path, monkeypatch, name)
    before = {folds_id: file.read_bytes() for folds_id, file in fold_tables(project).items()}
    [folds_id] = before
    assert outcomes[name][0].record.request.data.folds_id == folds_id
    harm(fold_tables(project)[folds_id])
    assert [Path(one.path).name.split(".")[0] for one in project.verify().findings] == [folds_id]
    result = command("verify", "--repair")
    assert result.code == 0, result.out
    assert "mended" in result.out
    assert "cannot be made again" not in result.out
    assert {one: file.read_bytes() for one, file in fold_tables(project).items()} == before
    assert project.verify().findings == ()
    assert all(run.was_cached for run in ASKED[name](project))


def test_everything_behind_a_lost_fold_table_is_mended_too(tmp_path, monkeypatch):
    project, outcomes = make_project(tmp_path, monkeypatch, "curve", "numbers", "labels", "probe")
    tables = {folds_id: file.read_bytes() for folds_id, file in fold_tables(project).items()}
    for file in fold_tables(project).values():
        lose(file)
    runs = RunFiles(project.workspace)
    damaged = outcomes["probe"][0].run_id
    flip(runs.folder / damaged / runs.record(damaged).tables["metrics"].name)
    [store] = Path(project.workspace.encoders).iterdir()
    [chunk] = [path for path in store.glob("seg/*/c/**/*") if path.is_file()]
    flip(chunk)
    for file in Path(project.workspace.manifests).iterdir():
        lose(file)
    report = project.verify(repair=True)
    assert report.is_whole, report.notes
    assert report.passes[0].tallies[0].n_written > 0
    assert {one: file.read_bytes() for one, file in fold_tables(project).items()} == tables
    assert damaged not in RunFiles(project.workspace)
    assert project.verify().findings == ()
    assert not ASKED["probe"](project)[0].was_cached
    assert ASKED["numbers"](project)[0].was_cached


def test_a_fold_table_of_folds_from_a_file_cannot_be_made_again_and_that_is_said(
    tmp_path, monkeypatch, command
):
    project, _ = make_project(tmp_path, monkeypatch, "curve")
    patients = sorted({row["patient_id"] for row in project.images().to_pylist()})
    lines = [f"{name},{number % 3}" for number, name in enumerate(patients)]
    (tmp_path / "folds.csv").write_text("\n".join(["patient_id,fold", *lines]))
    (outcome,) = project.probe("pixels", folds=tmp_path / "folds.csv", n_resamples=100)
    lost = str(outcome.record.request.data.folds_id)
    lose(fold_tables(project)[lost])
    result = command("verify", "--repair")
    assert result.code == 4
    assert f"{lost} is missing, but {outcome.run_id} names it" in result.out
    assert (
        "cannot be made again: the manifest has changed since, or the folds came from a file"
        in (result.out)
    )
    assert "run the same command again, with the file if it had one" in result.out
    assert result.out.endswith("1 file damaged, 0 of 1 mended\n")
    # The same command stores it again.
    assert project.probe("pixels", folds=tmp_path / "folds.csv", n_resamples=100)[0].was_cached
    assert project.verify().findings == ()


@pytest.mark.parametrize("name", ["folds of a file", "folds of an earlier manifest"])
def test_a_lost_fold_table_is_made_again_of_what_a_run_predicted(tmp_path, monkeypatch, name):
    project, _ = make_project(tmp_path, monkeypatch, "curve")
    folds = tmp_path / "folds.csv"
    patients = sorted({p for p in project.images()["patient_id"].to_pylist() if "home" in p})
    lines = [f"{patient},{number % 3}" for number, patient in enumerate(patients)]
    folds.write_text("\n".join(["patient_id,fold", *lines]))
    asked = {"folds": folds} if name == "folds of a file" else {"folds": 4}
    (outcome,) = project.probe("pixels", n_resamples=100, **asked)
    lost = str(outcome.record.request.data.folds_id)
    file = fold_tables(project)[lost]
    before, n_tables = file.read_bytes(), len(fold_tables(project))
    lose(file)
    if name == "folds of an earlier manifest":
        rewrite_manifest(project, lambda lines: [one for one in lines if "home-000" not in one])
    report = project.verify(repair=True)
    assert report.is_whole, report.notes
    assert report.n_mended == len(report.findings) == 1
    assert file.read_bytes() == before
    assert len(fold_tables(project)) == n_tables


def test_folds_of_a_manifest_that_has_changed_cannot_be_made_again(tmp_path, monkeypatch):
    project, outcomes = make_project(tmp_path, monkeypatch, "numbers")
    rewrite_manifest(project, lambda lines: [line for line in lines if "home-000" not in line])
    lost = str(outcomes["numbers"][0].record.request.data.folds_id)
    lose(fold_tables(project)[lost])
    report = project.verify(repair=True)
    assert not report.is_whole
    assert any(lost in note and "the manifest has changed since" in note for note in report.notes)
    assert RunFiles(project.workspace).ids() == [outcomes["numbers"][0].run_id]


def test_a_run_that_lost_its_record_is_removed_and_made_again(tmp_path, monkeypatch):
    project, outcomes = make_project(tmp_path, monkeypatch, "knn", "zeroshot")
    for name in ("knn", "zeroshot"):
        (Path(outcomes[name][0].folder) / "run.json").unlink()
    report = project.verify(repair=True)
    assert {finding.kind for finding in report.findings} == {"runs"}
    assert report.is_whole
    assert RunFiles(project.workspace).folders() == []
    assert not ASKED["knn"](project)[0].was_cached
    assert not ASKED["zeroshot"](project)[0].was_cached


def test_a_write_under_way_is_no_damage(tmp_path, monkeypatch):
    project, _ = make_project(tmp_path, monkeypatch, "knn")
    put, reports = Location.put, []

    def put_and_verify(self: Location, data: bytes) -> None:
        if self.name == "run.json":  # the tables of the run are there already
            reports.append(embedcache.open(tmp_path).verify())
        put(self, data)

    monkeypatch.setattr(Location, "put", put_and_verify)
    (outcome,) = project.probe("pixels", n_resamples=100)
    assert [report.findings for report in reports] == [()]
    assert outcome.run_id in RunFiles(project.workspace)
