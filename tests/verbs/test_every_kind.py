"""A project that holds a run of every kind, against every verb: nothing fails, nothing changes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from embedcache_cli.main import VERBS, run
from every_kind import ASKED, FEW, TINIEST, make_project

import embedcache
from embedcache.errors import RunError
from embedcache.files.digests import sha256
from embedcache.runs.files import RunFiles
from embedcache.verbs.artefacts import artefact_kinds
from embedcache.verbs.session import Session

KINDS = {"probe", "control", "curve", "zeroshot", "finetune"}
DERIVED = {"catalog.duckdb", "digests.tsv", "pixels", "logs"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of a project with a run of every kind, a copy of its store, and its runs."""
    folder = tmp_path_factory.mktemp("every")
    with pytest.MonkeyPatch.context() as patch:
        project, outcomes = make_project(folder / "project", patch)
    shutil.copytree(project.workspace.store, folder / "pristine")
    return folder, outcomes


@pytest.fixture
def project(made):
    """That project, with its store as it was made."""
    folder, _ = made
    shutil.rmtree(folder / "project" / ".embedcache")
    shutil.copytree(folder / "pristine", folder / "project" / ".embedcache")
    return embedcache.open(folder / "project")


@pytest.fixture
def command(project, monkeypatch, capfd):
    """Run `embedcache ARGUMENTS` in that project; return what it prints."""
    monkeypatch.chdir(project.workspace.data_root)

    def call(*arguments):
        capfd.readouterr()
        code = run(list(map(str, arguments)))
        out, err = capfd.readouterr()
        assert code == 0, (arguments, err)
        return out

    return call


def truth(project) -> dict[str, str]:
    """Digest of every file of the store that is neither derived nor a lock."""
    store = Path(project.workspace.store)
    files = {str(path.relative_to(store)): path for path in store.rglob("*") if path.is_file()}
    return {
        name: sha256(path.read_bytes())
        for name, path in files.items()
        if not (DERIVED & set(Path(name).parts) or path.name.startswith((".", "LOCK")))
    }


def run_ids(project) -> dict[str, list[str]]:
    records = RunFiles(project.workspace).readable_records()
    return {kind: [r.run_id for r in records if r.kind == kind] for kind in KINDS}


def test_a_run_of_every_kind_is_there(project):
    runs = run_ids(project)
    assert {kind: len(names) for kind, names in runs.items()} == {
        "probe": 7, "control": 3, "curve": 1, "zeroshot": 1, "finetune": 1,
    }  # fmt: skip
    labels = {record.label for record in RunFiles(project.workspace).readable_records()}
    assert labels == {
        "logistic", "knn", "logistic, fetalclip, external by folds", "logistic, external by folds",
        "ridge", "control", "curve", "zeroshot", "head-only",
    }  # fmt: skip


def test_status_counts_them(project, command):
    status = project.status()
    n_runs = sum(map(len, run_ids(project).values()))
    counts = {kind.kind: kind.n_items for kind in status.artefacts}
    assert status.n_runs == counts["runs"] == n_runs
    assert counts["kept weights"] == 1
    assert counts["fold tables"] >= 3
    assert all(kind.size_bytes > 0 for kind in status.artefacts if kind.n_items)
    assert f"runs: {n_runs}, in .embedcache" in command("status")
    assert json.loads(command("status", "--json"))["n_runs"] == n_runs


def test_a_sound_store_is_whole_and_a_repair_changes_nothing(project, command):
    before = truth(project)
    assert project.verify().findings == ()
    repaired = project.verify(repair=True)
    assert (repaired.findings, repaired.is_whole, repaired.notes) == ((), True, ())
    assert command("verify") == command("verify", "--repair")
    assert truth(project) == before


def test_gc_drops_nothing_that_a_run_needs(project, command):
    before = truth(project)
    assert project.gc(dry_run=True).n_rows == 0
    project.gc(grace_s=-1)
    assert command("gc", "--grace", "0").startswith("0 rows dropped")
    assert truth(project) == before
    assert project.verify().findings == ()
    assert all(outcome.was_cached for ask in ASKED.values() for outcome in ask(project))


