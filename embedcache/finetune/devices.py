"""Where a training computes: device, precision, and one process a device."""

from __future__ import annotations

import ctypes
import logging
import multiprocessing
import os
import platform
import resource
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Final, Literal, cast

import torch

from embedcache.encoders.plugins import register_file
from embedcache.encoders.torch_encoder import find_device
from embedcache.errors import DeviceError, MissingExtraError

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
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device.type == "mps" and asked == "bf16":
        raise DeviceError("--precision bf16: not on an Apple GPU; use fp16 or fp32")
    return cast(Chosen, asked)


class _Rank(LightningEnvironment):
    """Tells Fabric which of our processes this is: it is to start none of its own."""

    def __init__(self, rank: int, port: int) -> None:
        super().__init__()
        self._rank, self._main_port = rank, port

    @property
    def creates_processes_externally(self) -> bool:
        return True

    def local_rank(self) -> int:
        return self._rank


def _open_fabric(device: str, precision: Chosen, rank: int, n_devices: int, port: int) -> Fabric:
    """Return what moves, scales and synchronises for one process, ready to work."""
    found = find_device(device)
    plugin: Any = Precision()
    if precision != "fp32":
        plugin = MixedPrecision(_MIXED[precision], found.type)  # type: ignore[arg-type]
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
    context = multiprocessing.get_context("spawn")
    settings = (device, precision, n_devices, port)
    others = [  # no daemons, which could have no readers of their own
        context.Process(target=_follow, args=(rank, settings, encoder_file, work, arguments))
        for rank in range(1, n_devices)
    ]
    for other in others:
        other.start()
    threads = torch.get_num_threads()
    try:
        _share_cores(device, n_devices)
        yield _open_fabric(device, precision, 0, n_devices, port)
        for other in others:
            other.join()
    except RuntimeError as error:  # a collective that one side of has gone, or is going
        if others:
            wait([other.sentinel for other in others], timeout=_FAREWELL_S)
        ended = [rank for rank, other in enumerate(others, 1) if other.exitcode]
        if not ended:
            raise
        raise DeviceError(
            f"process {ended[0]} of {n_devices} ended with exit code "
            f"{others[ended[0] - 1].exitcode}, its reason stands above; the epochs before are "
            f"kept ({str(error).splitlines()[0]})"
        ) from None
    finally:
        for other in others:
            other.kill()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        torch.set_num_threads(threads)


def _follow(
    rank: int,
    settings: tuple[str, Chosen, int, int],
    encoder_file: Path | None,
    work: Callable[..., object],
    arguments: tuple[Any, ...],
) -> None:
    device, precision, n_devices, port = settings
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if encoder_file is not None:
        register_file(encoder_file)
    _share_cores(device, n_devices)
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
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(mode=True)  # attention heeds it only where it is strict
    flags = {"enabled": True, "benchmark": False, "deterministic": True, "allow_tf32": False}
    try:
        with torch.backends.cudnn.flags(**flags):
            yield
    finally:
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
    takes about twice as long (benchmarks/bench_finetune.py: 1.8 for SonoNet-16, 2.5 for
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
    finally:  # glibc's own values
        libc.mallopt(_M_MMAP_MAX, 65536)
        libc.mallopt(_M_TRIM_THRESHOLD, 128 * 1024)
        libc.malloc_trim(0)


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
