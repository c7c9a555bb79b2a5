"""One encoder's lane in a pass: arrays come in, batches go through the encoder, rows are stored."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from typing import Any, Final

import numpy as np

from embedcache.encoders.plugins import foreign_code
from embedcache.encoders.spec import Encoder, EncoderSpec, FloatArray, check_rows
from embedcache.errors import EncoderError, EncoderOutputError
from embedcache.extract.report import Clock
from embedcache.store.embedding_store import EmbeddingStore

# A commit costs 30 ms, mostly waiting for the disk, and 256 images cost seconds on a CPU. A kill
# loses at most this many images, or this many seconds.
COMMIT_ROWS: Final = 256
COMMIT_SECONDS: Final = 20.0
_COMMIT_BYTES: Final = 64 << 20  # of rows that wait in memory; whole pictures get there first
NOT_FINITE: Final = "the encoder returned NaN or infinity"


class Job:
    """One encoder's part in a pass, before anything of it is loaded.

    Parameters
    ----------
    spec
        Facts about the encoder.
    store
        Store that the rows are appended to.
    load
        Function that returns the encoder, called when the first image turns out to need it: a
        pass that finds everything cached imports no torch.
    batch_size
        Number of images a batch; None takes what the encoder suggests.
    retry_failed
        Whether images that failed before are tried again.

    Attributes
    ----------
    stored_keys
        SHA-256 of each image that had a row before the pass.
    wanted
        Future that is done as soon as an image needs the encoder: then the main thread is to call
        `load`.
    load_s
        Seconds that loading took.
    """

    def __init__(
        self,
        spec: EncoderSpec,
        store: EmbeddingStore,
        load: Callable[[], Encoder],
        *,
        batch_size: int | None = None,
        retry_failed: bool = False,
    ) -> None:
        self.spec = spec
        self.store = store
        self.stored_keys = frozenset(store.row_keys())
        self.wanted: Future[None] = Future()
        self.load_s = 0.0
        failed = () if retry_failed else store.failures
        self._settled = self.stored_keys.union(failed)
        self._claimed: set[str] = set()
        self._lock = threading.Lock()
        self._load = load
        self._loaded: Encoder | None = None
        self._ready = threading.Event()
        self._batch_size = batch_size

    @property
    def is_loaded(self) -> bool:
        """Whether `encoder` can be had without waiting."""
        return self._ready.is_set()

    def load(self) -> None:
        """Load the encoder; whoever waits for it goes on."""
        start = time.perf_counter()
        try:
            self._loaded = self._load()
        finally:
            self._ready.set()
        self.load_s = time.perf_counter() - start

    @property
    def encoder(self) -> Encoder:
        """The encoder; waits until it is loaded."""
        self._ready.wait()
        if self._loaded is None:
            raise EncoderError(f"'{self.spec.name}' could not be loaded")
        return self._loaded

    @property
    def batch_size(self) -> int:
        """Number of images a batch."""
        return self._batch_size or self.encoder.batch_size

    def is_settled(self, key: str) -> bool:
        """Tell whether an image was cached, or had failed, before this pass."""
        return key in self._settled

    def claim(self, key: str) -> bool:
        """Take an image on, once; the first to do so asks for the encoder."""
        with self._lock:
            if key in self._settled or key in self._claimed:
                return False
            self._claimed.add(key)
            if not self.wanted.done():
                self.wanted.set_result(None)
            return True


class Lane:
    """Batches, encodes and stores for one job; every method is for one thread only.

    Parameters
    ----------
    job
        Part of the lane's encoder.
    writer
        Pool of the one thread that appends.
    clock
        Clock of the stages 'preprocess', 'encode' and 'write'.
    context
        Function that returns the JSON values kept with the commit of some images, by their keys.
    """

    def __init__(
        self,
        job: Job,
        writer: ThreadPoolExecutor,
        clock: Clock,
        context: Callable[[Sequence[str]], dict[str, Any]],
    ) -> None:
        self.job = job
        self.clock = clock
        self._writer = writer
        self._context = context
        self._keys: list[str] = []  # of the images in the batch that is being filled
        self._in_flight: deque[tuple[list[str], Callable[[], FloatArray]]] = deque()
        self._done_keys: list[str] = []
        self._done_rows: list[FloatArray] = []
        self._failures: dict[str, str] = {}
        self._write: Future[None] | None = None
        self._committed_at = time.monotonic()
        self._failed = f"encoder '{job.spec.name}' failed"

    @cached_property
    def _batch(self) -> FloatArray:
        # Always encoded whole: rows beyond the last image are padding. On every network tried, a
        # row's bits then depend on its own image alone, not on its neighbours or their number.
        return np.zeros((self.job.batch_size, *self.job.spec.preprocess.shape), np.float32)

    def add(self, key: str, array: FloatArray) -> None:
        """Put one preprocessed image into the batch; a full batch goes to the encoder."""
        if array.shape != self.job.spec.preprocess.shape:  # numpy would spread a smaller one
            raise EncoderOutputError(
                f"encoder '{self.job.spec.name}' made an array of shape {array.shape} of an image, "
                f"expected {self.job.spec.preprocess.shape}"
            )
        self._batch[len(self._keys)] = array
        self._keys.append(key)
        if len(self._keys) == len(self._batch):
            self._encode()

    def fail(self, key: str, reason: str) -> None:
        """Record that an image cannot be encoded."""
        self._failures[key] = reason

    def finish(self) -> None:
        """Encode and store what is left; when this returns it is on the disk."""
        if self._keys:
            self._encode()
        while self._in_flight:
            self._collect()
        self._commit()
        self._settle()

    def keep(self) -> None:
        """Store the rows that are encoded and start nothing new: the pass was interrupted."""
        while self._in_flight:
            try:
                self._collect()
            except Exception:  # an encoder may raise anything; what ended the pass is raised anyway
                self._in_flight.clear()
        self._commit()
        self._settle()

    def _encode(self) -> None:
        with self.clock.timed("encode"), foreign_code(self._failed):
            rows = self.job.encoder.encode_async(self._batch)
        self._in_flight.append((self._keys, rows))
        self._keys = []
        if len(self._in_flight) > 1:  # one batch computes while the next is filled
            self._collect()
        late = time.monotonic() - self._committed_at > COMMIT_SECONDS
        n_bytes = 4 * self.job.spec.dim * len(self._done_keys)
        if len(self._done_keys) >= COMMIT_ROWS or n_bytes >= _COMMIT_BYTES or late:
            self._commit()

    def _collect(self) -> None:
        keys, fetch = self._in_flight.popleft()
        with self.clock.timed("encode"), foreign_code(self._failed):
            rows = check_rows(fetch(), len(self._batch), self.job.spec)[: len(keys)]
        for key, row in zip(keys, rows, strict=True):
            if np.isfinite(row).all():
                self._done_keys.append(key)
                self._done_rows.append(row)
            else:
                self.fail(key, NOT_FINITE)

    def _commit(self) -> None:
        self._settle()
        self._committed_at = time.monotonic()
        if not self._done_keys and not self._failures:
            return
        rows = np.array(self._done_rows, np.float32).reshape(-1, self.job.spec.dim)
        self._write = self._writer.submit(self._append, self._done_keys, rows, self._failures)
        self._done_keys, self._done_rows, self._failures = [], [], {}

    def _append(self, keys: list[str], rows: FloatArray, failures: dict[str, str]) -> None:
        with self.clock.timed("write"):
            self.job.store.append(keys, rows, failures=failures, context=self._context(keys))

    def _settle(self) -> None:
        """Wait for the last commit and raise what went wrong with it."""
        if self._write is not None:
            write, self._write = self._write, None
            write.result()