def test_every_view_of_sql_can_be_read(project, command):
    schema = "SELECT table_name AS name FROM information_schema.tables WHERE table_schema = 'main'"
    views = {row["name"] for row in project.sql(schema).to_pylist()}
    assert {"runs", "predictions", "fold_predictions", "metrics", "folds", "images"} <= views
    for view in sorted({*views, "embeddings", "embeddings_pixels"}):
        table, rows = project.sql(f'FROM "{view}"'), project.sql_rows(f'FROM "{view}"')
        assert list(rows.columns) == table.column_names, view
        assert len(rows) == len(table), view
        json.loads(command("sql", f'FROM "{view}"', "--json"))
    runs = project.sql("FROM runs").to_pylist()
    assert {row["kind"] for row in runs} == KINDS
    for row in runs:
        for column in ("question", "method", "settings", "results"):
            assert isinstance(json.loads(row[column]), dict), (row["run_id"], column)
    predicted = set(project.sql("SELECT DISTINCT run_id FROM predictions")["run_id"].to_pylist())
    scored = set(project.sql("SELECT DISTINCT run_id FROM metrics")["run_id"].to_pylist())
    every = {row["run_id"] for row in runs}
    assert scored == every
    assert predicted == every - set(run_ids(project)["curve"])
    by_fold = project.sql("SELECT DISTINCT run_id FROM fold_predictions")["run_id"].to_pylist()
    external = {
        row["run_id"]
        for row in runs
        if row["kind"] in {"probe", "control", "finetune"} and "shuffled" not in row["encoder"]
    }
    assert set(by_fold) == external


def test_the_index_is_the_same_written_anew(project, command):
    tables = ("runs", "predictions", "fold_predictions", "metrics", "folds")
    query = " UNION ALL ".join(
        f"SELECT '{name}' AS name, count(*) AS n FROM {name}" for name in tables
    )
    before = project.sql(query).to_pylist()
    project.index()
    assert project.sql(query).to_pylist() == before
    project.workspace.catalog.unlink()
    command("index")
    assert project.sql(query).to_pylist() == before


@pytest.mark.parametrize(
    ("options", "refused"),
    [
        ({}, {}),
        ({"by": "device"}, {}),
        ({"metric": "accuracy", "by": "class"}, {"regression", "multilabel"}),
        ({"level": "patient"}, {"multilabel"}),
        ({"scoring": "masked"}, {"regression", "multilabel"}),
    ],
)
def test_every_run_with_predictions_is_compared_or_refused_in_a_line(project, options, refused):
    settings = {"n_resamples": 100, **options}
    for record in RunFiles(project.workspace).readable_records():
        if record.kind == "curve" or record.task in refused:
            with pytest.raises(RunError, match=r"[a-z]") as caught:
                project.compare(record.run_id, **settings)
            assert "\n" not in str(caught.value)
        else:
            report = project.compare(record.run_id, **settings)
            assert list(report.runs.values()) == [(record.run_id,)]
            assert len(report.table()) == len(report.cohorts)


def test_the_newest_run_decides_what_is_compared(project):
    report = project.compare(n_resamples=100)
    assert set(report.runs) == {
        "pixels (logistic)", "pixels (knn)", "pixels (logistic, external by folds)",
        "tiniest-vit (head-only)",
    }  # fmt: skip
    [leader] = report.runs["tiniest-vit (head-only)"]
    assert f"2 runs of multilabel, regression left out: '{leader}' is of classification" in (
        report.notes
    )
    assert any("zeroshot" in note and "left out: other images of" in note for note in report.notes)


def test_probe_knn_prompts_and_training_meet_in_one_comparison(project, command, made):
    _, outcomes = made
    names = ("probe", "knn", "external by folds", "zeroshot", "training")
    ids = [outcomes[name][0].run_id for name in names]
    report = project.compare(ids[:3], n_resamples=100)
    assert set(report.runs) == {
        "pixels (logistic)", "pixels (knn)", "pixels (logistic, external by folds)",
    }  # fmt: skip
    command("compare", ids[0], ids[-1], "--resamples", "100", "--pairs", "--calibration",
            "--operating-points", "--by", "class")  # fmt: skip
    command("compare", "-m", "pixels", "--resamples", "100", "--json")


