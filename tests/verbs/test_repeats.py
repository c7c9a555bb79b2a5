"""`--repeats`: one question with several seeds, and what is made of the runs."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
from edits import add_column

import embedcache
from embedcache.errors import RunError
from embedcache.runs.files import RunFiles
from embedcache.testing import write_cohort
from embedcache.verbs.probe import probe
from embedcache.verbs.probe_run import ProbeOptions
from embedcache.verbs.session import Session

FEW = {"folds": 3, "n_resamples": 100, "label": "guess"}
ASK = ("probe", "-m", "all", "--label", "guess", "--folds", "3")


def write_guesses(folder: Path) -> embedcache.Project:
    """A cohort whose label cannot be told, so that every seed gives another score."""
    write_cohort(folder, n_patients=12, n_images=2, size=8)
    chance = np.random.default_rng(0)
    add_column(folder, "guess", lambda lines: chance.choice([*"ab"], len(lines)))
    project = embedcache.open(folder)
    project.extract("pixels")
    return project


@pytest.fixture
def guesses(tmp_path):
    return write_guesses(tmp_path)


@pytest.fixture(scope="module")
def repeated(tmp_path_factory):
    """The project, asked three times of two encoders, and the report: for tests that only look."""
    project = write_guesses(tmp_path_factory.mktemp("repeated"))
    project.extract("pixels", precision="bf16")
    return project, project.probe("all", repeats=3, controls=True, **FEW)


def test_a_repeat_is_the_ordinary_run_with_that_seed(repeated):
    project, report = repeated
    assert [run.record.seed for run in report] == [0, 1, 2] * 2
    assert len({run.record.request.data.folds_id for run in report}) == 3
    assert len({run.run_id for run in report}) == 6
    assert len({run.score("macro_f1").value for run in report[:3]}) > 1
    for seed in range(3):
        again = project.probe("all", seed=seed, **FEW)
        assert all(run.was_cached for run in again)
        assert [run.run_id for run in again] == [report[seed].run_id, report[3 + seed].run_id]
    later = project.probe("all", seed=1, repeats=2, **FEW)
    assert {run.run_id for run in later} < {run.run_id for run in report}


def test_repeats_that_are_missing_are_made_and_no_others(guesses):
    guesses.probe("pixels", seed=1, **FEW)
    done = []
    report = guesses.probe("pixels", repeats=3, on_run=done.append, **FEW)
    assert [run.was_cached for run in report] == [False, True, False]
    assert [run.run_id for run in done] == [run.run_id for run in report]


def test_the_controls_are_those_of_the_first_seed(repeated):
    _, report = repeated
    assert {run.record.seed for run in report.controls} == {0}
    assert len(report.controls) == 3
    assert len(report.not_beaten) == len({line.split(":")[0] for line in report.not_beaten})


def test_all_repeats_are_compared_at_once(repeated):
    _, report = repeated
    assert sorted(report.comparison.runs.values()) == sorted(
        tuple(run.run_id for run in runs) for runs in (report[:3], report[3:])
    )
    assert report.comparison.notes == ()
    assert report.comparison.table()["n_repeats"].to_pylist() == [3, 3]


def test_the_table_has_a_row_for_all_repeats_of_an_encoder(repeated, command, monkeypatch):
    project, report = repeated
    monkeypatch.chdir(project.workspace.data_root)
    answer = command(*ASK, "--repeats", "3", "--resamples", "100")
    assert answer.code == 0, answer.err
    assert answer.out.startswith("macro F1, mean of 3 repeats (seeds 0 to 2) [95 % interval]\n")
    values = [run.score("macro_f1").value for run in report[:3]]
    name = f"pixels@{report[0].record.fingerprint[:12]}"
    first, *others = [line for line in answer.out.splitlines() if line.startswith(name)]
    assert first.split()[1] == f"{fmean(values):.3f}"
    assert first.endswith(f"  3  {min(values):.3f} - {max(values):.3f}")
    assert len(others) == 1  # how far it is behind
    assert max(map(len, answer.out.split("runs: ")[0].splitlines())) <= 80
    n_notes = sum(len(run.record.notes) for run in [*report, *report.controls])
    assert f"\nnotes stored with these runs: {n_notes}; -v lists them\n" in answer.out
    every = command(*ASK, "--repeats", "3", "--resamples", "100", "-v").out.split("each repeat")[1]
    assert n_notes == every.count("\nnote (") > 0
    rows = [line.split() for line in every.splitlines() if line.startswith(name)]
    assert [row[1] for row in rows] == ["0", "1", "2"]
    assert [row[3] for row in rows] == [f"{value:.3f}" for value in values]


def test_json_has_every_run_and_the_scores_over_them(repeated, command, monkeypatch):
    project, report = repeated
    monkeypatch.chdir(project.workspace.data_root)
    document = json.loads(command(*ASK, "--repeats", "3", "--resamples", "100", "--json").out)
    assert [run["run"]["run_id"] for run in document["runs"]] == [run.run_id for run in report]
    assert len(document["scores"]) == 2
    score, values = document["scores"][0], [run.score("macro_f1").value for run in report[:3]]
    assert score["run_ids"] == [run.run_id for run in report[:3]]
    assert (score["least"], score["most"]) == (min(values), max(values))
    assert score["value"] == pytest.approx(fmean(values))
    assert document["comparison"]["runs"].keys() == report.comparison.runs.keys()


def test_a_score_without_repeats_is_that_of_the_run(guesses):
    report = guesses.probe("pixels", **FEW)
    [score], run = report.scores, report[0].score("macro_f1")
    assert (score.value, score.low, score.high) == (run.value, run.low, run.high)
    assert score.least == score.most == run.value
    assert score.run_ids == (report[0].run_id,)


def test_stored_repeats_are_one_contender(repeated, command, monkeypatch):
    project, report = repeated
    monkeypatch.chdir(project.workspace.data_root)
    out = command("compare", "--resamples", "100").out
    line = r"^pixels@\w+ \(logistic\): probe-pixels-\w+ \(\+2 repeats\)$"
    assert len(re.findall(line, out, re.MULTILINE)) == 2
    assert project.compare(n_resamples=100).runs.keys() == {
        f"pixels@{run.record.fingerprint[:12]} (logistic)" for run in report[::3]
    }


def test_a_repeat_that_is_dropped_is_made_again_bit_for_bit_from_its_record(guesses):
    *_, last = guesses.probe("pixels", repeats=3, **FEW)
    folder = Path(last.folder)
    before = {file.name: file.read_bytes() for file in folder.glob("*.parquet")}
    assert len(before) >= 2
    record = RunFiles(guesses.workspace).record(last.run_id)
    shutil.rmtree(folder)
    assert guesses.verify(repair=True).is_whole
    question, options = record.question(guesses.workspace), ProbeOptions(n_resamples=100)
    assert question.seed == record.method.seed == 2
    session = Session(guesses.workspace)
    [again] = probe(session, [record.encoder], question, record.method, options)
    assert again.run_id == last.run_id
    assert not again.was_cached
    assert {file.name: file.read_bytes() for file in folder.glob("*.parquet")} == before


def test_a_lost_fold_table_of_a_repeat_is_mended(guesses):
    *_, last = guesses.probe("pixels", repeats=3, **FEW)
    folds_id = str(last.record.request.data.folds_id)
    tables = {file.name: file for file in Path(guesses.workspace.folds).iterdir()}
    [name] = [name for name in tables if name.startswith(folds_id)]
    before = tables[name].read_bytes()
    tables[name].unlink()
    report = guesses.verify(repair=True)
    assert report.is_whole
    assert report.n_mended == 1
    assert tables[name].read_bytes() == before


def test_nothing_of_a_repeat_is_taken_for_unwanted(guesses):
    report = guesses.probe("pixels", repeats=3, **FEW)
    assert guesses.gc(grace_s=-1).n_rows == 0
    assert guesses.verify().findings == ()
    assert all(run.was_cached for run in guesses.probe("pixels", repeats=3, **FEW))
    table = guesses.sql("SELECT seed, n_folds, folds_id FROM runs WHERE kind = 'probe'").to_pylist()
    assert {(row["seed"], row["n_folds"]) for row in table} == {(0, 3), (1, 3), (2, 3)}
    assert {row["folds_id"] for row in table} == {r.record.request.data.folds_id for r in report}


def test_repeats_on_folds_that_no_seed_moves_are_refused(guesses, tmp_path, command):
    patients = sorted(set(guesses.images()["patient_id"].to_pylist()))
    lines = [f"{name},{number % 3}" for number, name in enumerate(patients)]
    (tmp_path / "folds.csv").write_text("\n".join(["patient_id,fold", *lines]))
    settings = {**FEW, "folds": tmp_path / "folds.csv"}
    with pytest.raises(RunError, match="2 repeats of a probe would all be the same: no seed moves"):
        guesses.probe("pixels", repeats=2, **settings)
    add_column(tmp_path, "site", lambda lines: [line[line.index("-") + 2] for line in lines])
    with pytest.raises(RunError, match="the same: no seed moves folds by 'site'; leave out --rep"):
        guesses.probe("pixels", repeats=2, **{**FEW, "folds": None, "folds_by": "site"})
    drawn = guesses.probe("pixels", repeats=2, protocol="dinov2", **settings)
    assert [run.record.seed for run in drawn] == [0, 1]
    assert len(guesses.probe("pixels", **settings)) == 1
    answer = command(*ASK[:-1], "folds.csv", "--repeats", "2")
    assert answer.code == 1
    assert len(answer.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--repeats", "0"], "0 is not in the range x>=1"),
        (["--repeats", "2", "--patients", "auto"], "leave out --repeats"),
    ],
)
def test_other_repeats_are_errors(guesses, command, arguments, match):
    answer = command(*ASK, *arguments)
    assert answer.code == 2
    assert match in answer.err
    with pytest.raises(RunError, match="repeats"):
        guesses.probe("pixels", repeats=0)
