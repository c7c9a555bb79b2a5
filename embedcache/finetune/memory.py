"""Memory of a training: kept between steps on a CPU, and its peak on any device."""

from __future__ import annotations

import ctypes
import platform
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import torch

# Parameters of glibc's `mallopt`, by their numbers in malloc.h.
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_MAX: Final = -4


@contextmanager
def reuse_freed_memory(device: torch.device) -> Iterator[None]:
    """Have glibc hold the memory of activations between steps, instead of giving it back.

    The kernel would hand the same pages out again one by one, zeroed: a step on two cores then
    takes about twice as long (benchmarks/bench_finetune.py: 1.7 for SonoNet-16, 2.1 for
    EfficientNet-lite0).

    Parameters
    ----------
    device
        Device that trains; nothing is changed unless it is the CPU.
    """
    if device.type != "cpu" or platform.libc_ver()[0] != "glibc":
        yield
        return
    libc = ctypes.CDLL(None)
    # Large blocks come from the heap too, and its end is never given back (-1).
    libc.mallopt(_M_MMAP_MAX, 0)
    libc.mallopt(_M_TRIM_THRESHOLD, -1)
    try:
        yield
    finally:  # glibc's defaults; that it raises them by itself stays off from now on
        libc.mallopt(_M_MMAP_MAX, 65536)
        libc.mallopt(_M_TRIM_THRESHOLD, 128 * 1024)
        libc.malloc_trim(0)


def peak_memory_bytes(device: torch.device) -> int:
    """Return the most memory that was in use: of a GPU's by torch, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # macOS counts bytes, Linux counts units of 1024 bytes.
    return peak if platform.system() == "Darwin" else 1024 * peak
