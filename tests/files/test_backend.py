"""What every storage backend must keep to, held against the disk and against one in memory."""

from __future__ import annotations

import errno
import io
import os
import threading
import time
from pathlib import Path

import pytest

from embedcache.errors import StoreReadError, StoreWriteError
from embedcache.files import durable
from embedcache.files.backend import LocalBackend, Location, on_disk
from embedcache.files.kinds import GRACE_S, Ages, size_of, sweep_temporaries
from embedcache.files.locks import locked
from embedcache.files.marks import put_mark
from embedcache.testing import MemoryBackend


@pytest.fixture(params=["disk", "memory"])
def backend(request, tmp_path):
    return LocalBackend(tmp_path / "store") if request.param == "disk" else MemoryBackend()


def names(backend, folder: str = "", *, deep: bool = False) -> list[str]:
    return [entry.name for entry in backend.list(folder, deep=deep)]


class TestBackend:
    """The five calls."""

    def test_what_is_put_is_read_back_and_never_written_over(self, backend):
        backend.put("a/b/c", b"first")
        with pytest.raises(FileExistsError):
            backend.put("a/b/c", b"second")
        assert backend.read("a/b/c") == b"first"
        assert names(backend, deep=True) == ["a/b/c"]

    def test_replacing_creates_or_replaces(self, backend):
        backend.replace("a/b", b"first")
        backend.replace("a/b", b"second")
        assert backend.read("a/b") == b"second"
        assert names(backend, "a") == ["b"]

    def test_of_many_writers_of_one_name_one_wins_whole(self, backend):
        contents = [bytes([number]) * 100_000 for number in range(8)]
        winners, start = [], threading.Barrier(len(contents))

        def write(data: bytes) -> None:
            start.wait()
            try:
                backend.put("folder/name", data)
                winners.append(data)
            except FileExistsError:
                pass

        threads = [threading.Thread(target=write, args=(data,)) for data in contents]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert winners == [backend.read("folder/name")]
        assert names(backend, deep=True) == ["folder/name"]

    def test_a_listing_has_names_sizes_and_folders_in_order(self, backend):
        for name in ("f/z", "f/.hidden", "f/b/deep", "f/b/deeper/x", "f/a", "g/y", "f2/n"):
            backend.put(name, b"x" * len(name))
        listed = backend.list("f")
        assert [(e.name, e.size) for e in listed] == [(".hidden", 9), ("a", 3), ("b/", 0), ("z", 3)]
        assert all(abs(time.time() - entry.modified_ns / 1e9) < 60 for entry in listed)
        assert names(backend) == ["f/", "f2/", "g/"]
        assert names(backend, "f", deep=True) == [".hidden", "a", "b/deep", "b/deeper/x", "z"]

    def test_an_absent_folder_and_a_file_list_as_empty(self, backend):
        backend.put("f/a", b"")
        assert names(backend, "nowhere") == names(backend, "f/a") == []
        assert names(backend, "nowhere", deep=True) == []

    @pytest.mark.parametrize(
        ("start", "length", "expected"),
        [
            (0, None, b"0123456789"),
            (3, None, b"3456789"),
            (3, 4, b"3456"),
            (8, 4, b"89"),
            (10, 4, b""),
            (99, None, b""),
            (0, 0, b""),
        ],
    )
    def test_any_range_is_read(self, backend, start, length, expected):
        backend.put("n", b"0123456789")
        assert backend.read("n", start, length) == expected
        if length is not None:
            buffer = bytearray(b"." * length)
            assert backend.read("n", start, into=memoryview(buffer)) == expected
            assert buffer == expected + b"." * (length - len(expected))

    def test_nothing_and_a_folder_are_not_found(self, backend):
        backend.put("folder/name", b"data")
        for name in ("nowhere", "folder", "folder/name/below", ""):
            with pytest.raises(FileNotFoundError):
                backend.read(name)
            with pytest.raises(FileNotFoundError):
                backend.read(name, into=memoryview(bytearray(1)))

    def test_a_name_or_a_folder_is_deleted_and_what_is_absent_is_no_error(self, backend):
        for name in ("f/a", "f/sub/b", "f2/c", "d"):
            backend.put(name, b"data")
        for name in ("f", "d", "f", "nowhere/at/all"):
            backend.delete(name)
        assert names(backend, deep=True) == ["f2/c"]
        backend.put("f/a", b"again")
        assert backend.read("f/a") == b"again"

    def test_an_address_names_the_name(self, backend):
        assert backend.address("some/name").endswith("some/name")

    def test_a_location_is_a_name(self, backend):
        folder = Location(backend) / "folder"
        file = folder / "sub" / "name"
        file.put(b"data")
        (folder / ".tmp-x").put(b"")
        assert (file.name, file.parent, file.exists()) == ("name", folder / "sub", True)
        assert not folder.exists()
        assert folder.folders() == (folder / "sub",)
        assert [entry.name for entry in folder.list()] == ["sub/"]
        assert [entry.name for entry in folder.list(hidden=True)] == [".tmp-x", "sub/"]
        assert (file.read(1, 2), size_of(file), size_of(folder)) == (b"at", 4, 4)
        folder.delete()
        assert Location(backend).list(hidden=True) == []

    def test_only_old_temporaries_are_swept(self, backend):
        folder = Location(backend, "f")
        (folder / ".tmp-killed").put(b"1234")
        (folder / ".tmp-folder" / "name").put(b"12")
        (folder / ".other").put(b"1")
        (folder / "name").put(b"1")
        assert sweep_temporaries(folder, 3600) == 0
        if folder.local_path is None:  # where nobody can tell whether a writer lives
            assert sweep_temporaries(folder, -1) == 2
            assert names(backend, "f") == [".other", ".tmp-killed", "name"]
            data, modified_ns = backend.files["f/.tmp-killed"]
            backend.files["f/.tmp-killed"] = data, modified_ns - round(GRACE_S * 1e9)
            assert sweep_temporaries(folder, -1) == 4
        else:
            assert sweep_temporaries(folder, -1) == 6
        assert names(backend, "f") == [".other", "name"]

    def test_ages_are_told_by_the_clock_of_the_storage(self, backend, monkeypatch):
        file = Location(backend, "f/name")
        file.put(b"")
        [entry] = file.parent.list()
        monkeypatch.setattr(time, "time", lambda: 2e9)  # of this process: of no account
        ages = Ages(file.parent)
        assert ages.is_over(entry.modified_ns, 0)
        assert not ages.is_over(entry.modified_ns, 60)
        assert file.parent.list(hidden=True) == [entry]

    def test_ages_are_told_beside_a_sweep_that_removes_the_file_that_tells_them(
        self, backend, monkeypatch
    ):
        folder, put = Location(backend, "f"), Location.put

        def put_and_swept(self, data):
            put(self, data)
            monkeypatch.undo()
            self.delete()

        monkeypatch.setattr(Location, "put", put_and_swept)
        assert Ages(folder).now_ns > 0
        assert folder.list(hidden=True) == []

    def test_a_mark_that_a_sweep_removes_before_it_is_held_is_put_again(self, backend, monkeypatch):
        mark = Location(backend, "f/.mark")

        def swept(path):
            monkeypatch.undo()
            mark.delete()
            return durable.held(path)

        monkeypatch.setattr("embedcache.files.marks.held", swept)
        with put_mark(mark):
            assert mark.exists()


