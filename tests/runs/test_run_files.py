"""Runs on disk: what is damaged is named, what was interrupted is swept, what is others' stays."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from edits import cut, flip
from made_answers import made_predictions
from made_runs import made_record, made_request, store_run

from embedcache.errors import StoreCorruptError, StoreReadError, StoreWriteError
from embedcache.files.backend import LocalBackend, Location
from embedcache.files.documents import read_document
from embedcache.files.marks import is_withdrawn
from embedcache.runs.files import RunFiles
from embedcache.runs.kind import RunsKind
from embedcache.runs.once import Computed, once

RUN = "probe-e-000000000000"
TABLES = ("predictions", "metrics", "fold_predictions")


@pytest.fixture
def runs(project) -> RunFiles:
    """The runs of a project that has one, with every table."""
    project.workspace.create_store()
    outside = [made_predictions(1.0, cohort="away")]
    record = store_run(project, RUN, "e", [made_predictions(2.0)], fold_answers=outside)
    assert set(record.tables) == set(TABLES)
    return RunFiles(project.workspace)


def folder_of(runs: RunFiles) -> Path:
    return Path(runs.folder / RUN)


def table_file(runs: RunFiles, table: str) -> Path:
    return folder_of(runs) / runs.record(RUN).tables[table].name


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("harm", [flip, cut])
def test_a_damaged_table_is_refused_by_name(runs, harm, table):
    file = table_file(runs, table)
    harm(file)
    with pytest.raises(StoreCorruptError, match=rf"{file.name} does not match its checksum; run"):
        runs.table(RUN, table)
    assert [(path.name, problem) for path, problem in runs.damages(RUN)] == [
        (file.name, "does not match its checksum")
    ]


def test_a_table_that_is_gone_is_missing_and_the_others_are_read(runs):
    file = table_file(runs, "metrics")
    file.unlink()
    with pytest.raises(StoreCorruptError, match=rf"{file.name} is missing") as caught:
        runs.estimates(RUN)
    assert caught.value.is_missing
    assert len(runs.answers(RUN)) == 1


def test_a_damaged_record_is_refused_and_passed_over_by_who_asks_for_sound_ones(runs, project):
    flip(folder_of(runs) / "run.json")
    fresh = RunFiles(project.workspace)
    with pytest.raises(StoreCorruptError, match=r"run\.json does not match its checksum"):
        fresh.record(RUN)
    assert fresh.readable_records() == []
    assert fresh.ids() == [RUN]
    assert [path.name for path, _ in fresh.damages(RUN)] == ["run.json"]


def test_a_run_without_its_record_is_damaged_and_no_run(runs, project):
    (folder_of(runs) / "run.json").unlink()
    fresh = RunFiles(project.workspace)
    assert fresh.ids() == []
    assert RUN not in fresh
    assert fresh.folders() == [RUN]
    assert [problem for _, problem in fresh.damages(RUN)] == ["is missing"]
    assert fresh.sweep(-1) == 0  # damage is not ours to hide
    assert fresh.folders() == [RUN]


def test_each_record_is_read_once(runs, project, monkeypatch):
    read = []
    monkeypatch.setattr(
        "embedcache.runs.files.read_document", lambda file: read.append(file) or read_document(file)
    )
    fresh = RunFiles(project.workspace)
    for _ in range(3):
        fresh.readable_records()
        fresh.record(RUN)
        fresh.answers(RUN)
    assert len(read) == 1


def test_removing_a_run_leaves_what_others_put_beside_it(runs):
    strange = folder_of(runs) / "thesis.txt"
    strange.write_text("mine")
    deep = folder_of(runs) / "figures" / "run.json"
    deep.parent.mkdir()
    deep.write_text("{}")
    runs.remove(RUN)
    files = sorted(path.name for path in folder_of(runs).rglob("*") if path.is_file())
    assert files == ["run.json", "thesis.txt"]
    assert RUN not in runs
    assert runs.folders() == runs.ids() == []


def test_removing_a_run_of_its_own_files_leaves_no_folder(runs):
    runs.remove(RUN)
    assert not folder_of(runs).exists()


def write_until(runs: RunFiles, name: str, monkeypatch) -> str:
    """Write a run up to a file and then be killed; return the run's name."""
    put = Location.put

    def put_or_die(self: Location, data: bytes) -> None:
        if self.name.startswith(name):
            raise KeyboardInterrupt
        put(self, data)

    request = made_request("killed")
    with monkeypatch.context() as patch:
        patch.setattr(Location, "put", put_or_die)
        with pytest.raises(KeyboardInterrupt):
            once(runs, request, lambda: Computed([made_predictions(1.0)]))
    return request.run_id


