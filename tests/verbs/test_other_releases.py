"""What a later release, or somebody else, put into a store: no verb fails on it or deletes it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from every_kind import make_project
from made_answers import made_predictions
from made_runs import made_record, made_request

import embedcache
from embedcache.errors import RunError
from embedcache.files.backend import on_disk
from embedcache.files.documents import read_document, seal, table_bytes
from embedcache.files.durable import crc32c
from embedcache.runs import shapes
from embedcache.runs.files import RunFiles
from embedcache.runs.tables import predictions_table

DREAM = {
    "run_id": "dreams-pixels-000000000001",
    "kind": "dreams",
    "encoder": "pixels",
    "fingerprint": "f" * 64,
    "question": {"label": "label", "task": "dreaming", "depth": {"of": [1, 2]}},
    "method": {"tag": "dream", "depth": 3},
    "constants": {"moon": [1]},
    "data": {"external": [], "sky": "blue"},
    "results": {"notes": ["a note"], "visions": {"n": 1}},
    "versions": {"embedcache-fm": "9.0"},
    "created": "2030-01-01T00:00:00Z",
    "seconds": 1.5,
    "tables": {},
    "weather": {"fair": True},
}


def write_dream(project, **changes) -> str:
    """Store a run of an unknown kind with a table of an unknown name; return the run's name."""
    document = {**DREAM, **changes}
    folder = project.workspace.runs / str(document["run_id"])
    table = table_bytes(predictions_table(folder.name, [made_predictions(1.0)]))
    name = f"visions.{crc32c(table):08x}.parquet"
    (folder / name).put(table)
    tables = {"visions": [name, len(table), crc32c(table)], **document["tables"]}
    (folder / "run.json").put(seal({**document, "tables": tables}))
    return folder.name


def write_strange_things(project) -> list[Path]:
    """Put files and folders that no release knows into a store; return the files."""
    store = Path(project.workspace.store)
    (encoder,) = (path for path in (store / "encoders").iterdir() if path.is_dir())
    run = next(path for path in (store / "runs").iterdir() if (path / "run.json").exists())
    files = [
        store / "README.txt",
        store / "atlas" / "deep" / "plate.bin",
        store / "runs" / "README.txt",
        store / "runs" / "drafts" / "notes.txt",
        store / "runs" / "drafts" / "2030" / "run.json",
        run / "thesis.txt",
        run / "figures" / "curve.svg",
        store / "encoders" / "README.txt",
        store / "encoders" / "mine" / "encoder.txt",
        store / "encoders" / "other-0123456789ab" / "weights" / "model.bin",
        encoder / "atlas.bin",
        encoder / "index" / "graph.bin",
        store / "folds" / "README.txt",
        store / "folds" / "mine.csv",
        store / "manifests" / "README.txt",
        store / "weights" / "mine.safetensors",
        store / "pixels" / "mine" / "thumbnail.png",
        store / "training" / "notes.txt",
    ]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"of somebody else")
    return files


def every_verb(project, command) -> None:
    """Run every verb that reads or tidies a store."""
    project.status()
    assert project.verify().findings == ()
    repaired = project.verify(repair=True)
    assert (repaired.findings, repaired.is_whole) == ((), True)
    project.gc(dry_run=True)
    project.gc(grace_s=0)
    project.index()
    for view in ("runs", "predictions", "fold_predictions", "metrics", "folds", "encoders"):
        project.sql(f"FROM {view}")
    project.compare(n_resamples=100)
    assert project.probe("pixels", controls=True, n_resamples=100)[0].was_cached
    assert project.models() == ["pixels"]
    assert project.extract("pixels").tallies[0].n_written == 0
    project.plan("pixels")
    project.folds()
    for arguments in (
        ["status"], ["status", "--json"], ["verify"], ["verify", "--repair"],
        ["gc", "--grace", "0"],
        ["index"], ["sql", "FROM runs"], ["compare"], ["compare", "--json"], ["folds"],
        ["probe", "-m", "all"], ["export", "-m", "pixels", "-o", "rows.npy"],
    ):  # fmt: skip
        result = command(*arguments)
        assert result.code == 0, (arguments, result.err)