def test_a_temporary_whose_writer_lives_is_never_swept(tmp_path):
    (tmp_path / ".tmp-1").write_bytes(b"1234")
    with durable.held(tmp_path / ".tmp-1"):
        assert sweep_temporaries(on_disk(tmp_path), -1) == 0
    assert sweep_temporaries(on_disk(tmp_path), -1) == 4


@pytest.mark.parametrize("call", ["publish", "replace"])
def test_a_write_is_held_until_its_file_has_its_name(tmp_path, monkeypatch, call):
    calls = {"publish": (os, "link"), "replace": (Path, "replace")}
    name_it = getattr(*calls[call])

    def after_a_sweep(*arguments):
        monkeypatch.undo()
        assert sweep_temporaries(on_disk(tmp_path), -1) == 0
        name_it(*arguments)

    monkeypatch.setattr(*calls[call], after_a_sweep)
    getattr(durable, call)(tmp_path / "a", b"data")
    assert (tmp_path / "a").read_bytes() == b"data"


def test_the_disk_holds_what_is_named_as_files(tmp_path):
    file = on_disk(tmp_path / "store") / "a" / "b"
    file.put(b"data")
    assert Path(file) == tmp_path / "store" / "a" / "b"
    assert Path(file).read_bytes() == b"data"
    assert str(file) == str(tmp_path / "store" / "a" / "b")


