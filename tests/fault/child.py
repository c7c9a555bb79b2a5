"""One pass in a process of its own, to be killed: `child.py FOLDER ACKS [--no-lock]`.

Small commits, and each acknowledged one is noted in ACKS, a line a digest, flushed before the pass
goes on: what is in ACKS must survive whatever happens next.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import embedcache
from embedcache.extract import lane
from embedcache.store.embedding_store import EmbeddingStore


def main(folder: Path, acks: Path, *, lock: bool) -> None:
    lane.COMMIT_ROWS = 16
    append = EmbeddingStore.append

    def noted(self: EmbeddingStore, keys: list[str], *arguments, **settings) -> None:
        append(self, keys, *arguments, **settings)
        descriptor = os.open(acks, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(descriptor, "".join(f"{key}\n" for key in keys).encode())
        os.close(descriptor)

    @contextlib.contextmanager
    def unlocked(self: EmbeddingStore, _: object = None) -> Iterator[None]:
        self.refresh()
        yield

    EmbeddingStore.append = noted
    if not lock:  # as on a network drive whose locks do nothing
        EmbeddingStore.lock = unlocked
    embedcache.open(folder).extract("pixels", batch_size=8)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), lock="--no-lock" not in sys.argv)
