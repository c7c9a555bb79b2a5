"""`gc`: what no manifest wants goes, and nothing else."""

from __future__ import annotations

import numpy as np
from edits import rewrite_manifest

import embedcache
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
