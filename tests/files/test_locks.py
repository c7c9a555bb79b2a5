"""Locks between processes, and what holds where the file system has none."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import sys

import pytest

from embedcache.errors import StoreWriteError
from embedcache.files import durable, locks
from embedcache.files.locks import if_unmarked, locked, marked, remove_if_free


def hold(path, is_held, may_end) -> None:
    with locked(path):
        is_held.set()
        may_end.wait()


@pytest.fixture
def holder(tmp_path):
    """A process that holds `LOCK`; calling it lets go."""
    context = multiprocessing.get_context("spawn")
    is_held, may_end = context.Event(), context.Event()
    process = context.Process(target=hold, args=(tmp_path / "LOCK", is_held, may_end))
    process.start()
    is_held.wait()
    yield may_end.set
    may_end.set()
    process.join()


def test_who_waits_is_told_once_and_gets_the_lock_when_it_is_free(tmp_path, holder):
    told = []

    def on_wait() -> None:
        told.append("waiting")
        holder()

    assert not remove_if_free(tmp_path / "LOCK")
    with locked(tmp_path / "LOCK", on_wait):
        assert told == ["waiting"]
    assert remove_if_free(tmp_path / "LOCK")
    assert not (tmp_path / "LOCK").exists()


def test_a_lock_whose_file_was_removed_meanwhile_is_taken_on_the_new_file(tmp_path, monkeypatch):
    file, flock = tmp_path / "LOCK", fcntl.flock

    def removed_first(descriptor, operation):
        flock(descriptor, operation)
        monkeypatch.undo()
        file.unlink()

    monkeypatch.setattr(fcntl, "flock", removed_first)
    with locked(file):
        assert file.exists()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_where_there_are_no_locks_nobody_waits_and_one_line_says_so(
    tmp_path, monkeypatch, caplog, number
):
    def refuse(descriptor, operation):
        raise OSError(number, "refused")

    monkeypatch.setattr(fcntl, "flock", refuse)
    locks._warn_of_no_locks.cache_clear()
    for _ in range(2):
        with locked(tmp_path / "LOCK"):
            pass
    [line] = caplog.messages
    assert line.startswith("the store's file system has no locks (")
    # Whether somebody holds them cannot be told.
    assert not remove_if_free(tmp_path / "LOCK")
    with marked(tmp_path / "work"), if_unmarked(tmp_path / "work") as is_unused:
        assert not is_unused


def test_a_lock_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StoreWriteError, match="Not a directory"), locked(tmp_path / "file/LOCK"):
        pass


def test_a_system_without_such_locks_is_a_file_system_without_them(tmp_path, monkeypatch):
    """As Windows, which has no module of that name."""
    monkeypatch.setitem(sys.modules, "fcntl", None)
    locks._warn_of_no_locks.cache_clear()
    with locked(tmp_path / "LOCK"), locked(tmp_path / "LOCK"):
        assert not remove_if_free(tmp_path / "LOCK")
    durable.replace(tmp_path / "file", b"data")
    assert durable.is_abandoned(tmp_path / "file") is None
