"""Hash, look up, read, decode, preprocess, encode, append: all of it overlapped.

Worker threads hash, read, decode and preprocess ahead of the encoders (Pillow and hashlib release
the interpreter lock); the calling thread feeds the encoders; one more thread appends. Each image is
read and decoded once for all encoders.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

import numpy as np

from embedcache.data.image_files import ImageFile, in_chunks, read_and_hash
from embedcache.data.images import decode_image
from embedcache.encoders.plugins import foreign_code
from embedcache.encoders.spec import FloatArray
from embedcache.errors import ImageReadError, StoreWriteError
from embedcache.extract.lane import Job, Lane
from embedcache.extract.report import Clock, PassReport, Progress, Tally, slowest_stage
from embedcache.files.cores import usable_cores
from embedcache.files.digests import DigestCache, stamp_of
from embedcache.files.threads import ReadingThreads

_AHEAD_BYTES: Final = 256 << 20  # of arrays that wait for an encoder


@dataclass(frozen=True, slots=True)
class _Prepared:
    """One image after the worker threads are done with it.

    Parameters
    ----------
    key
        SHA-256 of the image's bytes; '' where the file could not be read.
    failure
        Reason why the image cannot be encoded; '' where it can.
    note
        Warnings about the picture; '' where there is none.
    lanes
        Numbers of the lanes that encode the image.
    arrays
        The image as each of these lanes' encoders takes it.
    """

    key: str
    failure: str = ""
    note: str = ""
    lanes: tuple[int, ...] = ()
    arrays: tuple[FloatArray, ...] = ()


def _give_way() -> None:
    """Let this thread run where the encoder leaves a core idle, and only there.

    An encoder's threads wait for each other at every layer, so one that is held up by a decoder
    holds up all. Linux has priorities by thread; with them a pass costs no more than its forward
    and its decoding spread over all cores (benchmarks/bench_extract.py).
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # a container may forbid it
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)


def run_pass(
    images: Sequence[ImageFile],
    jobs: Sequence[Job],
    digests: DigestCache,
    *,
    workers: int | None = None,
    fail_fast: bool = False,
    on_progress: Callable[[Progress], None] = lambda _: None,
    before_commit: Callable[[], None] = lambda: None,
) -> PassReport:
    """Encode every image that a store lacks, and store it.

    Parameters
    ----------
    images
        All images, cached or not.
    jobs
        Part of each encoder.
    digests
        Remembered digests of files; those of files that are read are added.
    workers
        Number of threads that read and decode; None for as many as there are cores, 2 to 16.
    fail_fast
        Whether the first image that fails ends the pass; otherwise it is recorded and left out.
    on_progress
        Function called after each image, in the calling thread.
    before_commit
        Function called before each commit, by the thread that appends.

    Raises
    ------
    ImageReadError
        With `fail_fast`, the first image that cannot be encoded.
    StoreWriteError
        The disk refused; what was committed before is safe.
    """
    start = time.perf_counter()
    workers = workers or max(2, min(16, usable_cores()))
    flow = _Flow(images, jobs, digests, workers, before_commit)
    try:
        flow.run(fail_fast=fail_fast, on_progress=on_progress)
    finally:
        digests.save()
    return flow.report(start)


