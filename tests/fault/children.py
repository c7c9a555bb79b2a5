"""Passes and trainings in processes of their own, to be killed.

Libraries are imported once, by the server that forks the children: a start costs milliseconds
instead of seconds.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import tiny_encoders

import embedcache
from embedcache.extract import lane
from embedcache.files.backend import Location
from embedcache.store.embedding_store import EmbeddingStore
from embedcache.verbs import probe_run

QUICK = {"epochs": 4, "batch_size": 8, "lr": 1e-3}
_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(
    ["embedcache.verbs.extract", "embedcache.verbs.finetune", "embedcache.finetune.train"]
)


def start(target: Callable[..., None], *arguments: object) -> BaseProcess:
    """Call a function of this module in a process of its own."""
    child = _server.Process(target=target, args=arguments)
    child.start()
    return child


def time_of(target: Callable[..., None], *arguments: object) -> float:
    """Call a function of this module in a process of its own; return the seconds it took there."""
    start(gc.collect).join()  # the server is up once it has forked a child, whatever that does
    began = time.monotonic()
    child = start(target, *arguments)
    child.join()
    assert child.exitcode == 0
    return time.monotonic() - began


def extract(folder: Path, acks: Path, lock: bool) -> None:
    """Encode a folder by commits of 16 rows, noting in `acks` a line for each row committed.

    It is flushed before the pass goes on: what is in `acks` must survive whatever happens next.
    """
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


def probe(folder: Path, fits: Path, last: str = "") -> None:
    """Probe the 'pixels' of a folder, noting in `fits` a line for each fit.

    The process kills itself before it writes the file of the run whose name begins with `last`.
    """
    fit, put = probe_run.fit_probe, Location.put

    def noted(*arguments, **settings):
        with fits.open("a") as file:
            file.write("fitted\n")
        time.sleep(0.5)  # whoever else wants the run comes meanwhile
        return fit(*arguments, **settings)

    def put_or_die(self: Location, data: bytes) -> None:
        if last and self.name.startswith(last):
            os.kill(os.getpid(), signal.SIGKILL)
        put(self, data)

    probe_run.fit_probe, Location.put = noted, put_or_die
    embedcache.open(folder).probe("pixels", n_resamples=100)


def finetune(folder: Path) -> None:
    """Train the tiny transformer on the images of a folder."""
    import torch

    torch.set_num_threads(1)
    embedcache.open(folder).finetune(
        "tiny-vit",
        changes=QUICK,
        folds=2,
        encoder_file=Path(tiny_encoders.__file__),
        workers=0,
        n_resamples=100,
    )
