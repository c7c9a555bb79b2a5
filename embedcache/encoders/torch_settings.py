"""Torch as encoders run it, whatever the caller has set: a row depends on its image alone.

Torch keeps precision, kernels, default types and autocast as settings of the process. A notebook
that sets one of them for its own training must not change what is stored.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, Final

import torch

_BACKENDS: Final[Any] = torch.backends
# Where float32 may be computed in TF32 or bfloat16 (torch 2.9 and newer); each overrides what is
# set for its library or for all of torch, and the older switches.
_FLOAT32: Final = (
    _BACKENDS.cuda.matmul,
    *(getattr(_BACKENDS.cudnn, name, None) for name in ("conv", "rnn")),
    *(getattr(_BACKENDS.mkldnn, name, None) for name in ("matmul", "conv", "rnn")),
)
# Every other setting: who holds it, its name, and its value while an encoder runs.
_VALUES: Final = (
    (_BACKENDS.cudnn, "enabled", True),
    (_BACKENDS.mkldnn, "enabled", True),
    (_BACKENDS.mkldnn, "deterministic", False),
    (_BACKENDS.cuda.matmul, "allow_fp16_reduced_precision_reduction", True),
    (_BACKENDS.cuda.matmul, "allow_bf16_reduced_precision_reduction", True),
    (_BACKENDS.cuda.matmul, "allow_fp16_accumulation", False),
)
_ATTENTION: Final = ("flash", "mem_efficient", "math", "cudnn")  # kernels that torch picks from


@contextlib.contextmanager
def encoder_settings(device: torch.device) -> Iterator[None]:
    """Run a block under the settings of this project, and give the caller's back after it.

    Float32 stays float32, so that a laptop and a GPU share one fingerprint; nothing is recorded
    for gradients; new tensors are float32 and on the device.

    Parameters
    ----------
    device
        Device of the network.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        if torch.is_autocast_enabled(device.type):
            stack.enter_context(torch.autocast(device.type, enabled=False))
        if torch.get_default_device().type != device.type:
            stack.enter_context(device)
        stack.enter_context(own_settings(repeatable=False))
        yield


@contextlib.contextmanager
def own_settings(*, repeatable: bool) -> Iterator[None]:
    """Run a block with exact float32 and all kernels, and give the caller's settings back after it.

    Parameters
    ----------
    repeatable
        Whether a GPU adds in one order: slower, and an error in what has none. Else it may pick
        whatever kernel is fastest.
    """
    with contextlib.ExitStack() as stack:
        for undo in _set_all(repeatable=repeatable):
            stack.callback(undo)
        yield


@contextlib.contextmanager
def building_settings() -> Iterator[None]:
    """Run a block that makes a network: float32 numbers on the CPU, whatever the caller has set."""
    before = torch.get_default_dtype()
    with torch.inference_mode(mode=False), torch.device("cpu"):
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(before)


def _set_all(*, repeatable: bool) -> Iterator[Callable[[], object]]:
    """Set each setting, and yield what takes it back."""
    is_new = hasattr(_BACKENDS.cuda.matmul, "fp32_precision")
    operations = [operation for operation in _FLOAT32 if is_new and operation is not None]
    for operation in operations:
        yield functools.partial(_give_back, operation, operation.fp32_precision)
    # The older switches set the newer ones too: they are set before them and given back before.
    for setter, value, before in _older_switches():
        yield _set(setter, value, before)
    for operation in operations:
        operation.fp32_precision = "ieee"
    # A benchmark picks what is fastest now, and another run may pick otherwise.
    yield _assign(_BACKENDS.cudnn, "benchmark", value=not repeatable)
    yield _assign(_BACKENDS.cudnn, "deterministic", value=repeatable)
    for holder, name, value in _VALUES:
        if hasattr(holder, name):
            yield _assign(holder, name, value=value)
    for kernel in _ATTENTION:
        enabled = getattr(_BACKENDS.cuda, f"{kernel}_sdp_enabled")()
        yield _set(getattr(_BACKENDS.cuda, f"enable_{kernel}_sdp"), True, enabled)
    fast_path = _BACKENDS.mha.get_fastpath_enabled()
    yield _set(_BACKENDS.mha.set_fastpath_enabled, True, fast_path)
    # What is strict here may be an error on a GPU, for a caller who meant a training.
    strict = torch.are_deterministic_algorithms_enabled()
    if strict or repeatable:  # to set it for the first time takes a second
        warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
        torch.use_deterministic_algorithms(mode=repeatable)  # attention heeds it where it is strict
        yield lambda: torch.use_deterministic_algorithms(mode=strict, warn_only=warn_only)
    yield _set(torch.set_default_dtype, torch.float32, torch.get_default_dtype())


def _older_switches() -> Iterator[tuple[Callable[[Any], object], object, object]]:
    """Yield the setter, the value and the caller's value of each switch of torch before 2.9.

    Torch refuses to tell one that contradicts the newer ones: it is left as it is.
    """
    with contextlib.suppress(RuntimeError):
        yield torch.set_float32_matmul_precision, "highest", torch.get_float32_matmul_precision()
    with contextlib.suppress(RuntimeError):
        set_cudnn = functools.partial(setattr, _BACKENDS.cudnn, "allow_tf32")
        yield set_cudnn, False, _BACKENDS.cudnn.allow_tf32


def _set(setter: Callable[[Any], object], value: object, before: object) -> Callable[[], object]:
    if value != before:
        setter(value)
    return lambda: value != before and setter(before)


def _assign(holder: Any, name: str, *, value: object) -> Callable[[], object]:
    return _set(functools.partial(setattr, holder, name), value, getattr(holder, name))


def _give_back(operation: Any, precision: str) -> None:
    # What was set above the operation is to stay set there.
    operation.fp32_precision = "none"
    if operation.fp32_precision != precision:
        operation.fp32_precision = precision
