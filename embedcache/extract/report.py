"""What a pass says of itself: counts that add up, reasons, and where the time went."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, Literal

Stage = Literal["read", "decode", "preprocess", "encode", "write"]
STAGES: Final[tuple[Stage, ...]] = ("read", "decode", "preprocess", "encode", "write")
_THREADED: Final = frozenset({"read", "decode", "preprocess"})


class Clock:
    """Seconds spent, by stage; any thread may add to it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(STAGES, 0.0)
        self._lock = threading.Lock()

    @contextmanager
    def timed(self, stage: Stage) -> Iterator[None]:
        """Add the time that the `with` block takes."""
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            with self._lock:
                self.seconds[stage] += spent


@dataclass(frozen=True, slots=True)
class Tally:
    """What became of the images, for one encoder: n_images = n_cached + n_written + n_failed.

    Parameters
    ----------
    encoder, fingerprint
        Which.
    n_images, n_cached, n_written, n_failed
        Images in all, held before (or equal to another image of this pass), stored now, and not
        to be had.
    failures
        (image_id, reason) of each image that failed.
    seconds
        Time in each stage for this encoder alone.
    """

    encoder: str
    fingerprint: str
    n_images: int
    n_cached: int
    n_written: int
    n_failed: int
    failures: tuple[tuple[str, str], ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PassReport:
    """What a pass did and where its time went.

    Parameters
    ----------
    tallies
        One an encoder.
    wall_s
        From start to end.
    loaded_s
        Until the encoders were loaded.
    waited_s
        How long they then stood idle for want of images.
    seconds
        By stage, summed over threads.
    workers
        Threads that read, decoded and preprocessed.
    """

    tallies: tuple[Tally, ...]
    wall_s: float
    loaded_s: float
    waited_s: float
    seconds: dict[str, float]
    workers: int

    @property
    def n_failed(self) -> int:
        """Images that failed, over all encoders."""
        return sum(tally.n_failed for tally in self.tallies)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a pass is: images done of all that need work, and the stage that sets the pace."""

    n_done: int
    n_total: int
    n_failed: int
    slowest: str


def slowest_stage(seconds: dict[str, float], workers: int) -> str:
    """Return the stage that sets the pace; one that k threads share counts a k-th."""
    return max(seconds, key=lambda stage: seconds[stage] / (workers if stage in _THREADED else 1))


def merge_reports(reports: Sequence[PassReport]) -> PassReport:
    """Return what several passes, one after another, did and took together."""
    return PassReport(
        tallies=tuple(tally for report in reports for tally in report.tallies),
        wall_s=sum(report.wall_s for report in reports),
        loaded_s=sum(report.loaded_s for report in reports),
        waited_s=sum(report.waited_s for report in reports),
        seconds={
            stage: sum(report.seconds[stage] for report in reports) for stage in reports[0].seconds
        },
        workers=max(report.workers for report in reports),
    )
