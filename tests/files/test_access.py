"""What is written holds patients' ids: others than its owner, and a group that may, read none."""

import os
import stat

import pytest

import embedcache
from embedcache.files import durable
from embedcache.testing import write_cohort

OTHERS = stat.S_IRWXO
GROUP = stat.S_IRWXG


@pytest.fixture(autouse=True)
def _usual_umask():
    before = os.umask(0o022)
    yield
    os.umask(before)


def modes(folder):
    return {path: path.stat().st_mode for path in (folder, *folder.rglob("*"))}


def test_a_store_is_its_owners_alone(tmp_path):
    write_cohort(tmp_path)
    project = embedcache.open(tmp_path)
    project.extract("pixels")
    project.probe("pixels", controls=False)
    project.sql("SELECT 1")
    store = modes(tmp_path / ".embedcache")
    assert len(store) > 20
    assert not {path: mode for path, mode in store.items() if mode & (GROUP | OTHERS)}


def test_a_shared_store_is_read_by_its_group_and_written_by_none(tmp_path):
    write_cohort(tmp_path)
    project = embedcache.open(tmp_path)
    project.extract("pixels", shared=True)
    for path, mode in modes(tmp_path / ".embedcache").items():
        wanted = 0o750 if path.is_dir() else 0o640
        assert stat.S_IMODE(mode) == wanted, path


def test_sharing_a_store_that_is_there_says_what_to_type(tmp_path):
    write_cohort(tmp_path)
    project = embedcache.open(tmp_path)
    project.extract("pixels")
    messages = []
    project.extract("pixels", shared=True, on_message=messages.append)
    assert any("run `chmod -R g+rX" in message for message in messages)


def test_exports_and_manifests_are_closed_to_others_and_old_files_keep_their_mode(tmp_path):
    tmp_path.chmod(0o755)
    write_cohort(tmp_path)
    project = embedcache.open(tmp_path)
    project.extract("pixels")
    old = tmp_path / "old.parquet"
    old.touch()
    old.chmod(0o666)
    for file in (*project.export("pixels", tmp_path / "new.npy"), *project.export("pixels", old)):
        assert stat.S_IMODE(file.stat().st_mode) == (0o666 if file == old else 0o640), file
    durable.replace(tmp_path / "deep" / "data_manifest.csv", b"x")
    assert stat.S_IMODE((tmp_path / "deep").stat().st_mode) == 0o750
    assert stat.S_IMODE((tmp_path / "deep" / "data_manifest.csv").stat().st_mode) == 0o640


def test_the_umask_is_respected(tmp_path):
    os.umask(0o077)
    durable.publish(tmp_path / "deep" / "file", b"x")
    assert not any(mode & (GROUP | OTHERS) for mode in modes(tmp_path / "deep").values())


def test_without_hard_links_a_file_is_as_closed(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", refuse)
    durable.publish(tmp_path / "file", b"x")
    assert not (tmp_path / "file").stat().st_mode & OTHERS
