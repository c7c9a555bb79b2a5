"""Whether a device can be had at all, told without importing torch."""

from __future__ import annotations

import ctypes
import os
import re
import sys
from pathlib import Path
from typing import Final

from embedcache.errors import DeviceError

_SHARE: Final = 0.8
_NAMES: Final = re.compile(r"auto|cpu|mps|cuda(:\d+)?")
# NVIDIA's on Linux and on Windows, and AMD's, which torch calls CUDA too.
_DRIVERS: Final = ("libcuda.so.1", "nvcuda.dll", "libamdhip64.so")


def check_device(name: str) -> None:
    """Refuse a device that this machine cannot have, before seconds go into importing torch.

    Raises
    ------
    DeviceError
        No such device name, or 'cuda' without a driver, or 'mps' off a Mac.
    """
    if not _NAMES.fullmatch(name):
        raise DeviceError(f"no device '{name}'; expected auto, cpu, cuda, cuda:N or mps")
    if name.startswith("cuda") and not any(map(_loads, _DRIVERS)):
        raise DeviceError(
            f"--device {name}: this machine has no CUDA driver; run where there is one, or pass "
            "--device cpu"
        )
    if name == "mps" and sys.platform != "darwin":
        raise DeviceError("--device mps: not an Apple machine; pass --device cpu")


def free_memory_gb(device: str) -> float:
    """Return how much memory networks may take there, with a margin.

    A Mac's GPU shares its memory, and 'auto' is taken for the CPU where there is no driver.
    """
    if device.startswith("cuda") or (device == "auto" and any(map(_loads, _DRIVERS))):
        import torch  # a driver is there, so torch will be needed

        if torch.cuda.is_available():
            free, _ = torch.cuda.mem_get_info(None if device in {"auto", "cuda"} else device)
            return _SHARE * free / 1e9
    return _SHARE * _free_ram() / 1e9


def _free_ram() -> int:
    try:
        with Path("/proc/meminfo").open(encoding="ascii") as lines:
            facts = dict(line.split(":") for line in lines)
        return int(facts["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        # No /proc, as on a Mac: half of all memory is a careful guess.
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _loads(library: str) -> bool:
    try:
        # Milliseconds, where importing torch takes seconds.
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
