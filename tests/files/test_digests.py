from __future__ import annotations

import errno
import hashlib
import os

from embedcache.files import digests
from embedcache.files.digests import DigestCache, stamp_of


def aged(path, seconds=10):
    """Put a file's times far enough back to be trusted, and wait out nothing."""
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns - seconds * 10**9))


def test_remembers_a_file_until_it_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(digests, "RACY_WINDOW_NS", -(10**12))  # every file counts as old
    file, kept = tmp_path / "image", tmp_path / "digests.tsv"
    file.write_bytes(b"one")
    cache = DigestCache(kept)
    assert cache.file_digest(file) == hashlib.sha256(b"one").hexdigest()
    cache.save()
    again = DigestCache(kept)
    assert again.get(str(file), stamp_of(file.stat())) == hashlib.sha256(b"one").hexdigest()
    file.write_bytes(b"two")  # the same length
    os.utime(file, ns=(0, 0))
    assert again.get(str(file), stamp_of(file.stat())) is None
    assert again.file_digest(file) == hashlib.sha256(b"two").hexdigest()


def test_a_young_file_is_not_remembered(tmp_path):
    file = tmp_path / "image"
    file.write_bytes(b"one")
    cache = DigestCache()
    cache.file_digest(file)
    assert cache.get(str(file), stamp_of(file.stat())) is None


def test_setting_the_time_back_does_not_fool_it(tmp_path, monkeypatch):
    monkeypatch.setattr(digests, "RACY_WINDOW_NS", -(10**12))
    file = tmp_path / "image"
    file.write_bytes(b"one")
    before = file.stat()
    cache = DigestCache()
    cache.file_digest(file)
    file.write_bytes(b"two")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # as `cp -p` and `touch -r` do
    assert cache.get(str(file), stamp_of(file.stat())) is None


def test_a_damaged_file_counts_as_empty_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(digests, "RACY_WINDOW_NS", -(10**12))
    file, kept = tmp_path / "image", tmp_path / "digests.tsv"
    file.write_bytes(b"one")
    cache = DigestCache(kept)
    cache.file_digest(file)
    cache.save()
    data = bytearray(kept.read_bytes())
    data[20] ^= 1
    kept.write_bytes(data)
    broken = DigestCache(kept)
    assert broken.is_damaged
    assert broken.get(str(file), stamp_of(file.stat())) is None


def test_a_file_that_cannot_be_read_counts_as_empty_and_says_so(tmp_path, monkeypatch):
    def refuse(path):
        raise OSError(errno.EIO, "Input/output error")

    (tmp_path / "digests.tsv").write_bytes(b"0\n")
    monkeypatch.setattr(digests, "read_regular", refuse)
    assert DigestCache(tmp_path / "digests.tsv").is_damaged


def test_nothing_new_is_not_written(tmp_path):
    kept = tmp_path / "digests.tsv"
    DigestCache(kept).save()
    assert not kept.exists()