@pytest.fixture
def probed(project):
    """A project with a probe and its controls."""
    project.extract("pixels")
    project.probe("pixels", controls=True, n_resamples=100)
    return project


def test_a_run_of_an_unknown_kind_is_read_by_all_and_touched_by_none(probed, command, monkeypatch):
    monkeypatch.setenv("EMBEDCACHE_RESAMPLES", "100")
    run_id = write_dream(probed)
    folder = Path(probed.workspace.runs / run_id)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    every_verb(probed, command)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    (row,) = probed.sql(f"FROM runs WHERE run_id = '{run_id}'").to_pylist()
    assert (row["kind"], row["task"], row["regime"]) == ("dreams", "dreaming", "dreams")
    assert json.loads(row["method"]) == DREAM["method"]
    assert json.loads(row["results"])["visions"] == {"n": 1}
    assert "dreams" not in repr(probed.compare(n_resamples=100))


def test_an_unknown_run_that_is_named_is_refused_in_a_line(probed, command):
    run_id = write_dream(probed)
    for arguments in ([run_id], [run_id, RunFiles(probed.workspace).ids()[-1]]):
        result = command("compare", *arguments)
        assert result.code == 1
        assert result.err.count("\n") == 1
        assert run_id in result.err


def test_a_known_kind_of_run_with_an_unknown_task_or_method_is_passed_over(probed, command):
    strange = [
        write_dream(
            probed,
            run_id=f"probe-pixels-00000000000{number}",
            kind="probe",
            question={"label": "label", "task": task, "train_cohort": "home"},
            method=method,
        )
        for number, (task, method) in enumerate(
            [("ranking", {"tag": "probe"}), ("classification", {"tag": "finetune"})]
        )
    ]
    every_verb(probed, command)
    report = probed.compare(n_resamples=100)
    assert not set(strange) & set().union(*report.runs.values())
    for run_id in strange:
        with pytest.raises(RunError, match=run_id):
            probed.compare(run_id)


def test_a_damaged_table_of_an_unknown_kind_of_run_is_found(probed):
    run_id = write_dream(probed)
    [table] = Path(probed.workspace.runs / run_id).glob("visions.*")
    table.write_bytes(b"x")
    assert [Path(one.path).name for one in probed.verify().findings] == [table.name]


def test_files_and_folders_of_others_stay_where_they_are(probed, command, monkeypatch):
    monkeypatch.setenv("EMBEDCACHE_RESAMPLES", "100")
    files = write_strange_things(probed)
    every_verb(probed, command)
    assert [file for file in files if not file.exists()] == []
    assert {file.read_bytes() for file in files} == {b"of somebody else"}


def test_a_repair_of_damage_beside_them_leaves_them_alone(probed):
    files = write_strange_things(probed)
    run_id = write_dream(probed)
    damaged = [
        next(path for path in Path(probed.workspace.runs).glob("*/metrics.*")),
        next(path for path in Path(probed.workspace.folds).glob("*.parquet")),
        next(path for path in Path(probed.workspace.encoders).glob("*/seg/*/c/*/*")),
        next(path for path in Path(probed.workspace.encoders).glob("*/encoder.json")),
    ]
    for file in damaged:
        file.write_bytes(b"damaged")
    report = probed.verify(repair=True)
    assert report.is_whole, report.notes
    assert [file for file in files if not file.exists()] == []
    assert run_id in RunFiles(probed.workspace)
    assert probed.verify().findings == ()


def test_a_later_release_may_keep_more_of_what_this_one_knows(tmp_path, monkeypatch):
    project, outcomes = make_project(tmp_path, monkeypatch, "knn")
    record = outcomes["knn"][0].record.document()
    richer = {
        **record,
        "run_id": "probe-pixels-richer",
        "question": {**record["question"], "weights": "per patient"},
        "method": {**record["method"], "kernel": "cosine"},
        "data": {**record["data"], "masks": "1" * 16},
        "results": {**record["results"], "kernels": [1]},
        "tables": {},
        "seed_of_seeds": 1,
    }
    (project.workspace.runs / "probe-pixels-richer" / "run.json").put(seal(richer))
    read = RunFiles(project.workspace).record("probe-pixels-richer")
    # What the further settings mean is not known: the run is kept as written, and not compared.
    assert read.method.document() == richer["method"]
    assert read.label == "probe"
    assert read.results["kernels"] == [1]
    assert project.verify().findings == ()
    assert project.status().n_runs == 2


