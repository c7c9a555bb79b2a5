"""The encoder that runs a torch module: device, precision, copies and memory format."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import nn

from embedcache.encoders.checkpoints import load_strictly, read_state_dict
from embedcache.encoders.devices import find_device
from embedcache.encoders.hub import hub_off
from embedcache.encoders.spec import Encoder, EncoderSpec, FloatArray, check_rows, identity_of
from embedcache.encoders.torch_settings import building_settings, encoder_settings
from embedcache.errors import DeviceError, EncoderWeightsError

if TYPE_CHECKING:
    from embedcache.encoders.registry import Identified

_DTYPES: Final = {"bf16": torch.bfloat16, "fp16": torch.float16}
# Measured on two cores: beyond 16 images of 224 x 224 the activations leave the cache and every
# image gets slower; a GPU needs a few hundred to be busy.
_CPU_PIXELS: Final = 16 * 224 * 224
_GPU_PIXELS: Final = 256 * 224 * 224
# A driver's refusals, such as of a GPU that is full or kept by another process before torch has
# taken any of it; torch older than 2.8 has no class of its own for them.
_REFUSALS: Final = (getattr(torch, "AcceleratorError", torch.OutOfMemoryError),)
# What torch says where memory ran out and it has no class for that: the CPU's allocator, CUDA's
# driver, its libraries, an Apple GPU.
_NO_MEMORY: Final = (
    "DefaultCPUAllocator",
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
)


class TorchEncoder(Encoder):
    """A torch module as an encoder.

    Parameters
    ----------
    spec
        Facts about the encoder.
    identity
        Everything that decides a value, as `identity_of` returns it; the precision is read from it.
    module
        Network that maps (n, channels, height, width) to (n, dim); put into evaluation mode here.
    device
        'auto', 'cpu', 'cuda', 'cuda:N' or 'mps'.

    Raises
    ------
    DeviceError
        This machine has no such device, or the module does not fit into its memory.
    """

    def __init__(
        self, spec: EncoderSpec, identity: dict[str, Any], module: nn.Module, *, device: str
    ) -> None:
        super().__init__(spec, identity)
        self.device = find_device(device)
        module = module.eval().requires_grad_(requires_grad=False)
        # Convolutions are 1.6 times faster in this memory format on a CPU with AVX-512, and use
        # tensor cores on a GPU; transformers do not care.
        self.module = to_device(module, self.device, spec.name, channels_last=True)
        self._autocast = _DTYPES.get(identity["precision"])
        self._staging = _Staging(self.device) if self.device.type == "cuda" else None
        self._most_rows = 0  # 0: no batch has run out of memory yet

    @property
    def batch_size(self) -> int:
        """Batch size that suits this encoder's input on its device."""
        _, height, width = self.spec.preprocess.shape
        pixels = _CPU_PIXELS if self.device.type == "cpu" else _GPU_PIXELS
        return max(1, pixels // (height * width))

    def encode(self, batch: FloatArray) -> FloatArray:
        """Return one embedding per preprocessed picture; see `Encoder.encode`."""
        return self.encode_async(batch)()

    def encode_async(self, batch: FloatArray) -> Callable[[], FloatArray]:
        """Queue a batch on the device; see `Encoder.encode_async`.

        A batch that does not fit into the device's memory is halved until it does, and later
        batches are cut to what did.
        """
        most = self._most_rows or len(batch)
        if len(batch) > most:
            parts = [self.encode_async(batch[i : i + most]) for i in range(0, len(batch), most)]
            rows = torch.cat([torch.from_numpy(part()) for part in parts]).numpy()
            return lambda: rows
        try:
            return self._queue(batch)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if len(batch) == 1:
                raise DeviceError(
                    f"'{self.spec.name}' does not fit into the memory of {self.device} even one "
                    f"image at a time; {_room_for(self.device)}"
                ) from None
            torch.cuda.empty_cache()  # or blocks of the failed batch would stay in torch's hands
            self._most_rows = (len(batch) + 1) // 2
        return self.encode_async(batch)

    def _queue(self, batch: FloatArray) -> Callable[[], FloatArray]:
        with encoder_settings(self.device), self._precision():
            host = torch.from_numpy(np.ascontiguousarray(batch, dtype=np.float32))
            images = self._staging.upload(host) if self._staging else host.to(self.device)
            rows = self.module(images.contiguous(memory_format=torch.channels_last)).float()
            fetch = self._staging.download(rows) if self._staging else rows.cpu
        n_rows = len(batch)
        return lambda: check_rows(fetch().numpy(), n_rows, self.spec)

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        if self._autocast is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self._autocast)