def test_its_split_is_audited(project, command):
    before = truth(project)
    assert project.audit(folds=3).verdict != "leaks"
    command("audit", "--folds", "3", "-m", "pixels")
    added = {name for name in set(truth(project)) - set(before) if not name.startswith("audit/")}
    assert added == set()


def test_rows_can_be_exported(project, command, tmp_path):
    file = tmp_path / "rows.parquet"
    command("export", "-m", "pixels", "-o", file, "--label", "age")
    assert len(pq.read_table(file)) == len(project.images())


def test_folds_of_each_question_are_those_of_its_runs(project, command):
    for question in (
        {},
        {"task": "regression", "label": "age"},
        {"task": "multilabel", "label": "findings"},
    ):
        table, sizes = project.folds(folds=3, **question)
        assert len(sizes) == 3
        runs = project.sql("SELECT DISTINCT folds_id FROM runs")["folds_id"].to_pylist()
        assert table.folds_id in runs
    command("folds", "--folds", "3", "--json")


def test_each_is_found_again_and_says_the_same(project, made):
    before = truth(project)
    for name, ask in ASKED.items():
        first, again = made[1][name], ask(project)
        assert [one.run_id for one in again] == [one.run_id for one in first], name
        assert all(one.was_cached for one in again), name
        for ours, theirs in zip(first, again, strict=True):
            assert str(ours.estimates) == str(theirs.estimates), name
            assert len(ours.answers) == len(theirs.answers), name
            assert ours.document()["run"] == theirs.document()["run"], name
        assert repr(again) == repr(first), name
    assert truth(project) == before


def test_the_command_finds_each_again(project, command):
    few = ("--folds", FEW["folds"], "--resamples", FEW["n_resamples"])
    pixels = ("-m", "pixels")
    for arguments in (
        ("probe", *pixels, *few),
        ("probe", *pixels, *few, "--probe", "knn", "--no-controls"),
        ("probe", *pixels, *few, "--protocol", "fetalclip", "--no-controls"),
        ("probe", *pixels, *few, "--external-by", "folds", "--no-controls"),
        ("probe", *pixels, *few, "--task", "regression", "--label", "age", "--no-controls"),
        ("probe", *pixels, *few, "--task", "multilabel", "--label", "findings", "--no-controls"),
        ("zeroshot", *pixels, "--prompts", "prompts.yaml", *few[2:]),
        ("finetune", "-m", "tiniest-vit", "--regime", "head-only", "--encoder-file", TINIEST, *few,
         "--epochs", 1, "-b", 16, "--workers", 1),
    ):  # fmt: skip
        assert "cached" in command(*arguments), arguments
    curve = command("probe", *pixels, "--patients", "2,4", "--draws", 2, "--folds", 3, "--json")
    assert json.loads(curve)[0]["was_cached"]


def test_doctor_counts_each_kind_and_finds_no_problem(project, command):
    printed = command("doctor", "--offline")
    for kind in project.status().artefacts:
        assert kind.kind in printed


def test_no_verb_is_left_out_of_this_file():
    text = Path(__file__).read_text()
    elsewhere = {"quickstart", "encoders", "weights"}  # they look at no store
    for verb in set(VERBS) - elsewhere - {"manifest", "extract"}:
        assert f'"{verb}"' in text or f"project.{verb}(" in text, verb


def test_images_and_rows_are_those_of_before(project, command):
    before = truth(project)
    assert project.check_manifest().troubles == ()
    assert project.extract("pixels").tallies[0].n_cached == len(project.images())
    assert project.plan("pixels")[0].n_misses == 0
    assert project.models() == ["pixels"]
    assert "cached" in command("extract", "-m", "pixels")
    assert truth(project) == before


def test_every_kind_of_artefact_is_sound_and_has_a_size(project):
    for kind in artefact_kinds(Session(project.workspace)):
        for item in kind.items():
            assert list(kind.check(item)) == [], item
            for reference in kind.references(item):
                assert reference.artefact, item
        assert kind.size() >= 0
