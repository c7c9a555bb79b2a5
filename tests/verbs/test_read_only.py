"""A store that can only be read: what is there already is found, and nothing else is promised."""

from __future__ import annotations

import shutil

import platformdirs
import pytest

import embedcache
from embedcache.errors import StoreWriteError
from embedcache.files import durable
from embedcache.files.backend import LocalBackend, Location
from embedcache.testing import MemoryBackend, write_cohort


class ReadOnly(MemoryBackend):
    """A storage that refuses every change."""

    def refuse(self, *_: object) -> None:
        raise StoreWriteError("Read-only file system")

    put = replace = delete = refuse


@pytest.fixture
def sealed(probed, monkeypatch):
    """The probed project after its disk was mounted to be read only, its catalog gone."""
    probed.workspace.catalog.unlink()

    def refuse(path, *_, **__):
        raise StoreWriteError(f"{path}: Read-only file system")

    def no_lock(*_, **__):
        raise OSError(30, "Read-only file system")

    for name in ("put", "replace", "delete"):
        monkeypatch.setattr(LocalBackend, name, refuse)
    monkeypatch.setattr(durable, "_write_temporary", refuse)
    monkeypatch.setattr(shutil, "copyfile", no_lock)
    monkeypatch.setattr("embedcache.verbs.catalog.update", refuse)
    monkeypatch.setattr("fcntl.flock", no_lock)
    return embedcache.open(probed.workspace.manifest)


def test_what_is_stored_is_found_again(sealed):
    assert sealed.probe("pixels")[0].was_cached
    assert sealed.folds()[0].n_folds == 5
    assert sealed.extract("pixels").tallies[0].n_cached == 132


def test_what_has_to_be_stored_is_refused(sealed):
    with pytest.raises(StoreWriteError, match="Read-only file system"):
        sealed.probe("pixels", probe="knn")
    with pytest.raises(StoreWriteError, match="Read-only file system"):
        sealed.extract("random:timm:test_resnet")
    with pytest.raises(StoreWriteError, match="Read-only file system"):
        sealed.index()


def test_a_storage_elsewhere_that_refuses_writes_answers_too(tmp_path, monkeypatch):
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda _: tmp_path / "cache")
    write_cohort(tmp_path / "data", cohorts=("home", "abroad"))
    writable = MemoryBackend()
    project = embedcache.open(tmp_path / "data", store=Location(writable, "bucket"))
    project.extract("pixels")
    project.probe("pixels", n_resamples=100)
    backend = ReadOnly()
    backend.files = writable.files
    project = embedcache.open(tmp_path / "data", store=Location(backend, "bucket"))
    assert project.probe("pixels", n_resamples=100)[0].was_cached
    assert project.extract("pixels").tallies[0].n_cached == 132