@pytest.mark.parametrize("name", ["predictions", "metrics", "run.json"])
def test_a_write_that_was_killed_is_no_run_and_is_swept_after_the_grace_time(
    runs, project, monkeypatch, name
):
    run_id = write_until(runs, name, monkeypatch)
    folder = Path(runs.folder / run_id)
    assert {"predictions": 1, "metrics": 2, "run.json": 3}[name] == len(list(folder.iterdir()))
    fresh = RunFiles(project.workspace)
    assert run_id not in fresh
    assert fresh.ids() == fresh.folders() == [RUN]
    assert fresh.is_marked(run_id)
    assert project.verify().findings == ()
    kind = RunsKind(fresh)
    assert kind.sweep(grace_s=60) == 0
    assert folder.exists()
    freed = sum(file.stat().st_size for file in folder.iterdir())
    assert kind.sweep(grace_s=-1) >= freed
    assert not folder.exists()
    assert fresh.ids() == [RUN]


def test_a_write_that_was_killed_beside_a_file_of_others_is_left_to_them(
    runs, project, monkeypatch
):
    run_id = write_until(runs, "run.json", monkeypatch)
    Path(runs.folder / run_id / "notes.txt").write_text("mine")
    assert RunsKind(RunFiles(project.workspace)).sweep(grace_s=-1) == 0
    assert Path(runs.folder / run_id / "notes.txt").exists()


def test_what_a_killed_write_left_in_a_file_of_its_own_is_swept(runs, project, monkeypatch):
    run_id = write_until(runs, "run.json", monkeypatch)
    temporaries = [Path(runs.folder / name / ".tmp-0123") for name in (run_id, RUN)]
    for file in temporaries:
        file.write_bytes(b"half a table")
    kind = RunsKind(RunFiles(project.workspace))
    assert kind.sweep(grace_s=60) == 0
    assert kind.sweep(grace_s=-1) > 2 * len("half a table")
    assert not temporaries[0].parent.exists()
    assert not temporaries[1].exists()
    assert list(runs.damages(RUN)) == []


@pytest.mark.parametrize("name", ["predictions", "metrics", "run.json"])
@pytest.mark.parametrize("grace_s", [-1, 0])
def test_a_run_that_is_being_written_is_never_swept(runs, project, monkeypatch, name, grace_s):
    put = Location.put
    swept = []

    def put_after_a_sweep(self: Location, data: bytes) -> None:
        if self.name.startswith(name):
            swept.append(RunFiles(project.workspace).sweep(grace_s))
        put(self, data)

    monkeypatch.setattr(Location, "put", put_after_a_sweep)
    outcome = once(runs, made_request(), lambda: Computed([made_predictions(1.0)]))
    assert swept == [0]
    assert list(RunFiles(project.workspace).damages(outcome.run_id)) == []


def test_a_writer_that_seemed_dead_takes_its_run_back(runs, project, monkeypatch):
    """As one of another machine, or one stopped for long, whose lock nobody sees."""
    monkeypatch.setattr("embedcache.files.durable._hold", lambda _: None)
    put = Location.put

    def put_after_a_sweep(self: Location, data: bytes) -> None:
        if self.name == "run.json":
            RunFiles(project.workspace).sweep(0)
        put(self, data)

    with monkeypatch.context() as patch:
        patch.setattr(Location, "put", put_after_a_sweep)
        with pytest.raises(StoreWriteError, match="took this write for a killed one's leftover"):
            once(runs, made_request(), lambda: Computed([made_predictions(1.0)]))
    assert RunFiles(project.workspace).folders() == [RUN]
    assert project.verify().findings == ()


def test_a_sweep_that_ends_between_a_writers_two_looks_is_seen(runs, project, monkeypatch):
    look = is_withdrawn

    def look_after_the_sweep(mark: Location) -> bool:
        for entry in mark.parent.list(hidden=True):
            if entry.name != "run.json":
                (mark.parent / entry.name).delete()
        return look(mark)

    with monkeypatch.context() as patch:
        patch.setattr("embedcache.runs.files.is_withdrawn", look_after_the_sweep)
        with pytest.raises(StoreWriteError, match="took this write for a killed one's leftover"):
            once(runs, made_request(), lambda: Computed([made_predictions(1.0)]))
    assert RunFiles(project.workspace).folders() == [RUN]


def test_a_copy_of_a_run_is_no_run_of_its_own(runs, project):
    for name in (f"backup-{RUN}", f"{RUN}-copy"):
        shutil.copytree(folder_of(runs), folder_of(runs).with_name(name))
    fresh = RunFiles(project.workspace)
    assert [record.run_id for record in fresh.readable_records()] == [RUN]
    with pytest.raises(StoreReadError, match=f"is the record of run '{RUN}'; a copy is no run"):
        fresh.record(f"backup-{RUN}")
    report = project.verify(repair=True)
    assert report.findings == ()
    assert [note.split(" ")[0].rpartition("/")[2] for note in report.notes] == [
        f"backup-{RUN}", f"{RUN}-copy"
    ]  # fmt: skip
    fresh.sweep(-1)
    assert all(
        (runs.folder / name / "run.json").exists() for name in (f"backup-{RUN}", f"{RUN}-copy")
    )


