"""Whether a device can be had at all, told without importing torch."""

from __future__ import annotations

import ctypes
import re
import sys
from typing import Final

from embedcache.errors import DeviceError

_NAMES: Final = re.compile(r"auto|cpu|mps|cuda(:\d+)?")
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


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
