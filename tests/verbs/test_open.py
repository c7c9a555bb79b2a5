"""Opening a project: which manifest, which store, and what is refused."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

import embedcache
from embedcache.errors import ManifestError, StoreMismatchError, StoreWriteError
from embedcache.files.documents import seal


def test_without_the_images_a_laptop_probes_what_was_copied(project, tmp_path):
    project.extract("pixels")
    expected = project.embeddings("pixels").X
    shutil.rmtree(tmp_path / "images")
    with_manifest = embedcache.open(tmp_path)
    assert np.array_equal(with_manifest.embeddings("pixels").X, expected)
    (tmp_path / "data_manifest.csv").unlink()
    bare = embedcache.open(tmp_path)
    assert np.array_equal(bare.embeddings("pixels").X, expected)
    assert not bare.probe("pixels")[0].was_cached
    assert bare.status().n_images == 132


def test_a_store_of_another_format_version_is_refused(project):
    project.extract("pixels")
    document = {"format": "embedcache", "version": 99, "created": "x"}
    project.workspace.format_file.replace(seal(document))
    with pytest.raises(
        StoreMismatchError, match="format version 99, this release reads versions 1, 2"
    ):
        project.extract("pixels")
    with pytest.raises(StoreMismatchError, match="format version 99"):
        project.status()


def test_the_manifest_may_be_named_itself_and_the_store_be_elsewhere(project, tmp_path):
    file = project.workspace.manifest.rename(tmp_path / "mine.csv")
    elsewhere = embedcache.open(file, store=tmp_path / "store")
    elsewhere.extract("pixels")
    assert (tmp_path / "store" / "encoders").is_dir()
    with pytest.raises(
        ManifestError, match=r"data_manifest\.csv: no such manifest; write one with"
    ):
        embedcache.open(tmp_path)


def test_the_store_is_beside_the_manifest_whatever_the_current_folder(
    project, monkeypatch, tmp_path_factory
):
    project.extract("pixels")
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    other = embedcache.open(manifest=project.workspace.manifest)
    assert other.workspace.store == project.workspace.store
    with pytest.raises(ManifestError, match="typo: no such folder or manifest"):
        embedcache.open(project.workspace.manifest.parent / "typo")


def test_a_store_that_cannot_remember_digests_can_be_asked(project, monkeypatch):
    project.extract("pixels")
    refused = []

    def refuse(path, data):
        refused.append(path)
        raise StoreWriteError(f"{path}: Read-only file system")

    monkeypatch.setattr("embedcache.files.digests.RACY_WINDOW_NS", 0)
    monkeypatch.setattr("embedcache.files.digests.replace", refuse)
    assert project.sql("SELECT count(*) AS n FROM embeddings")["n"].to_pylist() == [
        len(project.images())
    ]
    assert refused


def test_a_file_is_no_store(project, tmp_path):
    (tmp_path / "afile").touch()
    with pytest.raises(StoreMismatchError, match="afile: a file, not a store's; name a folder"):
        embedcache.open(tmp_path, store=tmp_path / "afile")
