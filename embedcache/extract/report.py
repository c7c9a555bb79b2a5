"""The report of a pass: counts that add up, reasons of failures, and time by stage."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Final, Literal

import pyarrow as pa

from embedcache.data.tabular import Tabular

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
    """Counts of the images of a pass, for one encoder: n_images = n_cached + n_written + n_failed.

    Parameters
    ----------
    encoder, fingerprint
        Name and fingerprint of the encoder.
    n_images
        Number of images of the pass.
    n_cached
        Number of images with a row before the pass, or equal to another image of it.
    n_written
        Number of images whose row was stored now.
    n_failed
        Number of images that could not be read or encoded.
    failures
        Image id and reason of each image that failed.
    seconds
        Seconds by stage for this encoder alone.
    """

    encoder: str
    fingerprint: str
    n_images: int
    n_cached: int
    n_written: int
    n_failed: int
    failures: tuple[tuple[str, str], ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)


_COUNTS: Final = pa.schema(
    [
        ("encoder", pa.string()),
        ("fingerprint", pa.string()),
        ("n_images", pa.int64()),
        ("n_cached", pa.int64()),
        ("n_written", pa.int64()),
        ("n_failed", pa.int64()),
    ]
)


@dataclass(frozen=True, slots=True, repr=False)
class PassReport(Tabular):
    """Counts and times of a pass.

    Parameters
    ----------
    tallies
        Counts for each encoder.
    wall_s
        Seconds from start to end.
    loaded_s
        Seconds that loading the encoders took.
    waited_s
        Seconds that the loaded encoders stood idle for want of images.
    seconds
        Seconds by stage, summed over threads.
    workers
        Number of threads that read, decoded and preprocessed.
    notes
        Image id and warnings of each picture that was read with warnings.
    """

    tallies: tuple[Tally, ...]
    wall_s: float
    loaded_s: float
    waited_s: float
    seconds: dict[str, float]
    workers: int
    notes: tuple[tuple[str, str], ...] = ()

    @property
    def n_failed(self) -> int:
        """Number of images that failed, over all encoders."""
        return sum(tally.n_failed for tally in self.tallies)

    def table(self) -> pa.Table:
        """Return the counts, one row an encoder."""
        return pa.Table.from_pylist([asdict(tally) for tally in self.tallies], schema=_COUNTS)


@dataclass(frozen=True, slots=True)
class Progress:
    """State of a running pass.

    Parameters
    ----------
    n_done, n_total, n_failed
        Number of images that are done, that need work, and that failed so far.
    slowest
        Name of the stage that sets the pace.
    """

    n_done: int
    n_total: int
    n_failed: int
    slowest: str


def slowest_stage(seconds: dict[str, float], workers: int) -> str:
    """Return the stage that sets the pace; one that k threads share counts a k-th."""
    return max(seconds, key=lambda stage: seconds[stage] / (workers if stage in _THREADED else 1))


def merge_reports(reports: Sequence[PassReport]) -> PassReport:
    """Return counts and times of several passes, one after another, as of one."""
    return PassReport(
        tallies=tuple(tally for report in reports for tally in report.tallies),
        wall_s=sum(report.wall_s for report in reports),
        loaded_s=sum(report.loaded_s for report in reports),
        waited_s=sum(report.waited_s for report in reports),
        seconds={
            stage: sum(report.seconds[stage] for report in reports) for stage in reports[0].seconds
        },
        workers=max(report.workers for report in reports),
        notes=tuple(dict.fromkeys(note for report in reports for note in report.notes)),
    )
