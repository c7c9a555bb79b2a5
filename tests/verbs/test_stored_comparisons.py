"""What comparisons store: once each, in SQL with the numbers of the JSON, never in the way."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from edits import cut, flip
from made_answers import made_predictions
from made_runs import store_run
from test_read_only import ReadOnly

import embedcache
from embedcache.errors import RunError
from embedcache.files.backend import Location
from embedcache.files.documents import seal
from embedcache.testing import MemoryBackend, write_cohort
from embedcache.verbs import comparison_files

FEW = {"n_resamples": 100}
TABLES = ("standings", "pairs", "drops", "class_shares", "parts", "subgroups")


@pytest.fixture
def compared(project):
    """Runs of three encoders on the same images, which are in the manifest with their scanner."""
    home = made_predictions(2.0)
    lines = ["image_id,path,patient_id,label,cohort,scanner"]
    for sharp, cohort in ((2.0, "home"), (1.0, "abroad")):
        images = made_predictions(sharp, seed=cohort == "abroad", cohort=cohort)
        lines += [
            f"{image},x.png,{patient},{label},{cohort},{'AB'[number % 2]}"
            for number, (image, patient, label) in enumerate(
                zip(images.image_id, images.patient_id, images.label, strict=True)
            )
        ]
    project.workspace.manifest.write_text("\n".join(lines) + "\n")
    for own, (name, sharp) in enumerate({"best": 4.0, "good": 3.6, "bad": 0.2}.items(), 1):
        home = made_predictions(sharp, own=own)
        abroad = made_predictions(sharp / 2, seed=1, labels="ab", own=own, cohort="abroad")
        abroad = replace(abroad, role="external", fold=np.full(len(abroad.label), -1))
        store_run(project, f"probe-{name}", name, (home, abroad))
    return project


def stored(project) -> list[Path]:
    return sorted(Path(project.workspace.comparisons).glob("*"))


def rows(project, table: str, comparison_id: str) -> list[dict]:
    query = f"FROM {table} WHERE comparison_id = '{comparison_id}'"
    return project.sql(query).to_pylist()


def without(row: dict, *names: str) -> dict:
    return {name: value for name, value in row.items() if name not in {"comparison_id", *names}}


def spread(row: dict) -> dict:
    return {name: row[name] for name in ("value", "low", "high")}


def test_a_comparison_is_in_sql_with_the_very_numbers_of_its_json(compared, command):
    answer = command("compare", "--json", "--by", "scanner", "--margin", "0.02", "--seed", "3")
    report = json.loads(answer.out)
    name = report["comparison_id"]
    assert [path.stem for path in stored(compared)] == [name]
    [row] = rows(compared, "comparisons", name)
    assert without(row, "created", "statistics", "notes") == {
        "task": "classification", "metric": "macro_f1", "level": "image", "scoring": "all",
        "by_column": "scanner", "margin": 0.02, "n_resamples": 200, "seed": 3, "n_runs": 3,
    }  # fmt: skip
    of_name = {table: rows(compared, table, name) for table in TABLES}
    for cohort in report["cohorts"]:
        there = {"cohort": cohort["cohort"]}
        comparison = cohort["comparison"]
        assert [without(r) for r in of_name["pairs"] if r["cohort"] == cohort["cohort"]] == [
            {**there, **pair} for pair in comparison["pairs"]
        ]
        known = {key: cohort[key] for key in ("role", "n_patients", "n_images")}
        assert [without(r) for r in of_name["standings"] if r["cohort"] == cohort["cohort"]] == [
            {
                **there, **known, **standing, "run_id": f"probe-{standing['name']}",
                "run_ids": report["runs"][standing["name"]], "n_repeats": 1,
            }
            for standing in comparison["standings"]
        ]  # fmt: skip
    for drop in report["drops"]:
        lost = {r["part"]: spread(r) for r in of_name["drops"] if r["name"] == drop["name"]}
        assert lost == {"drop": drop["drop"], **drop["shift"], **drop["by_metric"]}
    assert [without(r) for r in of_name["class_shares"]] == [
        {"cohort": "abroad", "name": drop["name"], **share}
        for drop in report["drops"]
        for share in drop["shares"]
    ]
    scores = [{**without(r, *spread(r)), "score": spread(r)} for r in of_name["parts"]]
    assert scores == report["parts"]
    behind = iter(of_name["subgroups"])
    for run in report["subgroups"]:
        for shortfall in run["shortfalls"]:
            row = next(behind)
            assert shortfall.items() <= row.items()
            is_worst = run["worst"] == shortfall["subgroup"]
            assert row["is_worst"] == is_worst
            ends = (run["largest"]["low"], run["largest"]["high"]) if is_worst else (None, None)
            assert (row["worst_low"], row["worst_high"]) == ends
        for subgroup, reason in run["undefined"].items():
            row = next(behind)
            assert (row["subgroup"], row["value"], row["reason"]) == (subgroup, None, reason)
    assert not list(behind)


def test_an_equal_comparison_is_stored_once_and_any_other_one_too(compared):
    first = compared.compare(**FEW)
    content = stored(compared)[0].read_bytes()
    names = ["probe-bad", "probe-best", "probe-good"]
    for again in (compared.compare(**FEW), compared.compare(models=["bad", "good", "best"], **FEW),
                  compared.compare(metric="macro_f1", **FEW)):  # fmt: skip
        assert again.comparison_id == first.comparison_id
    assert [path.read_bytes() for path in stored(compared)] == [content]
    others = [
        {"models": ["bad", "best"]}, {"metric": "accuracy"}, {"level": "patient"}, {"by": "class"},
        {"runs": names[1:]}, {"margin": 0.1}, {"seed": 1}, {"n_resamples": 101},
    ]  # fmt: skip
    for other in others:
        compared.compare(**{**FEW, **other})
    assert len(stored(compared)) == 1 + len(others)
    assert compared.sql("SELECT count(*) AS n FROM comparisons").to_pylist() == [{"n": 9}]


def test_other_predictions_or_another_column_make_another_comparison(compared):
    by = [compared.compare(by="scanner", **FEW).comparison_id]
    manifest = compared.workspace.manifest
    manifest.write_text(manifest.read_text().replace(",A\n", ",C\n"))
    compared = embedcache.open(compared.workspace.manifest)
    by.append(compared.compare(by="scanner", **FEW).comparison_id)
    shutil.rmtree(compared.workspace.runs / "probe-bad")
    home = made_predictions(0.3, own=3)
    store_run(compared, "probe-bad", "bad", [home])
    by.append(embedcache.open(manifest).compare(by="scanner", **FEW).comparison_id)
    assert len(set(by)) == 3


def test_the_comparison_of_a_probe_is_stored_and_that_of_compare_is_the_same(tmp_path):
    write_cohort(tmp_path, n_patients=6, n_images=2, size=8)
    project = embedcache.open(tmp_path)
    project.extract("pixels")
    project.extract("pixels", preprocess="crop")
    report = project.probe("all", folds=3, grid=[1.0], controls=True, **FEW)
    assert [path.stem for path in stored(project)] == [report.comparison.comparison_id]
    catalog = project.workspace.catalog.stat().st_mtime_ns
    [pair] = project.sql("SELECT better, worse, p FROM pairs WHERE cohort = 'home'").to_pylist()
    expected = report.comparison.cohorts[0].comparison.pairs[0]
    assert pair == {"better": expected.better, "worse": expected.worse, "p": expected.p}
    assert project.workspace.catalog.stat().st_mtime_ns == catalog
    assert project.compare(**FEW).comparison_id == report.comparison.comparison_id
    assert len(stored(project)) == 1


def test_a_storage_that_refuses_writes_costs_a_note(compared, command, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("embedcache.files.durable._write_temporary", refuse)
    answer = command("compare", "--json")
    assert answer.code == 0
    report = json.loads(answer.out)
    assert len(report["cohorts"][0]["comparison"]["pairs"]) == 3
    [note] = caplog.messages  # which the command's handler puts on stderr
    assert note.startswith("the comparison is not stored: .embedcache/comparisons/compare-")
    assert ".json: Read-only file system; " in note
    assert not stored(compared)


def test_a_storage_elsewhere_holds_comparisons_or_refuses_them(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("platformdirs.user_cache_path", lambda _: tmp_path / "cache")
    write_cohort(tmp_path / "data", cohorts=("home", "abroad"), n_patients=6, n_images=2)
    writable = MemoryBackend()
    project = embedcache.open(tmp_path / "data", store=Location(writable, "bucket"))
    project.extract("pixels")
    for probe in ("knn", "prototype"):
        project.probe("pixels", probe=probe, folds=3, **FEW)
    backend = ReadOnly()
    backend.files = dict(writable.files)
    sealed = embedcache.open(tmp_path / "data", store=Location(backend, "bucket"))
    report = sealed.compare(**FEW)
    assert "the comparison is not stored: Read-only file system" in caplog.text
    assert len(sealed.sql("FROM pairs")) == 0
    assert project.compare(**FEW).comparison_id == report.comparison_id
    assert len(project.sql("FROM pairs")) == 2


def test_of_two_at_once_the_first_stands(compared, monkeypatch):
    make = comparison_files._document
    documents = []

    def beaten(report):
        document = make(report)
        if not documents:
            documents.append(document)
            assert comparison_files.store_comparison(compared.workspace, report)
            documents.append(stored(compared)[0].read_bytes())
        return document

    monkeypatch.setattr(comparison_files, "_document", beaten)
    compared.compare(**FEW)
    assert [path.read_bytes() for path in stored(compared)] == documents[1:]
    assert len(compared.sql("FROM comparisons")) == 1


@pytest.mark.parametrize("harm", [flip, cut])
def test_a_damaged_comparison_is_left_out_and_is_mended(compared, caplog, harm):
    sound = compared.compare(**FEW).comparison_id
    harmed = compared.compare(seed=1, **FEW).comparison_id
    file = Path(compared.workspace.comparisons) / f"{harmed}.json"
    harm(file)
    names = compared.sql("SELECT comparison_id FROM comparisons")["comparison_id"].to_pylist()
    assert names == [sound]
    assert f"comparison '{harmed}.json' is left out" in caplog.text
    [finding] = [f for f in compared.verify().findings if f.kind == "comparisons"]
    assert (str(finding.path), finding.problem) == (str(file), "does not match its checksum")
    notes = compared.verify(repair=True).notes
    assert f"{file} removed; make it again with `embedcache compare`" in notes
    compared.compare(seed=1, **FEW)
    assert len(compared.sql("FROM comparisons")) == 2


@pytest.mark.parametrize("change", [
    {"pairs": None}, {"pairs": [3]}, {"pairs": [{"p": "small"}]}, {"standings": [{"groups": 1}]},
    {"seed": 2**70}, {"n_runs": 2**40}, {"notes": [1]}, {"drops": {"a": 1}}, {"task": ["x"]},
    {"standings": [{"rank": {}}]}, {"subgroups": [{"is_worst": "yes"}]},
])  # fmt: skip
def test_a_sealed_comparison_of_another_shape_is_left_out_in_a_line(compared, caplog, change):
    name = compared.compare(**FEW).comparison_id
    file = Path(compared.workspace.comparisons) / f"{name}.json"
    document = json.loads(file.read_bytes())
    del document["crc32c"]
    file.write_bytes(seal({**document, **change}))
    assert len(compared.sql("FROM comparisons")) == 0
    [line] = [r.message for r in caplog.records if "is left out" in r.message]
    assert "of a shape that this release does not know" in line
    [finding] = [f for f in compared.verify().findings if f.kind == "comparisons"]
    assert not finding.is_mendable


def test_what_a_later_release_adds_to_a_comparison_is_passed_over(compared):
    name = compared.compare(**FEW).comparison_id
    file = Path(compared.workspace.comparisons) / f"{name}.json"
    document = json.loads(file.read_bytes())
    del document["crc32c"]
    document["pairs"] = [{**pair, "atlas": 1} for pair in document["pairs"]]
    file.write_bytes(seal({**document, "atlas": {}, "comparison_id": "compare-other"}))
    assert len(rows(compared, "pairs", name)) == 6
    assert not [f for f in compared.verify().findings if f.kind == "comparisons"]


def test_a_comparison_outlives_its_runs_and_gc(compared):
    name = compared.compare(**FEW).comparison_id
    before = rows(compared, "pairs", name)
    content = stored(compared)[0].read_bytes()
    stranger = Path(compared.workspace.comparisons) / "notes.json"
    stranger.write_text("mine")
    shutil.rmtree(compared.workspace.runs)
    (Path(compared.workspace.comparisons) / ".tmp-0123456789abcdef").write_bytes(b"half")
    compared.gc(grace_s=-1)
    assert rows(compared, "pairs", name) == before
    assert [path.name for path in stored(compared)] == [f"{name}.json", "notes.json"]
    assert stored(compared)[0].read_bytes() == content
    report = compared.verify()
    assert not [finding for finding in report.findings if finding.kind == "comparisons"]
    assert [note for note in report.notes if "notes.json is not ours" in note]


def test_a_manifest_that_cannot_be_read_is_in_no_comparisons_way(compared):
    compared.workspace.manifest.write_text("nothing\n")
    assert len(compared.compare(**FEW).cohorts) == 2
    assert len(stored(compared)) == 1


def test_a_seed_that_no_table_holds_is_refused(compared):
    with pytest.raises(RunError, match=r"seed is 9223372036854775808; expected a whole number be"):
        compared.compare(seed=2**63)
