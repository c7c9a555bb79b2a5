"""`gc`: what no manifest wants goes, and nothing else."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from edits import add_column, flip, rewrite_manifest, tally

import embedcache
from embedcache.data.claims import claim_files, put_claim
from embedcache.errors import StoreMismatchError, StoreReadError, StoreWriteError
from embedcache.extract import lane
from embedcache.files.backend import LocalBackend
from embedcache.store import care, layout
from embedcache.store.embedding_store import EmbeddingStore
from embedcache.testing import write_cohort
from embedcache.verbs.session import Session


def test_gc_drops_what_the_manifest_no_longer_wants_and_nothing_else(project):
    project.extract("pixels")
    kept = project.embeddings("pixels", where="cohort = 'home'")
    rewrite_manifest(project, lambda lines: [line for line in lines if ",home," in line])
    assert project.gc(dry_run=True).n_rows == 60
    assert project.status().encoders[0].n_spare == 60
    report = project.gc(grace_s=-1)
    assert report.n_rows == 60
    assert report.freed_bytes > 60 * 1024
    assert project.status().encoders[0].n_spare == 0
    assert np.array_equal(project.embeddings("pixels").X, kept.X)
    assert project.verify().findings == ()


def test_gc_touches_nothing_in_a_folder_that_is_no_store(project, tmp_path):
    folder = tmp_path / "documents"
    folder.mkdir()
    (folder / ".tmp-draft").write_text("mine")
    (folder / "letter.txt").write_text("mine")
    strange = embedcache.open(manifest=project.workspace.manifest, store=folder)
    with pytest.raises(StoreMismatchError, match="documents: no store: it holds none of"):
        strange.gc(grace_s=-1)
    assert sorted(file.name for file in folder.iterdir()) == [".tmp-draft", "letter.txt"]


def test_images_in_a_folder_whose_path_is_not_utf8_are_extracted_and_cleaned_up(tmp_path):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/d\xff"))
    write_cohort(folder, cohorts=("home",))
    strange = embedcache.open(folder, store=tmp_path / "store")
    assert strange.extract("pixels").tallies[0].n_written == 72
    assert strange.gc(grace_s=-1).notes == ()
    assert strange.gc(grace_s=-1).n_undecided == 0


def test_a_claim_that_cannot_be_read_keeps_rows_and_stops_nothing(project, monkeypatch):
    project.extract("pixels")
    file = put_claim(project.workspace, path="other.csv", images="0")
    rewrite_manifest(project, lambda lines: [line for line in lines if ",home," in line])
    read = LocalBackend.read

    def refuse(self, name, *arguments, **options):
        if name == file.path:
            raise StoreReadError(f"{name}: Input/output error")
        return read(self, name, *arguments, **options)

    monkeypatch.setattr(LocalBackend, "read", refuse)
    report = project.gc(grace_s=-1)
    assert (report.n_rows, report.n_undecided) == (0, 60)
    assert project.extract("pixels").tallies[0].n_cached == 72


def test_gc_keeps_what_another_manifest_of_the_same_store_wants(project, tmp_path):
    project.extract("pixels")
    lines = project.workspace.manifest.read_text().splitlines(keepends=True)
    (tmp_path / "small.csv").write_text("".join(lines[:5]))
    small = embedcache.open(tmp_path, manifest=tmp_path / "small.csv")
    small.extract("pixels")
    assert small.gc(grace_s=-1).n_rows == 0
    assert project.status().encoders[0].n_held == 132


def test_gc_spares_what_another_project_of_the_same_store_wants(project, tmp_path_factory):
    project.extract("pixels")
    write_cohort(tmp_path_factory.mktemp("other"), n_patients=6, seed=1)
    folder = tmp_path_factory.getbasetemp() / "other0"
    other = embedcache.open(folder, store=project.workspace.store)
    other.extract("pixels")
    assert other.gc(dry_run=True).n_rows == 0
    assert project.gc(dry_run=True).n_rows == 0


@pytest.fixture
def other(project, tmp_path_factory):
    """Another project of the same store, with images of its own, which has yet to encode them."""
    folder = tmp_path_factory.mktemp("other")
    write_cohort(folder, n_patients=6, seed=1)
    return embedcache.open(folder, store=project.workspace.store)


@pytest.fixture
def while_gc_waits(project, monkeypatch):
    """Let something happen when `gc` asks for the lock of a store."""
    lock = EmbeddingStore.lock

    def happens(event):
        @contextlib.contextmanager
        def waiting(store, *arguments):
            with monkeypatch.context() as patch:
                patch.setattr(EmbeddingStore, "lock", lock)
                event()
            with lock(store, *arguments):
                yield

        monkeypatch.setattr(EmbeddingStore, "lock", waiting)

    return happens


def test_gc_that_waits_for_a_pass_of_another_project_spares_its_rows(
    project, other, while_gc_waits
):
    project.extract("pixels")
    while_gc_waits(lambda: other.extract("pixels"))
    assert project.gc(grace_s=-1).n_rows == 0
    assert {encoder.n_missing for encoder in other.status().encoders} == {0}


def test_gc_that_waits_for_a_pass_of_its_own_manifest_spares_its_rows(project, while_gc_waits):
    lines = project.workspace.manifest.read_text().splitlines(keepends=True)
    project.workspace.manifest.write_text("".join(lines[:50]))
    project.extract("pixels")

    def edit_and_extract():
        project.workspace.manifest.write_text("".join(lines))
        project.extract("pixels")

    while_gc_waits(edit_and_extract)
    assert project.gc(grace_s=-1).n_rows == 0
    assert len(project.embeddings("pixels").X) == 132


def test_gc_says_what_it_waits_for(project):
    project.extract("pixels")
    [store] = Session(project.workspace).stores()
    waiting = threading.Event()
    notes = []

    def told(message):
        notes.append(message)
        waiting.set()

    cleaning = threading.Thread(target=project.gc, kwargs={"on_message": told})
    with store.lock():
        cleaning.start()
        assert waiting.wait(60)
    cleaning.join()
    assert notes == ["another process is working on 'pixels'; waiting for it to end"]


def test_gc_during_the_pass_of_a_shard_spares_what_it_has_stored(project, other, monkeypatch):
    project.extract("pixels")
    append, dropped = EmbeddingStore.append, []

    def append_and_gc(self, *arguments, **settings):
        append(self, *arguments, **settings)
        dropped.append(project.gc(grace_s=-1).n_rows)

    monkeypatch.setattr(EmbeddingStore, "append", append_and_gc)
    other.extract("pixels", shard=(1, 2))
    assert dropped == [0]
    monkeypatch.undo()
    assert project.gc(grace_s=-1).n_rows == 0


def killed_after(monkeypatch, project, n_commits, **settings):
    """Extract until some commits are there, then stop as a kill would: nothing is put away."""
    append, commits = EmbeddingStore.append, []

    def append_or_die(self, *arguments, **named):
        if len(commits) == n_commits:
            raise StoreWriteError("killed")
        commits.append(append(self, *arguments, **named))

    with monkeypatch.context() as patch:
        patch.setattr(lane, "COMMIT_ROWS", 8)
        patch.setattr(EmbeddingStore, "append", append_or_die)
        with pytest.raises(StoreWriteError, match="killed"):
            project.extract("pixels", batch_size=8, **settings)


def n_held(project) -> int:
    return project.status().encoders[0].n_held


@pytest.mark.parametrize("settings", [{}, {"shard": (1, 2)}], ids=["whole", "shard"])
def test_gc_spares_the_rows_of_a_killed_pass_of_another_manifest(
    project, other, monkeypatch, settings
):
    project.extract("pixels")
    killed_after(monkeypatch, other, 2, **settings)
    before = n_held(other)
    assert before >= 16
    rewrite_manifest(project, lambda lines: lines[:30])
    for dry_run in (True, False):
        report = project.gc(grace_s=0, dry_run=dry_run)
        assert (report.n_rows, report.n_undecided) == (0, before + 102)
        [note] = report.notes
        assert f"a pass over {other.workspace.manifest} has not ended" in note
    assert n_held(other) == before
    other.extract("pixels")
    assert project.gc(grace_s=0).n_rows == 102
    assert n_held(other) == 36
    assert claim_files(project.workspace) == []


def test_a_killed_pass_of_an_earlier_manifest_is_settled_by_the_next_pass(project, monkeypatch):
    lines = project.workspace.manifest.read_text().splitlines(keepends=True)
    killed_after(monkeypatch, project, 2)
    project.workspace.manifest.write_text("".join(lines[:4]))
    assert project.gc(grace_s=0).n_undecided == n_rows(project) - 3
    project.extract("pixels")
    assert project.gc(grace_s=0).n_undecided == 0
    assert n_rows(project) == 3


def n_rows(project) -> int:
    return len(Session(project.workspace).stores()[0])


def test_the_claim_of_a_pass_over_the_same_images_keeps_nothing(project, monkeypatch):
    project.extract("pixels")
    rewrite_manifest(project, lambda lines: lines[:30])
    project.extract("pixels", shard=(1, 2))
    assert len(claim_files(project.workspace)) == 1
    assert project.gc(grace_s=0).n_rows == 102


def test_gc_keeps_what_it_cannot_decide_where_images_are_not_reachable(project, command):
    project.extract("pixels")
    images = project.workspace.data_root / "images"
    images.rename(images.with_name("unmounted"))
    rewrite_manifest(project, lambda lines: [x.replace("images/", "scans/") for x in lines])
    report = project.gc(grace_s=0)
    assert (report.n_rows, report.n_undecided) == (0, 132)
    [note] = report.notes
    assert note.startswith("132 rows stay: the digest of 132 images of ")
    assert "cannot be known now, first 'scans/" in note
    result = command("gc", "--grace", "0")
    assert result.code == 0
    assert result.err.startswith("note: 132 rows stay: ")
    images.with_name("unmounted").rename(images.with_name("scans"))
    assert tally(project.extract("pixels")) == (132, 132, 0, 0)
    assert project.gc(grace_s=0).n_undecided == 0


def test_gc_keeps_what_another_manifest_cannot_name_now(project, other):
    project.extract("pixels")
    images = other.workspace.data_root / "images"
    images.rename(images.with_name("unmounted"))
    other.extract("pixels")
    rewrite_manifest(project, lambda lines: lines[:30])
    report = project.gc(grace_s=0)
    assert (report.n_rows, report.n_undecided) == (0, 102)
    assert {encoder.n_held for encoder in other.status().encoders} == {0}
    assert str(other.workspace.manifest) in report.notes[0]
    images.with_name("unmounted").rename(images)
    other.extract("pixels")
    assert project.gc(grace_s=0).n_rows == 102


def test_a_digest_that_the_manifest_states_decides_though_the_file_is_another(project):
    project.extract("pixels")
    keys = Session(project.workspace).images.keys
    add_column(project.workspace.data_root, "sha256", lambda lines: keys)
    first = project.workspace.data_root / project.images()["path"][0].as_py()
    first.write_bytes(b"another file")
    assert (project.gc(grace_s=0).n_rows, project.gc(grace_s=0).n_undecided) == (0, 0)
    assert n_rows(project) == 132


def test_gc_drops_nothing_while_a_snapshot_is_damaged_or_was_removed(project, other):
    other.extract("pixels")
    [snapshot] = Path(project.workspace.manifests).glob("*.parquet")
    project.extract("pixels")
    rewrite_manifest(project, lambda lines: lines[:30])
    flip(snapshot)
    assert project.gc(grace_s=0).n_undecided == 102 + 36
    project.verify(repair=True)
    assert not snapshot.exists()
    assert project.gc(grace_s=0).n_undecided == 102 + 36
    other.extract("pixels")  # which remembers the same again
    assert project.gc(grace_s=0).n_rows == 102
    assert n_held(other) == 36


def test_a_damaged_encoder_costs_gc_that_encoder(project, command):
    project.extract("pixels")
    project.extract("pixels", preprocess="crop")
    first, second = project.workspace.encoder_folders()
    flip(first / "encoder.json")
    rewrite_manifest(project, lambda lines: lines[:30])
    result = command("gc", "--grace", "0")
    assert (result.code, result.out.split(",")[0]) == (0, "102 rows dropped")
    assert f"note: {first.name} is left as it is: " in result.err
    assert len(EmbeddingStore(second)) == 30


def test_a_lost_row_that_nobody_wants_any_more_is_forgotten(project):
    project.extract("pixels")
    [store] = Session(project.workspace).stores()
    flip(layout.segment_folder(store.folder, store.records[0].id) / "c" / "0" / "0")
    care.mend_store(store.folder)
    [lost] = EmbeddingStore(store.folder).lost
    number = Session(project.workspace).images.keys.index(lost)
    rewrite_manifest(project, lambda lines: lines[:number] + lines[number + 1 :])
    assert len(project.verify().findings) == 1
    project.gc(grace_s=0)
    assert project.verify().findings == ()
