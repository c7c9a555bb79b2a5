"""The Fabric of one training process: its device, its precision, its place among the processes."""

from __future__ import annotations

import logging
from typing import Any, Final, cast

import torch

from embedcache.encoders.choices import Precision
from embedcache.encoders.devices import find_device
from embedcache.errors import DeviceError, MissingExtraError

try:
    from lightning_fabric import Fabric
    from lightning_fabric import plugins as fabric_plugins
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

__all__ = ["Fabric", "check_devices", "choose_precision", "find_free_network_port", "open_fabric"]
_MIXED: Final = {"bf16": "bf16-mixed", "fp16": "16-mixed"}
_LOGGERS: Final = ("lightning_fabric", "lightning.fabric", "lightning_utilities.core.rank_zero")


def choose_precision(name: str, device: torch.device) -> Precision:
    """Return the precision that 'auto' means on a device; any other name means itself.

    Parameters
    ----------
    name
        'auto', 'fp32', 'bf16' or 'fp16'.
    device
        Device that trains.

    Raises
    ------
    DeviceError
        The device has no such precision.
    """
    if name == "auto":
        if device.type != "cuda":
            return "fp32"
        with torch.cuda.device(device):
            # bf16 that a GPU only emulates is slow: such a GPU gets fp16 with a loss scaler.
            return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device.type == "mps" and name == "bf16":
        raise DeviceError("--precision bf16: not on an Apple GPU; use fp16 or fp32")
    return cast(Precision, name)


def check_devices(device: str, n_devices: int) -> torch.device:
    """Return the device to train on; with several, the first of its kind.

    Parameters
    ----------
    device
        'auto', 'cpu', 'cuda', 'cuda:N' or 'mps'.
    n_devices
        Number of devices of that kind, at least 1.

    Raises
    ------
    DeviceError
        The machine has fewer devices, or `device` names a single one where several are wanted.
    """
    first = find_device(device)
    if n_devices == 1:
        return first
    if ":" in str(first) or first.type == "mps":
        raise DeviceError(f"--devices {n_devices}: --device {device} is one; pass --device cuda")
    if first.type == "cuda" and torch.cuda.device_count() < n_devices:
        raise DeviceError(
            f"--devices {n_devices}: this machine has {torch.cuda.device_count()} CUDA GPU(s)"
        )
    return first


class _StartedProcess(LightningEnvironment):
    """Environment of a process that `processes` has started: Fabric is to start none itself."""

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


def open_fabric(device: str, precision: Precision, rank: int, n_devices: int, port: int) -> Fabric:
    """Return the Fabric that moves, scales and synchronises for one process, launched.

    Parameters
    ----------
    device
        'auto', 'cpu', 'cuda', 'cuda:N' or 'mps'.
    precision
        Precision of the forward and backward pass; weights stay float32.
    rank
        Number of this process, from 0.
    n_devices
        Number of devices and of processes.
    port
        Port on this machine at which the processes meet; any number where there is one process.
    """
    # They report devices and processes at INFO, between the lines of this project.
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
    first = find_device(device)
    plugin: Any = fabric_plugins.Precision()
    if precision != "fp32":
        plugin = MixedPrecision(_MIXED[precision], first.type)  # type: ignore[arg-type] # a Literal
    if n_devices == 1:
        # To Fabric a list names devices, and a number counts them.
        devices: Any = [first.index] if ":" in str(first) else 1
        fabric = Fabric(accelerator=first.type, devices=devices, plugins=[plugin])
    else:
        strategy = DDPStrategy(cluster_environment=_StartedProcess(rank, port))
        fabric = Fabric(
            accelerator=first.type, devices=n_devices, strategy=strategy, plugins=[plugin]
        )
    fabric.launch()
    return fabric