class _Staging:
    """Pinned buffers and a stream of their own, so that copies run beside the network.

    Two upload buffers are enough: while one travels the other is filled.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._buffers: list[torch.Tensor] = []
        self._copied: list[torch.cuda.Event] = []
        self._turn = 0

    def upload(self, batch: torch.Tensor) -> torch.Tensor:
        """Copy a batch to the device without waiting; the caller may reuse `batch` at once."""
        if len(self._buffers) < 2:
            self._buffers.append(torch.empty_like(batch, pin_memory=True))
            self._copied.append(torch.cuda.Event())
        turn = self._turn = (self._turn + 1) % len(self._buffers)
        # What this buffer held before may still be on its way.
        self._copied[turn].synchronize()
        if self._buffers[turn].numel() < batch.numel():
            self._buffers[turn] = torch.empty_like(batch, pin_memory=True)
        pinned = self._buffers[turn].view(-1)[: batch.numel()].view(batch.shape)
        pinned.copy_(batch)
        with torch.cuda.stream(self._stream):
            images = pinned.to(self._device, non_blocking=True)
            self._copied[turn].record(self._stream)
        compute = torch.cuda.current_stream(self._device)
        compute.wait_stream(self._stream)
        images.record_stream(compute)  # or the allocator would reuse it under the network
        return images

    def download(self, rows: torch.Tensor) -> Callable[[], torch.Tensor]:
        """Start copying embeddings to the host and return a function that waits for them."""
        host = torch.empty(rows.shape, dtype=rows.dtype, pin_memory=True)
        host.copy_(rows, non_blocking=True)
        done = torch.cuda.Event()
        done.record(torch.cuda.current_stream(self._device))

        def fetch() -> torch.Tensor:
            done.synchronize()
            return host

        return fetch


def to_device(
    module: nn.Module, device: torch.device, name: str, *, channels_last: bool = False
) -> nn.Module:
    """Return a network on a device.

    Parameters
    ----------
    module
        The network; of no use any more where this raises.
    device
        Device that takes it.
    name
        Name of the encoder, for messages.
    channels_last
        Whether convolutions get the memory format in which a GPU's tensor cores work.

    Raises
    ------
    DeviceError
        It does not fit into the device's memory, or the device refuses to work.
    """
    n_bytes = sum(tensor.nbytes for tensor in module.state_dict().values())
    try:
        module = module.to(device)
        return module.to(memory_format=torch.channels_last) if channels_last else module
    except (*_REFUSALS, RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise DeviceError(
                f"'{name}' does not fit into the memory of {device}: its weights alone take "
                f"{n_bytes / 1e9:.1f} GB; {_room_for(device)}"
            ) from None
        if not isinstance(error, _REFUSALS):
            raise
        reason = str(error).splitlines()[0]
        raise DeviceError(f"{device} refuses '{name}': {reason}; pass --device cpu") from None


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that a device, or the machine, has no memory left."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)


def _room_for(device: torch.device) -> str:
    """Return what a user can do where a device has too little memory."""
    if device.type == "cpu":
        return "end what else runs here, or take a smaller encoder"
    return "end what else runs there, or pass --device cpu"


def load_torch(
    build: Callable[[EncoderSpec, Path | None], nn.Module], identified: Identified, device: str
) -> TorchEncoder:
    """Return the encoder of a network: what the loaders of torch models are made of.

    Parameters
    ----------
    build
        Function that returns the network with the weights of a file, or as initialised where there
        is none.
    identified
        Encoder to load, as the loader is given it.
    device
        Device to load onto, as the loader is given it.
    """
    try:
        with building_settings(), hub_off():  # the weights are here: nothing is left to ask for
            module = _build(build, identified)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise DeviceError(
            f"'{identified.spec.name}' does not fit into the memory of this machine while it is "
            f"loaded; {_room_for(torch.device('cpu'))}"
        ) from None
    spec = identified.spec
    digest = identified.weights_digest or tensors_digest(module)
    return TorchEncoder(
        spec, identity_of(spec, digest, identified.precision), module, device=device
    )


def _build(
    build: Callable[[EncoderSpec, Path | None], nn.Module], identified: Identified
) -> nn.Module:
    """Return the network of an encoder on the CPU, its weights loaded or drawn."""
    spec, file = identified.spec, identified.weights_file
    if file is not None and spec.weights.kind == "run":
        # Fine-tuned: the tensors have the network's own names, whatever the published file's are.
        module = build(spec, None)
        load_strictly(module, read_state_dict(file), file)
    elif file is not None:
        module = build(spec, file)
    elif spec.weights.kind != "random":
        raise EncoderWeightsError(f"'{spec.name}' was identified without its weights")
    else:
        with random_weights(spec.weights.seed):
            module = build(spec, None)
    return module


@contextlib.contextmanager
def random_weights(seed: int) -> Iterator[None]:
    """Draw whatever is initialised inside from `seed`, and leave torch's generator as it was."""
    # No devices: networks are built on the CPU, and only its generator is used.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def tensors_digest(module: nn.Module) -> str:
    """Return the SHA-256 of a module's parameters and buffers, names and values."""
    digest = hashlib.sha256()
    # By name: the order in which a network lists its tensors decides no value.
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
