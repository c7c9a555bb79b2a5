from __future__ import annotations

import errno
import os

import pyarrow as pa
import pytest

from embedcache.errors import StoreCorruptError, StoreWriteError
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
    durable.publish(tmp_path / "file", b"data")
    with pytest.raises(FileExistsError):
        durable.publish(tmp_path / "file", b"other")
    assert (tmp_path / "file").read_bytes() == b"data"


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


def test_a_document_carries_its_checksum(tmp_path):
    path = tmp_path / "d.json"
    path.write_bytes(durable.seal_document({"b": 1, "a": ["ü", None]}))
    assert durable.read_document(path) == {"a": ["ü", None], "b": 1}
    path.write_text(path.read_text().replace('"b": 1', '"b": 2'))
    with pytest.raises(StoreCorruptError, match=r"d\.json does not match its checksum"):
        durable.read_document(path)


@pytest.mark.parametrize("text", ["", "{", "[1]", "{}", "null"])
def test_what_is_no_sealed_document_is_damage(tmp_path, text):
    path = tmp_path / "d.json"
    path.write_text(text)
    with pytest.raises(StoreCorruptError, match="does not match its checksum"):
        durable.read_document(path)
    with pytest.raises(StoreCorruptError, match="is missing"):
        durable.read_document(tmp_path / "nowhere.json")


def test_any_flipped_bit_in_a_table_is_found(tmp_path):
    path = durable.publish_table(tmp_path, "t", pa.table({"x": [1, 2, 3]}))
    data = path.read_bytes()
    assert durable.read_table(path).to_pydict() == {"x": [1, 2, 3]}
    assert durable.table_stem(path) == "t"
    assert durable.find_table(tmp_path, "t") == path
    for position in range(0, len(data), 7):
        broken = bytearray(data)
        broken[position] ^= 1 << (position % 8)
        path.write_bytes(broken)
        with pytest.raises(StoreCorruptError, match="does not match the checksum in its name"):
            durable.read_table(path)


def test_publishing_an_equal_table_again_is_no_error(tmp_path):
    table = pa.table({"x": ["a"]})
    assert durable.publish_table(tmp_path, "t", table) == durable.publish_table(
        tmp_path, "t", table
    )


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