class _Flow:
    """The state of one pass."""

    def __init__(
        self,
        images: Sequence[ImageFile],
        jobs: Sequence[Job],
        digests: DigestCache,
        workers: int,
        before_commit: Callable[[], None],
    ) -> None:
        self.images = images
        self.digests = digests
        self.workers = workers
        self.before_commit = before_commit
        self.waited_s = 0.0
        self.keys: dict[int, str] = {}  # image number to digest
        self.troubles: dict[int, str] = {}  # image number to the reason why its file is unusable
        self.notes: dict[int, str] = {}  # image number to the warnings about its picture
        self.shared = Clock()  # read and decode, for all lanes together
        self.writer = ThreadPoolExecutor(1, "append")
        self.lanes = [self._lane(job) for job in jobs]

    def _lane(self, job: Job) -> Lane:
        clock = Clock()
        before: dict[str, float] = {}

        def context(keys: Sequence[str]) -> dict[str, Any]:
            self.before_commit()  # here, for a record's context is asked for right before it
            spent = {stage: s - before.get(stage, 0.0) for stage, s in clock.seconds.items()}
            before.update(clock.seconds)
            seconds = {stage: round(s, 3) for stage, s in spent.items()}
            by_key = {self.keys[number]: note for number, note in list(self.notes.items())}
            notes = {key: by_key[key] for key in keys if key in by_key}
            return {"seconds": seconds, **({"notes": notes} if notes else {})}

        return Lane(job, self.writer, clock, context)

    def seconds(self) -> dict[str, float]:
        """Return the seconds spent by stage, over all lanes and threads."""
        clocks = [self.shared, *(lane.clock for lane in self.lanes)]
        return {stage: sum(c.seconds[stage] for c in clocks) for stage in self.shared.seconds}

    def run(self, *, fail_fast: bool, on_progress: Callable[[Progress], None]) -> None:
        n_failed = 0
        pool = ReadingThreads(self.workers, _give_way)
        with self.writer, pool:
            todo = self._todo(pool)
            try:
                for n_done, (number, prepared) in enumerate(self._prepared(todo, pool), 1):
                    self._take(number, prepared)
                    n_failed += bool(prepared.failure)
                    if prepared.failure and fail_fast:
                        image = self.images[number]
                        raise ImageReadError(f"{image.path}: {prepared.failure}")
                    slowest = slowest_stage(self.seconds(), self.workers)
                    on_progress(Progress(n_done, len(todo), n_failed, slowest))
            except StoreWriteError:
                raise
            except BaseException:
                for lane in self.lanes:
                    lane.keep()
                raise
            for lane in self.lanes:
                lane.finish()

    def _todo(self, pool: ReadingThreads) -> list[int]:
        """Return the images that need work. A look at a file may hang, so other threads take it."""

        def unsettled(chunk: Sequence[int]) -> list[int]:
            return [number for number in chunk if not self._is_settled(number)]

        chunks = in_chunks(range(len(self.images)))
        return [number for chunk in pool.map(unsettled, chunks) for number in chunk]

    def _is_settled(self, number: int) -> bool:
        """Tell whether every lane is done with an image, if that shows without reading its file."""
        image = self.images[number]
        try:
            stamp = stamp_of(os.stat(image.path))  # noqa: PTH116 - 12,850 of them
        except OSError:
            return False
        digest = self.digests.get(image.path, stamp)
        if digest is None or (image.expected and image.expected != digest):
            return False
        key = self.keys[number] = image.key_of(digest)
        return all(lane.job.is_settled(key) for lane in self.lanes)

    def _prepared(self, todo: list[int], pool: ReadingThreads) -> Iterator[tuple[int, _Prepared]]:
        """Yield images in order, with as many more under way as the memory bound allows."""
        size = sum(4 * int(np.prod(lane.job.spec.preprocess.shape)) for lane in self.lanes)
        most = self.workers + min(1024, _AHEAD_BYTES // max(1, size))
        numbers = iter(todo)
        ahead: deque[tuple[int, Future[_Prepared]]] = deque()
        try:
            while True:
                for number in islice(numbers, most - len(ahead)):
                    ahead.append((number, pool.submit(self._prepare, self.images[number])))
                if not ahead:
                    return
                number, future = ahead.popleft()
                yield number, self._result(future)
        finally:
            for _, future in ahead:
                future.cancel()

    def _result(self, future: Future[_Prepared]) -> _Prepared:
        """Wait for an image; load an encoder, on this thread, once an image turns out to need it.

        Not on a worker's: the threads that torch starts there would inherit its priority.
        """
        unloaded = [lane.job for lane in self.lanes if not lane.job.is_loaded]
        while unloaded and not future.done():
            events: list[Future[Any]] = [future, *(job.wanted for job in unloaded)]
            wait(events, return_when=FIRST_COMPLETED)
            for job in unloaded:
                if job.wanted.done():
                    job.load()
            unloaded = [job for job in unloaded if not job.is_loaded]
        start = time.perf_counter()
        prepared = future.result()
        self.waited_s += time.perf_counter() - start
        return prepared

    def _prepare(self, image: ImageFile) -> _Prepared:
        """Read, decode and preprocess one image, on a worker's thread."""
        try:
            with self.shared.timed("read"):
                data, digest = read_and_hash(image.path, self.digests)
        except OSError as error:
            return _Prepared("", failure=(error.strerror or str(error)).lower())
        if image.expected and digest != image.expected:
            return _Prepared("", failure="its bytes are not those of the manifest's sha256")
        key = image.key_of(digest)
        wanting = tuple(n for n, lane in enumerate(self.lanes) if lane.job.claim(key))
        if not wanting:
            return _Prepared(key)
        notes: list[str] = []
        try:
            with self.shared.timed("decode"):
                picture = decode_image(data, image.frame, notes.append)
        except ImageReadError as error:
            return _Prepared(key, failure=str(error), lanes=wanting)
        arrays = []
        for number in wanting:
            lane = self.lanes[number]
            what = f"encoder '{lane.job.spec.name}' cannot preprocess"
            with lane.clock.timed("preprocess"), foreign_code(what, redirect=False):
                arrays.append(lane.job.encoder.preprocess(picture))
        return _Prepared(key, note="; ".join(notes), lanes=wanting, arrays=tuple(arrays))

    def _take(self, number: int, prepared: _Prepared) -> None:
        if not prepared.key:
            self.troubles[number] = prepared.failure
            return
        self.keys[number] = prepared.key
        if prepared.note:
            self.notes[number] = prepared.note
        if prepared.failure:
            for lane_number in prepared.lanes:
                self.lanes[lane_number].fail(prepared.key, prepared.failure)
        for lane_number, array in zip(prepared.lanes, prepared.arrays, strict=False):
            self.lanes[lane_number].add(prepared.key, array)

    def report(self, start: float) -> PassReport:
        """Return what a pass did that began at `start`, by the clock `time.perf_counter`."""
        return PassReport(
            tallies=tuple(self._tally(lane) for lane in self.lanes),
            notes=tuple((self.images[n].image_id, note) for n, note in self.notes.items()),
            wall_s=time.perf_counter() - start,
            loaded_s=sum(lane.job.load_s for lane in self.lanes),
            waited_s=self.waited_s,
            seconds=self.seconds(),
            workers=self.workers,
        )

    def _tally(self, lane: Lane) -> Tally:
        """Count the images by outcome; each is counted once and none is left out."""
        job, failures = lane.job, []
        n_cached = n_written = 0
        counted = set(job.stored_keys)
        for number, image in enumerate(self.images):
            key = self.keys.get(number)
            if key is None or key not in job.store:
                reason = self.troubles.get(number) or job.store.failures.get(key or "", "")
                failures.append((image.image_id, reason or "not reached"))
            elif key in counted:
                n_cached += 1
            else:
                counted.add(key)
                n_written += 1
        return Tally(
            encoder=job.spec.name,
            fingerprint=job.store.fingerprint,
            n_images=len(self.images),
            n_cached=n_cached,
            n_written=n_written,
            n_failed=len(failures),
            failures=tuple(failures),
            seconds=dict(lane.clock.seconds),
        )