def test_a_location_elsewhere_is_no_file_and_has_no_lock():
    file = Location(MemoryBackend(), "LOCK")
    with pytest.raises(TypeError, match="memory:LOCK is no file of this machine"):
        os.fspath(file)
    with locked(file), locked(file):
        assert not file.exists()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
@pytest.mark.parametrize("call", ["put", "replace"])
def test_a_refused_write_is_one_line_and_leaves_what_was_there(tmp_path, monkeypatch, code, call):
    backend = LocalBackend(tmp_path)
    backend.put("f/old", b"old")

    def refuse(_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", refuse)
    way_out = "free some space" if code == errno.ENOSPC else "writable"
    with pytest.raises(StoreWriteError, match=rf"f/new: {os.strerror(code)}; .*{way_out}"):
        getattr(backend, call)("f/new", b"new")
    with pytest.raises((StoreWriteError, FileExistsError)):
        getattr(backend, call)("f/old", b"new")
    monkeypatch.undo()
    assert names(backend, "f") == ["old"]
    assert backend.read("f/old") == b"old"


def test_a_refused_deletion_is_one_line(tmp_path, monkeypatch):
    backend = LocalBackend(tmp_path)
    backend.put("f/a", b"")

    def refuse(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "unlink", refuse)
    monkeypatch.setattr(Path, "rename", refuse)
    for name in ("f/a", "f"):
        with pytest.raises(StoreWriteError, match="Read-only file system"):
            backend.delete(name)


def test_a_refused_read_is_one_line(tmp_path, monkeypatch):
    backend = LocalBackend(tmp_path)
    backend.put("f/a", b"")

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(io, "FileIO", refuse)
    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(StoreReadError, match="f/a: Permission denied; check that"):
        backend.read("f/a")
    with pytest.raises(StoreReadError, match="f: Permission denied; check that"):
        backend.list("f")


def test_a_link_to_a_folder_is_a_folder_that_a_deep_listing_does_not_enter(tmp_path):
    backend = LocalBackend(tmp_path / "store")
    backend.put("runs/one/a", b"1")
    runs = tmp_path / "store" / "runs"
    (runs / "one" / "up").symlink_to("..")
    (runs / "circle").symlink_to(".")
    (runs / "itself").symlink_to("itself")
    (runs / "nowhere").symlink_to("nothing")
    (runs / "b").symlink_to("one/a")
    assert names(backend, "runs") == ["b", "circle/", "one/"]
    assert names(backend, "runs", deep=True) == ["b", "one/a"]


def test_what_was_replaced_survives_a_power_cut(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr(durable, "fsync", lambda path: flushed.append((path, file.read_bytes())))
    (tmp_path / "f").mkdir()
    file = tmp_path / "f" / "a"
    LocalBackend(tmp_path).replace("f/a", b"new")
    assert flushed == [(file.parent, b"new")]

    def refuse(path):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(durable, "fsync", refuse)
    with pytest.raises(StoreWriteError, match="f/a: Input/output error"):
        LocalBackend(tmp_path).replace("f/a", b"newer")


def test_a_file_that_goes_away_during_a_listing_is_left_out(tmp_path, monkeypatch):
    backend = LocalBackend(tmp_path)
    for name in ("a", "b", "c"):
        backend.put(name, b"")
    scandir = os.scandir

    def overtaken(folder):
        items = list(scandir(folder))
        (tmp_path / "b").unlink()
        return items

    monkeypatch.setattr(os, "scandir", overtaken)
    assert names(backend) == ["a", "c"]