@pytest.mark.parametrize(("part", "key"), [("method", "whiten"), ("question", "weights")])
def test_a_run_with_a_setting_of_a_later_release_is_no_newer_version_of_one_without(
    probed, part, key
):
    before = probed.compare(n_resamples=100).runs
    [(run_id,)] = before.values()
    folder = probed.workspace.runs / run_id
    later = probed.workspace.runs / "probe-pixels-later"
    for entry in folder.list():
        (later / entry.name).put((folder / entry.name).read())
    record = read_document(folder / "run.json")
    record = {**record, "run_id": later.name, part: {**record[part], key: True}, "created": "2099"}
    (later / "run.json").replace(seal(record))
    assert probed.compare(n_resamples=100).runs == before
    with pytest.raises(RunError, match="probe-pixels-later"):
        probed.compare("probe-pixels-later")
    assert probed.verify().findings == ()


_VALUES = (None, [], [1], {}, {"x": [1]}, "text", 7, 1.5, True, 10**30)
_PLACES = [
    *((key,) for key in DREAM if key != "run_id"),
    *((part, key) for part, shape in (("question", shapes.QUESTION), ("data", shapes.DATA))
      for key in shape),
    *(("method", key) for key in shapes.METHODS["probe"]),
    ("results", "notes"), ("results", "n_skipped"),
    ("tables", "predictions"), ("tables", "masks"),
]  # fmt: skip


def test_a_record_of_any_shape_is_a_run_and_no_verb_fails_on_it(probed, command):
    written = {}
    for kind in ("dreams", "probe"):
        method = {"dreams": DREAM["method"], "probe": {"tag": "probe"}}[kind]
        for place in _PLACES:
            for number, value in enumerate(_VALUES):
                record = {**DREAM, "kind": kind, "method": method}
                if len(place) == 1:
                    record[place[0]] = value
                else:
                    record[place[0]] = {**record[place[0]], place[1]: value}
                run_id = f"{kind}-{'-'.join(place)}-{number}"
                file = probed.workspace.runs / run_id / "run.json"
                file.put(seal({**record, "run_id": run_id}))
                written[run_id] = record
    rows = {row["run_id"]: row for row in probed.sql("FROM runs").to_pylist()}
    assert written.keys() <= rows.keys()
    for run_id, record in written.items():
        kind = record["kind"]
        assert rows[run_id]["kind"] == (kind if isinstance(kind, str) else "unknown")
    assert probed.status().n_runs == len(rows)
    probed.verify(repair=True)
    probed.gc(grace_s=0)
    probed.compare(n_resamples=100)
    for arguments in (["sql", "FROM runs"], ["status"], ["compare"], ["gc", "--grace", "0"]):
        result = command(*arguments)
        assert result.code == 0, (arguments, result.err)
    assert written.keys() <= set(RunFiles(probed.workspace).ids())


def test_a_missing_fold_table_of_an_unknown_task_is_named_and_stops_no_repair(probed):
    write_dream(
        probed,
        question={"label": "label", "task": "survival"},
        data={"folds_id": "0123456789abcdef"},
    )
    [finding] = probed.verify().findings
    assert "0123456789abcdef" in str(finding.path)
    assert not probed.verify(repair=True).is_whole


def test_a_store_that_holds_only_an_unknown_kind_of_run_says_what_to_do(project):
    project.extract("pixels")
    write_dream(project)
    with pytest.raises(RunError, match="holds no runs to compare; run `embedcache probe -m all`"):
        project.compare()


def test_a_record_of_its_own_name_only_is_a_run(project):
    project.extract("pixels")
    record = made_record(made_request("pixels"), run_id="x")
    folder = on_disk(Path(project.workspace.runs)) / record.run_id
    (folder / "run.json").put(seal({"run_id": "x"}))
    assert embedcache.open(project.workspace.manifest).status().n_runs == 1
    assert project.verify().findings == ()
    assert project.sql("SELECT kind FROM runs")["kind"].to_pylist() == ["unknown"]
