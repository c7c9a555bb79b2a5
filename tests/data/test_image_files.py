from __future__ import annotations

import hashlib
import io
import os

import pytest

from embedcache.data import image_files
from embedcache.data.image_files import ImageFile, hash_images, read_and_hash
from embedcache.files.digests import DigestCache


def test_files_are_hashed_in_order_and_what_cannot_be_read_has_no_digest(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    images = [ImageFile(name, str(tmp_path / name)) for name in ("pipe", "folder", "nothing")]
    for number in range(70):
        (tmp_path / f"{number}").write_bytes(bytes([number]))
        images.append(ImageFile(f"{number}", str(tmp_path / f"{number}")))
    digests = hash_images(images, DigestCache(), 2)
    assert digests[:3] == ["", "", ""]
    assert digests[3:] == [hashlib.sha256(bytes([n])).hexdigest() for n in range(70)]


def test_a_file_that_changes_while_it_is_read_is_not_taken(tmp_path, monkeypatch):
    file = tmp_path / "image"
    file.write_bytes(b"old")

    class Slow(io.FileIO):
        def readall(self) -> bytes:
            data = super().readall()
            file.write_bytes(b"changed")
            return data

    monkeypatch.setattr(image_files, "open_regular", Slow)
    with pytest.raises(OSError, match="changed while it was read; run the command again"):
        read_and_hash(str(file), DigestCache())