def test_tables_in_a_folder_with_another_name_than_a_run_are_nobodys(runs, project):
    backup = folder_of(runs).with_name("tables")
    backup.mkdir()
    for table in folder_of(runs).glob("*.parquet"):
        shutil.copy(table, backup)
    assert project.verify(repair=True).findings == ()
    assert len(list(backup.iterdir())) == 3


def test_what_a_killed_removal_left_is_swept(runs):
    (runs.folder / ".tmp-probe-e-111111111111" / "run.json").put(b"half gone")
    (runs.folder / ".tmp-0123").put(b"half a file")
    assert runs.sweep(60) == 0
    assert runs.sweep(-1) == len(b"half gone") + len(b"half a file")
    assert [entry.name for entry in runs.folder.list(hidden=True)] == [f"{RUN}/"]


def test_locks_that_nobody_holds_are_swept_and_those_held_are_not(project):
    runs = RunFiles(project.workspace)
    with pytest.raises(ZeroDivisionError, match="division"):
        once(runs, made_request("e"), lambda: 1 // 0)
    kind = RunsKind(runs)
    locks = [Path(runs.folder / f".lock-{made_request(name).run_id}") for name in "ef"]
    with runs.lock(made_request("f").run_id):
        assert [lock.exists() for lock in locks] == [True, True]
        kind.sweep(grace_s=-1)
        assert [lock.exists() for lock in locks] == [False, True]
    kind.sweep(grace_s=60)
    assert locks[1].exists()
    kind.sweep(grace_s=-1)
    assert not locks[1].exists()


def test_a_run_that_is_made_leaves_no_lock(project):
    runs = RunFiles(project.workspace)
    once(runs, made_request(), lambda: Computed([made_predictions(1.0)]))
    assert [entry.name for entry in runs.folder.list(hidden=True)] == [f"{made_request().run_id}/"]


def test_folders_that_are_no_runs_are_listed_by_nobody(runs, project):
    for name in ("later.d/notes.txt", "empty/predictions.txt", "a/b/run.json"):
        file = Path(runs.folder) / name
        file.parent.mkdir(parents=True)
        file.write_text("{}")
    (Path(runs.folder) / "stray.parquet").write_bytes(b"x")
    fresh = RunFiles(project.workspace)
    assert fresh.ids() == fresh.folders() == [RUN]
    assert [item.name for item in RunsKind(fresh).items()] == [RUN]
    RunsKind(fresh).sweep(grace_s=-1)
    assert (Path(runs.folder) / "a/b/run.json").exists()
    assert (Path(runs.folder) / "stray.parquet").exists()


def test_temporaries_in_folders_that_are_no_runs_are_somebodys_own(runs, project):
    file = Path(runs.folder) / "backup" / ".tmp-notes"
    file.parent.mkdir()
    file.write_text("mine")
    RunsKind(RunFiles(project.workspace)).sweep(grace_s=-1)
    assert file.exists()


def test_a_run_that_was_made_again_since_its_damage_was_seen_is_not_removed(runs, project):
    file = table_file(runs, "metrics")
    data = file.read_bytes()
    flip(file)
    kind = RunsKind(RunFiles(project.workspace))
    [item] = kind.items()
    assert list(kind.check(item))
    file.write_bytes(data)
    assert kind.mend(item).message == f"run {RUN} is whole by now"
    assert file.exists()


def test_a_run_whose_mark_cannot_be_removed_exists_all_the_same(runs, project, monkeypatch):
    def refuse(backend, name):
        raise StoreWriteError(f"{name}: refused")

    monkeypatch.setattr(LocalBackend, "delete", refuse)
    request = made_request("late")
    record = runs.write(made_record(request), answers=[made_predictions(1.0)])
    assert RunFiles(project.workspace).is_marked(record.run_id)
    assert list(RunFiles(project.workspace).damages(record.run_id)) == []


def test_a_mark_that_was_left_beside_a_record_is_swept_so_that_its_loss_is_seen(runs):
    mark = folder_of(runs) / ".writing"
    mark.write_bytes(b"")
    kind = RunsKind(runs)
    kind.sweep(grace_s=60)
    assert mark.exists()  # it may be of a write under way
    kind.sweep(grace_s=-1)
    assert not mark.exists()
    assert len(runs.answers(RUN)) == 1
    (folder_of(runs) / "run.json").unlink()
    assert runs.folders() == [RUN]
