"""Images as files: their paths, and the digests that name their pictures."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from embedcache.files.digests import DigestCache, sha256, stamp_of
from embedcache.files.regular import open_regular
from embedcache.files.threads import ReadingThreads

_CHUNK: Final = 64  # images a task
_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True)
class ImageFile:
    """One image to encode.

    Parameters
    ----------
    image_id
        Name of the image in the manifest.
    path
        Path of the file on this machine.
    expected
        SHA-256 of the file that the manifest states, or ''.
    frame
        Number of the frame in the file, from 0; None for the only one.
    """

    image_id: str
    path: str
    expected: str = ""
    frame: int | None = None

    def key_of(self, digest: str) -> str:
        """Return the key of the picture: the SHA-256 of its file, or of that and the frame."""
        return digest if self.frame is None else sha256(f"{digest}#{self.frame}".encode())


def hash_images(images: Sequence[ImageFile], digests: DigestCache, workers: int) -> list[str]:
    """Return the SHA-256 of each image's file, '' where it cannot be read.

    Parameters
    ----------
    images
        Images whose files are wanted.
    digests
        Remembered digests; a file that is unchanged since is not read again.
    workers
        Number of threads that read.
    """

    def digest(image: ImageFile) -> str:
        try:
            stamp = stamp_of(os.stat(image.path))  # noqa: PTH116 - 12,850 of them
            return digests.get(image.path, stamp) or read_and_hash(image.path, digests)[1]
        except OSError:
            return ""

    def digests_of(chunk: Sequence[ImageFile]) -> list[str]:
        return [digest(image) for image in chunk]

    with ReadingThreads(workers) as pool:
        return [key for keys in pool.map(digests_of, in_chunks(images)) for key in keys]


def in_chunks(items: Sequence[_Item]) -> list[Sequence[_Item]]:
    """Return items in parts worth a task each: a task costs as much as looks at three files."""
    return [items[first : first + _CHUNK] for first in range(0, len(items), _CHUNK)]


def read_and_hash(path: str, digests: DigestCache) -> tuple[bytes, str]:
    """Return a file's bytes and their SHA-256, which is remembered.

    Raises
    ------
    OSError
        It cannot be read, is no regular file, or was changed meanwhile.
    """
    with open_regular(path) as stream:
        stamp = stamp_of(os.fstat(stream.fileno()))
        data = stream.readall()
        if stamp_of(os.fstat(stream.fileno())) != stamp or len(data) != stamp[0]:
            raise OSError(errno.EAGAIN, "changed while it was read; run the command again", path)
    key = sha256(data)
    digests.put(path, stamp, key)
    return data, key
