"""Where a training computes: device, precision, and one process a device."""

from __future__ import annotations

import ctypes
import logging
import multiprocessing
import os
import platform
import resource
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Final, Literal, cast

import torch

from embedcache.encoders.devices import find_device
from embedcache.encoders.plugins import register_file
from embedcache.errors import DeviceError, EmbedcacheError, MissingExtraError

try:
    from lightning_fabric import Fabric
    from lightning_fabric.plugins import Precision
    from lightning_fabric.plugins.environments.lightning import (
        LightningEnvironment,
        find_free_network_port,
    )
    from lightning_fabric.plugins.precision import MixedPrecision
    from lightning_fabric.strategies.ddp import DDPStrategy
except ImportError:
    raise MissingExtraError(
        "fine-tuning needs the extra 'finetune'; run `pip install lightning-fabric`"
    ) from None

Chosen = Literal["fp32", "bf16", "fp16"]
_FAREWELL_S: Final = 10  # a process that fails closes its connections before it has ended
_log = logging.getLogger(__name__)
_context = multiprocessing.get_context("spawn")
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h
_MIXED: Final = {"bf16": "bf16-mixed", "fp16": "16-mixed"}


def choose_precision(asked: str, device: torch.device) -> Chosen:
    """Return the precision that 'auto' means on a device; any other is what it says.

    Raises
    ------
    DeviceError
        The device has no such precision.
    """
    if asked == "auto":
        if device.type != "cuda":
            return "fp32"
        with torch.cuda.device(device):
            return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device.type == "mps" and asked == "bf16":
        raise DeviceError("--precision bf16: not on an Apple GPU; use fp16 or fp32")
    return cast(Chosen, asked)


class _Rank(LightningEnvironment):
    """Tells Fabric which of our processes this is, all of them here: it is to start none itself."""

    def __init__(self, rank: int, port: int) -> None:
        super().__init__()
        self._rank, self._main_port = rank, port

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        return "127.0.0.1"

    def local_rank(self) -> int:
        return self._rank

    def node_rank(self) -> int:
        return 0


def _open_fabric(device: str, precision: Chosen, rank: int, n_devices: int, port: int) -> Fabric:
    """Return what moves, scales and synchronises for one process, ready to work."""
    for name in ("lightning_fabric", "lightning.fabric", "lightning_utilities.core.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    found = find_device(device)
    plugin: Any = Precision()
    if precision != "fp32":
        plugin = MixedPrecision(_MIXED[precision], found.type)  # type: ignore[arg-type] # a Literal
    if n_devices == 1:
        one: Any = [found.index] if ":" in str(found) else 1
        fabric = Fabric(accelerator=found.type, devices=one, plugins=[plugin])
    else:
        strategy = DDPStrategy(cluster_environment=_Rank(rank, port))
        fabric = Fabric(
            accelerator=found.type, devices=n_devices, strategy=strategy, plugins=[plugin]
        )
    fabric.launch()
    return fabric


def check_devices(device: str, n_devices: int) -> torch.device:
    """Return the device to train on, each of several of its kind.

    Raises
    ------
    DeviceError
        There are not so many, or one was named where several were asked for.
    """
    found = find_device(device)
    if n_devices == 1:
        return found
    if ":" in str(found) or found.type == "mps":
        raise DeviceError(f"--devices {n_devices}: --device {device} is one; pass --device cuda")
    if found.type == "cuda" and torch.cuda.device_count() < n_devices:
        raise DeviceError(
            f"--devices {n_devices}: this machine has {torch.cuda.device_count()} CUDA GPU(s)"
        )
    return found


@contextmanager
def on_devices(
    work: Callable[..., object],
    arguments: tuple[Any, ...],
    *,
    device: str,
    n_devices: int,
    precision: Chosen,
    encoder_file: Path | None = None,
) -> Iterator[Fabric]:
    """Yield the Fabric of the first process; the others run `work(fabric, *arguments)` meanwhile.

    The caller is to do the same work with the Fabric it is given.

    Parameters
    ----------
    work, arguments
        A function of a module, and what can be pickled.
    device, n_devices, precision
        See `check_devices`, `choose_precision`.
    encoder_file
        Registers its encoders in the other processes too.
    """
    port = find_free_network_port() if n_devices > 1 else 0
    settings = (device, precision, n_devices, port)
    threads = torch.get_num_threads()
    others: list[BaseProcess] = []
    over = threading.Event()
    try:
        readiness = []
        for rank in range(1, n_devices):
            here, there = _context.Pipe(duplex=False)
            with there:
                to_do = (rank, settings, there, encoder_file, work, arguments)
                # No daemon, which could have no readers of its own.
                others.append(_context.Process(target=_follow, args=to_do))
                others[-1].start()
            readiness.append(here)
        for here in readiness:
            with here:
                _wait_until_ready(here, others)
        threading.Thread(target=_end_if_alone, args=(others, over), daemon=True).start()
        _share_cores(device, n_devices)
        yield _open_fabric(device, precision, 0, n_devices, port)
        for other in others:
            other.join()
    except EmbedcacheError:
        raise
    except RuntimeError as error:  # a collective that one side of has gone, or is going
        reason = _failure(others) if others else None
        if reason is None:
            raise
        raise DeviceError(f"{reason} ({str(error).splitlines()[0]})") from None
    finally:
        over.set()
        for other in others:
            other.kill()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        torch.set_num_threads(threads)


def _failure(others: Sequence[BaseProcess]) -> str | None:
    """Wait a little until one has ended; return what to say of the first that has failed."""
    ended = wait([other.sentinel for other in others], timeout=_FAREWELL_S)
    for rank, other in enumerate(others, 1):
        if other.sentinel in ended:
            other.join()  # it is about to
        if other.exitcode:
            return (
                f"process {rank} of {len(others) + 1} ended with exit code {other.exitcode}, its "
                "reason stands above; the epochs before are kept"
            )
    return None


def _wait_until_ready(connection: Connection, others: Sequence[BaseProcess]) -> None:
    """Wait for one of the others: who never comes would be waited for in vain later."""
    try:
        connection.recv_bytes()
    except EOFError:
        raise DeviceError(_failure(others) or "a process ended before it was ready") from None


def _end_if_alone(others: Sequence[BaseProcess], over: threading.Event) -> None:
    """End this process where another has failed and it waits for that one inside CUDA for ever."""
    going = list(others)
    while going:
        wait([other.sentinel for other in going])
        if over.wait(_FAREWELL_S):
            return
        if reason := _failure(others):
            sys.stderr.write(f"embedcache: {reason}\n")
            sys.stderr.flush()
            os._exit(1)
        going = [other for other in going if other.exitcode is None]


def _follow(
    rank: int,
    settings: tuple[str, Chosen, int, int],
    ready: Connection,
    encoder_file: Path | None,
    work: Callable[..., object],
    arguments: tuple[Any, ...],
) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):  # the first process answers, and ends this one
        signal.signal(number, signal.SIG_IGN)
    device, precision, n_devices, port = settings
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if encoder_file is not None:
        register_file(encoder_file)
    _share_cores(device, n_devices)
    with ready:
        ready.send_bytes(b"")
    work(_open_fabric(device, precision, rank, n_devices, port), *arguments)


