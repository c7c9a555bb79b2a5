from __future__ import annotations

import os
import socket
import time

import pytest

from embedcache.errors import StoreReadError, StoreWriteError
from embedcache.files.backend import on_disk
from embedcache.files.digests import DigestCache
from embedcache.files.durable import replace
from embedcache.files.regular import kind_of, open_regular, read_regular


@pytest.fixture
def special(tmp_path, monkeypatch):
    """Return paths of what is no regular file, by what it is called."""
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.chdir(tmp_path)  # names of sockets are short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("pipe")
    return {
        "a named pipe": tmp_path / "pipe",
        "a socket": tmp_path / "socket",
        "a folder": tmp_path / "folder",
        "a device": "/dev/zero",
    }


def test_what_is_no_regular_file_is_refused_at_once_and_named(special, tmp_path):
    start = time.monotonic()
    for kind, path in special.items():
        with pytest.raises(OSError, match=f"{kind}, not a file"):
            open_regular(path)
        assert kind_of(path) == kind
    with pytest.raises(OSError, match="a named pipe, not a file"):
        read_regular(tmp_path / "link")
    with pytest.raises(OSError, match="a named pipe, not a file"):
        DigestCache().file_digest(tmp_path / "pipe")
    with pytest.raises(StoreReadError, match="pipe: a named pipe, not a file; check"):
        (on_disk(tmp_path) / "pipe").read()
    assert time.monotonic() - start < 1


def test_a_pipe_that_takes_the_place_of_a_file_is_refused_too(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"1")
    os.mkfifo(tmp_path / "pipe")
    status = (tmp_path / "file").stat()
    monkeypatch.setattr(os, "stat", lambda _: status)
    with pytest.raises(OSError, match="a named pipe, not a file"):
        open_regular(tmp_path / "pipe")


def test_files_are_read_and_what_is_missing_or_looped_is_as_ever(tmp_path):
    (tmp_path / "file").write_bytes(b"12")
    (tmp_path / "loop").symlink_to("loop")
    assert read_regular(tmp_path / "file") == b"12"
    with pytest.raises(FileNotFoundError):
        read_regular(tmp_path / "nothing")
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        read_regular(tmp_path / "loop")
    assert kind_of(tmp_path / "loop") == "a link that leads to itself"
    assert kind_of(tmp_path / "file") == kind_of(tmp_path / "nothing") == ""


def test_nothing_but_a_file_is_replaced_by_a_file(special):
    with pytest.raises(StoreWriteError, match="pipe: a named pipe, which no file can replace"):
        replace(special["a named pipe"], b"1")
