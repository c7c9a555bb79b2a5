"""Which device is meant, and whether it can be had at all, told without torch where possible."""

from __future__ import annotations

import ctypes
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from embedcache.errors import DeviceError

if TYPE_CHECKING:
    import torch

_SHARE: Final = 0.8
_NAMES: Final = re.compile(r"auto|cpu|mps|cuda(:(0|[1-9][0-9]*))?")
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


def find_device(name: str) -> torch.device:
    """Return the device of a name, or raise; never another one than was asked for.

    Raises
    ------
    DeviceError
        This machine has no such device.
    """
    check_device(name)
    import torch

    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        name = "cuda" if cuda else "mps" if mps else "cpu"
    kind, _, digits = name.partition(":")
    if kind == "cuda" and not cuda:
        built = "is built without CUDA" if torch.version.cuda is None else "sees no CUDA GPU"
        raise DeviceError(
            f"--device {name}: torch {torch.__version__} {built}; install the CUDA build and a "
            "driver, or pass --device cpu"
        )
    # Before torch reads the number, which takes cuda:300 for cuda:44.
    if kind == "cuda" and int(digits or 0) >= torch.cuda.device_count():
        raise DeviceError(
            f"--device {name}: this machine has {torch.cuda.device_count()} CUDA GPU(s), numbered "
            "from 0"
        )
    if kind == "mps" and not mps:
        raise DeviceError("--device mps: no Apple GPU here; pass --device cpu")
    return torch.device(name)


def free_memory_gb(device: str) -> float:
    """Return how much memory networks may take there, with a margin.

    A Mac's GPU shares its memory, and 'auto' is taken for the CPU where there is no driver.

    Raises
    ------
    DeviceError
        This machine has no such device.
    """
    if device.startswith("cuda") or (device == "auto" and any(map(_loads, _DRIVERS))):
        import torch  # a driver is there, so torch will be needed

        meant = find_device(device)
        if meant.type == "cuda":
            free, _ = torch.cuda.mem_get_info(meant)
            return _SHARE * free / 1e9
    return _SHARE * _free_ram() / 1e9


def describe_devices() -> tuple[list[str], list[str]]:
    """Return what encoders can run on, one text a device, and what is wrong with the rest."""
    import torch

    devices = [f"cpu, {free_memory_gb('cpu') / _SHARE:.0f} GB of memory free"]
    driver, is_cuda = any(map(_loads, _DRIVERS)), torch.version.cuda or torch.version.hip
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        free, whole = torch.cuda.mem_get_info(number)
        name = torch.cuda.get_device_name(number)
        devices.append(f"cuda:{number}, {name}, {free / 1e9:.0f} of {whole / 1e9:.0f} GB free")
    if torch.backends.mps.is_available():
        devices.append("mps, shares the memory of the cpu")
    troubles = []
    if driver and not is_cuda:
        troubles.append("a GPU's driver is here, but torch is built without it")
    elif driver and not torch.cuda.is_available():
        troubles.append("a GPU's driver is here, but torch can use no GPU")
    return devices, troubles


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