def _end_with_parent() -> None:
    """End this process when the first one is gone: in a collective it would wait for long."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _share_cores(device: str, n_devices: int) -> None:
    if n_devices > 1 and find_device(device).type == "cpu":
        torch.set_num_threads(max(1, torch.get_num_threads() // n_devices))


@contextmanager
def repeatable(device: torch.device) -> Iterator[None]:
    """Have a GPU add in one order inside, so that a training that went on ends the same.

    See `settle_for_less` for networks that cannot. As in extraction, fp32 is fp32: TF32 is off.
    """
    if device.type != "cuda":
        yield
        return
    before, matmul = (
        torch.are_deterministic_algorithms_enabled(),
        torch.get_float32_matmul_precision(),
    )
    torch.use_deterministic_algorithms(mode=True)  # attention heeds it only where it is strict
    torch.set_float32_matmul_precision("highest")
    flags = {"enabled": True, "benchmark": False, "deterministic": True, "allow_tf32": False}
    try:
        with torch.backends.cudnn.flags(**flags):
            yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        torch.use_deterministic_algorithms(mode=before)


def settle_for_less(passes: Callable[[], object]) -> None:
    """Run a network forward and back, and let go of one order of adding where it has none.

    Then a training that was interrupted may end a little differently, which is said.
    """
    try:
        passes()
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        _log.warning("not repeatable to the bit on this device: %s", str(error).split(". ")[0])
        torch.use_deterministic_algorithms(mode=True, warn_only=True)


@contextmanager
def memory_kept(device: torch.device) -> Iterator[None]:
    """Have glibc keep the memory of activations between steps, instead of giving it back.

    The kernel would hand the same pages out again one by one, zeroed: a step on two cores then
    takes about twice as long (benchmarks/bench_finetune.py: 1.7 for SonoNet-16, 2.1 for
    EfficientNet-lite0).
    """
    if device.type != "cpu" or platform.libc_ver()[0] != "glibc":
        yield
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_MAX, 0)
    libc.mallopt(_M_TRIM_THRESHOLD, -1)
    try:
        yield
    finally:  # what glibc starts with, but for its own raising of them, which is off from now on
        libc.mallopt(_M_MMAP_MAX, 65536)
        libc.mallopt(_M_TRIM_THRESHOLD, 128 * 1024)
        libc.malloc_trim(0)


class Fetched:
    """A number on its way from a device; reading it waits for nothing that was asked for later."""

    def __init__(self, value: torch.Tensor) -> None:
        self._here = value.to("cpu", non_blocking=value.is_cuda)
        self._event = torch.cuda.Event() if value.is_cuda else None
        if self._event is not None:
            self._event.record(torch.cuda.current_stream(value.device))

    def __float__(self) -> float:
        if self._event is not None:
            self._event.synchronize()
        return float(self._here)


def device_name(device: torch.device) -> str:
    """Return what the device is called."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as lines:
            return next(line.split(":")[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def peak_memory_bytes(device: torch.device) -> int:
    """Return the most memory that was in use: of the GPU's by torch, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else 1024 * peak
