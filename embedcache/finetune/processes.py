"""One process a device: the caller's own is the first, the others follow it and end with it.

No launcher of Fabric or of torchrun does this. Fabric's `DDPStrategy` starts the others by running
`sys.argv` again, so a script or a notebook that calls `Project.finetune` would be run once a
device. Its spawning strategy and torchrun's agent put every rank, the first too, into children: the
callbacks of the caller (progress, epochs, messages) would have to be pickled and could tell it
nothing, and a torchrun agent answers a signal by restarting or by exit codes of its own. Here the
first rank is the calling process, so an exception, a signal and a callback are ordinary ones.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Final

import torch

from embedcache.encoders.choices import Precision
from embedcache.encoders.devices import find_device
from embedcache.encoders.plugins import register_file
from embedcache.errors import DeviceError, EmbedcacheError
from embedcache.finetune.fabric import Fabric, find_free_network_port, open_fabric

_FAREWELL_S: Final = 10  # a process that fails closes its connections before it has ended
# A fork would inherit CUDA and the locks of its threads in a state that it cannot use.
_context = multiprocessing.get_context("spawn")


@dataclass(frozen=True, slots=True)
class _Pool:
    """Settings that every process of a training has to know.

    Parameters
    ----------
    device
        'auto', 'cpu', 'cuda', 'cuda:N' or 'mps'.
    precision
        Precision of the forward and backward pass.
    n_devices
        Number of processes, one a device.
    port
        Port on this machine at which they meet; 0 where there is one.
    encoder_file
        Python file of encoders to register; None where there is none.
    """

    device: str
    precision: Precision
    n_devices: int
    port: int
    encoder_file: Path | None

    def open_fabric(self, rank: int) -> Fabric:
        """Return the Fabric of one process."""
        return open_fabric(self.device, self.precision, rank, self.n_devices, self.port)

    def share_cores(self) -> None:
        """Give this process its part of the threads, where all of them compute on the CPU."""
        if self.n_devices > 1 and find_device(self.device).type == "cpu":
            torch.set_num_threads(max(1, torch.get_num_threads() // self.n_devices))


@contextmanager
def on_devices(
    work: Callable[..., object],
    arguments: tuple[Any, ...],
    *,
    device: str,
    n_devices: int,
    precision: Precision,
    encoder_file: Path | None = None,
) -> Iterator[Fabric]:
    """Yield the Fabric of the first process; the others run `work(fabric, *arguments)` meanwhile.

    The caller has to do the same work with the Fabric that it is given.

    Parameters
    ----------
    work, arguments
        Function of a module, and its arguments after the Fabric; all of them can be pickled.
    device, n_devices, precision
        Kind of device, number of them, and precision of the forward and backward pass.
    encoder_file
        Python file whose encoders are registered in the other processes too; None for no file.

    Raises
    ------
    DeviceError
        Another process has failed.
    """
    port = find_free_network_port() if n_devices > 1 else 0
    pool = _Pool(device, precision, n_devices, port, encoder_file)
    threads = torch.get_num_threads()
    others: list[BaseProcess] = []
    is_over = threading.Event()
    try:
        _start_others(pool, work, arguments, others)
        threading.Thread(target=_end_if_alone, args=(others, is_over), daemon=True).start()
        pool.share_cores()
        yield pool.open_fabric(0)
        for other in others:
            other.join()
    except EmbedcacheError:
        raise
    except RuntimeError as error:  # a collective whose other side is gone, or about to go
        reason = _failure(others) if others else None
        if reason is None:
            raise
        raise DeviceError(f"{reason} ({str(error).splitlines()[0]})") from None
    finally:
        is_over.set()
        _end_all(others)
        torch.set_num_threads(threads)


def _end_all(others: Sequence[BaseProcess]) -> None:
    for other in others:
        other.kill()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _start_others(
    pool: _Pool,
    work: Callable[..., object],
    arguments: tuple[Any, ...],
    others: list[BaseProcess],
) -> None:
    """Start the processes of rank 1 and up, append each to `others`, and wait for all of them."""
    connections = []
    for rank in range(1, pool.n_devices):
        here, there = _context.Pipe(duplex=False)
        with there:
            # Not a daemon: Python lets a daemon have no children, and it needs readers.
            process = _context.Process(target=_follow, args=(rank, pool, there, work, arguments))
            others.append(process)
            process.start()
        connections.append(here)
    for here in connections:
        with here:
            _wait_until_ready(here, others)


def _failure(others: Sequence[BaseProcess]) -> str | None:
    """Wait a little until one has ended; return what to say of the first that has failed."""
    ended = wait([other.sentinel for other in others], timeout=_FAREWELL_S)
    for rank, other in enumerate(others, 1):
        if other.sentinel in ended:
            other.join()  # the sentinel is ready a moment before the exit code
        if other.exitcode:
            return (
                f"process {rank} of {len(others) + 1} ended with exit code {other.exitcode}, its "
                "reason stands above; the epochs before are kept"
            )
    return None


def _wait_until_ready(connection: Connection, others: Sequence[BaseProcess]) -> None:
    """Wait for one of the others: the first collective would wait for a missing one for minutes."""
    try:
        connection.recv_bytes()
    except EOFError:
        raise DeviceError(_failure(others) or "a process ended before it was ready") from None


def _end_if_alone(others: Sequence[BaseProcess], is_over: threading.Event) -> None:
    """End this process where another has failed and it waits for that one inside CUDA for ever."""
    running = list(others)
    while running:
        wait([other.sentinel for other in running])
        if is_over.wait(_FAREWELL_S):
            return
        if reason := _failure(others):
            sys.stderr.write(f"embedcache: {reason}\n")
            sys.stderr.flush()
            os._exit(1)  # an exception in this thread would not end the one that waits
        running = [other for other in running if other.exitcode is None]


def _follow(
    rank: int,
    pool: _Pool,
    ready: Connection,
    work: Callable[..., object],
    arguments: tuple[Any, ...],
) -> None:
    """Do the work of one of the other processes."""
    for number in (signal.SIGTERM, signal.SIGINT):  # the first process answers, and ends this one
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if pool.encoder_file is not None:
        register_file(pool.encoder_file)
    pool.share_cores()
    with ready:
        ready.send_bytes(b"")
    work(pool.open_fabric(rank), *arguments)


def _end_with_parent() -> None:
    """End this process when the first one is gone: in a collective it would wait for long."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
