"""Every verb over a storage that has no files, folders, locks or renames: the seam holds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import platformdirs
import pytest

import embedcache
from embedcache.errors import StoreCorruptError
from embedcache.files.backend import Location
from embedcache.project import Project
from embedcache.testing import MemoryBackend, write_cohort


@pytest.fixture
def elsewhere(tmp_path, monkeypatch) -> Project:
    """Twelve patients at home, ten abroad, their store in memory; encoded and probed."""
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda _: tmp_path / "cache")
    write_cohort(tmp_path / "data", cohorts=("home", "abroad"))
    project = embedcache.open(tmp_path / "data", store=Location(MemoryBackend(), "bucket"))
    project.extract("pixels")
    project.probe("pixels", n_resamples=100)
    return project


def files_of(project: Project) -> MemoryBackend:
    return project.workspace.store.backend


def test_a_probe_in_memory_is_the_probe_on_disk(elsewhere, tmp_path):
    on_disk = embedcache.open(tmp_path / "data")
    on_disk.extract("pixels")
    on_disk.probe("pixels", n_resamples=100)
    assert np.array_equal(elsewhere.embeddings("pixels").X, on_disk.embeddings("pixels").X)
    query = "SELECT * EXCLUDE (created, seconds) FROM metrics JOIN runs USING (run_id) ORDER BY ALL"
    assert str(elsewhere.sql(query).to_pylist()) == str(on_disk.sql(query).to_pylist())
    names = {entry.name.split("/")[0] for entry in elsewhere.workspace.store.list(deep=True)}
    assert names == {"embedcache.json", "encoders", "folds", "manifests", "runs"}


def test_what_must_be_a_file_lies_in_the_cache_of_this_machine(elsewhere, tmp_path):
    workspace = elsewhere.workspace
    assert workspace.catalog.is_file()
    assert workspace.catalog.is_relative_to(tmp_path / "cache" / "stores")
    assert not list((tmp_path / "data").glob(".embedcache"))
    other = embedcache.open(tmp_path / "data", store=Location(MemoryBackend(), "another"))
    assert other.workspace.local != workspace.local


def test_every_reading_verb_answers(elsewhere, tmp_path):
    assert elsewhere.verify().findings == ()
    assert elsewhere.sql("SELECT count(*) AS n FROM predictions")["n"][0].as_py() > 100
    (encoder,) = elsewhere.status().encoders
    assert (encoder.n_held, encoder.n_missing) == (132, 0)
    assert elsewhere.plan("pixels")[0].n_misses == 0
    assert elsewhere.export("pixels", tmp_path / "rows.parquet")
    again = embedcache.open(tmp_path / "data", store=elsewhere.workspace.store)
    (outcome,) = again.probe("pixels", n_resamples=100)
    assert outcome.was_cached


def test_gc_drops_what_no_manifest_wants(elsewhere):
    manifest = elsewhere.workspace.manifest
    manifest.write_text("".join(manifest.read_text().splitlines(keepends=True)[:101]))
    assert elsewhere.gc(grace_s=-1).n_rows == 32
    assert len(elsewhere.embeddings("pixels").X) == 100
    assert elsewhere.verify().findings == ()


@pytest.mark.parametrize("harm", ["cut", "flip", "delete"])
def test_harm_to_any_name_is_found_and_mended(elsewhere, harm):
    elsewhere.gc(grace_s=-1)
    backend, expected = files_of(elsewhere), elsewhere.embeddings("pixels").X
    pristine = dict(backend.files)
    for name, (data, _) in pristine.items():
        backend.files = dict(pristine)
        flipped = bytearray(data)
        flipped[len(data) // 2] ^= 16
        if harm == "delete":
            backend.delete(name)
        else:
            backend.replace(name, bytes(flipped) if harm == "flip" else data[: len(data) // 2])
        assert elsewhere.verify().findings, name
        assert elsewhere.verify(repair=True).repaired
        if "/runs/" in name:
            elsewhere.probe("pixels", n_resamples=100)
        assert elsewhere.verify().findings == (), name
        assert np.array_equal(elsewhere.embeddings("pixels").X, expected)


def test_a_damaged_chunk_is_an_error_of_one_line_that_names_it(elsewhere):
    backend = files_of(elsewhere)
    name = next(name for name in backend.files if name.endswith("c/0/0"))
    data = bytearray(backend.read(name))
    data[7] ^= 1
    backend.replace(name, bytes(data))
    with pytest.raises(StoreCorruptError, match=rf"memory:{name} does not match its checksum"):
        elsewhere.embeddings("pixels")


def test_a_folder_is_still_the_usual_store(tmp_path):
    write_cohort(tmp_path)
    project = embedcache.open(tmp_path)
    assert Path(project.workspace.store) == tmp_path / ".embedcache"
    assert project.workspace.local == tmp_path / ".embedcache"
