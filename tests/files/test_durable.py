from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from embedcache.errors import StoreWriteError
from embedcache.files import durable


def test_publish_writes_once_and_never_over(tmp_path):
    path = tmp_path / "deep" / "file"
    durable.publish(path, b"first")
    with pytest.raises(FileExistsError):
        durable.publish(path, b"second")
    assert path.read_bytes() == b"first"
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_publish_works_where_hard_links_do_not(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    seen = []
    rename = Path.replace
    # What a reader sees while the file gets its name: never a part of it.
    monkeypatch.setattr(
        Path, "replace", lambda *paths: seen.append(paths[1].exists()) or rename(*paths)
    )
    durable.publish(tmp_path / "file", b"data")
    with pytest.raises(FileExistsError):
        durable.publish(tmp_path / "file", b"other")
    assert (tmp_path / "file").read_bytes() == b"data"
    assert seen == [False]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_refused_write_leaves_nothing_and_says_the_way_out(tmp_path, monkeypatch, code):
    def refuse(_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", refuse)
    way_out = "free some space" if code == errno.ENOSPC else "writable"
    with pytest.raises(StoreWriteError, match=way_out):
        durable.publish(tmp_path / "file", b"data")
    with pytest.raises(StoreWriteError, match="everything finished before is safe"):
        durable.replace(tmp_path / "file", b"data")
    assert list(tmp_path.iterdir()) == []


def test_ids_sort_by_time_and_differ():
    ids = [durable.new_id() for _ in range(100)]
    assert len(set(ids)) == 100
    assert [one[:21] for one in ids] == sorted(one[:21] for one in ids)


def test_a_replaced_file_keeps_its_permissions(tmp_path):
    file = tmp_path / "data_manifest.csv"
    durable.replace(file, b"old")
    file.chmod(0o640)
    durable.replace(file, b"new")
    assert file.read_bytes() == b"new"
    assert file.stat().st_mode & 0o777 == 0o640


def test_every_folder_that_is_made_is_flushed_with_the_one_it_lies_in(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr(durable, "fsync", flushed.append)
    durable.make_folder(tmp_path / "a" / "b")
    assert flushed == [tmp_path, tmp_path / "a"]
    durable.make_folder(tmp_path / "a" / "b")
    assert len(flushed) == 2


def test_a_file_where_a_folder_has_to_be_is_a_refused_write_not_a_taken_name(tmp_path):
    (tmp_path / "a").write_bytes(b"a file")
    with pytest.raises(StoreWriteError, match="Not a directory"):
        durable.publish(tmp_path / "a" / "b", b"data")


def test_a_folder_that_is_swept_before_its_first_file_is_made_anew(tmp_path, monkeypatch):
    make_folder, swept = durable.make_folder, []

    def swept_once(folder, **mode):
        make_folder(folder, **mode)
        if not swept:
            swept.append(folder.rmdir())

    monkeypatch.setattr(durable, "make_folder", swept_once)
    durable.replace(tmp_path / "run" / ".writing", b"host")
    assert (tmp_path / "run" / ".writing").read_bytes() == b"host"
    assert swept
