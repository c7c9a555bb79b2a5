"""`gc`: what no manifest wants goes, and nothing else."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from edits import rewrite_manifest

import embedcache
from embedcache.store.embedding_store import EmbeddingStore
from embedcache.testing import write_cohort


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


def test_gc_that_waits_for_a_pass_of_another_project_spares_its_rows(project, other, monkeypatch):
    project.extract("pixels")
    lock = EmbeddingStore.lock

    @contextlib.contextmanager
    def waiting(store, *arguments):
        if arguments:  # of a pass, which says what it waits for
            with lock(store, *arguments):
                yield
            return
        other.extract("pixels")
        with lock(store):
            yield

    monkeypatch.setattr(EmbeddingStore, "lock", waiting)
    assert project.gc(grace_s=-1).n_rows == 0
    assert {encoder.n_missing for encoder in other.status().encoders} == {0}


def test_gc_that_waits_for_a_pass_of_its_own_manifest_spares_its_rows(project, monkeypatch):
    lines = project.workspace.manifest.read_text().splitlines(keepends=True)
    project.workspace.manifest.write_text("".join(lines[:50]))
    project.extract("pixels")
    lock = EmbeddingStore.lock

    @contextlib.contextmanager
    def waiting(store, *arguments):
        if not arguments:
            project.workspace.manifest.write_text("".join(lines))
            project.extract("pixels")
        with lock(store, *arguments):
            yield

    monkeypatch.setattr(EmbeddingStore, "lock", waiting)
    assert project.gc(grace_s=-1).n_rows == 0
    assert len(project.embeddings("pixels").X) == 132


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
