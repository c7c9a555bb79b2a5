"""Tensors out of published files: read without running what else is in them, poured in strictly.

`strict=False` on a file that is wrapped or prefixed in another way than expected leaves a random
network and says nothing. Here every tensor has to be accounted for.
"""

from __future__ import annotations

import contextlib
import pickle
import re
import warnings
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from embedcache.errors import EncoderWeightsError

Tensors = dict[str, torch.Tensor]


# What is often downloaded in the place of a file, by its first bytes.
_NO_WEIGHTS: Final = {
    b"version https://git-lfs": "it is a Git LFS pointer; run `git lfs pull` where it is from",
    b"<!doctype html": "it is a web page; download the file itself",
    b"<html": "it is a web page; download the file itself",
}


class _Ignored:
    """Takes the place of a harmless class that a training log in a checkpoint refers to."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


def _no_method(*_: Any) -> None:
    """Take the place of `getattr`, by which such a log refers to methods of its class."""


_NUMPY: Final[tuple[Any, ...]] = (np.zeros(1).__reduce__()[0], np.float64(1).__reduce__()[0])
# mmengine saves its log beside the weights: counts and losses. Nothing of it is used, but torch
# would refuse the file.
_LOG_CLASSES: Final[tuple[Any, ...]] = (
    (_Ignored, "mmengine.logging.history_buffer.HistoryBuffer"),
    (_no_method, "__builtin__.getattr"),  # what pickle's protocol 2 calls it
    (_no_method, "builtins.getattr"),
    np.ndarray,
    np.dtype,
    *(type(np.dtype(code)) for code in "?bhilqBHILQefd"),
    *((function, f"numpy.core.multiarray.{function.__name__}") for function in _NUMPY),
    *((function, f"numpy._core.multiarray.{function.__name__}") for function in _NUMPY),
)


def read_state_dict(file: Path, *, under: str = "") -> Tensors:
    """Return the tensors of a checkpoint without running any code that is in it.

    Parameters
    ----------
    file
        File of safetensors, or of `torch.save`.
    under
        Key under which a checkpoint of several things keeps its tensors.

    Raises
    ------
    EncoderWeightsError
        The file is truncated, no checkpoint, holds something other than tensors, or would have to
        be unpickled blindly.
    """
    content = _read(file)
    if under:
        if not isinstance(content, dict) or under not in content:
            raise EncoderWeightsError(
                f"{file}: has no '{under}', under which the published file keeps its tensors"
            )
        content = content[under]
    if not isinstance(content, dict) or not content:
        raise EncoderWeightsError(f"{file}: holds {type(content).__name__}, expected named tensors")
    strange = [name for name, value in content.items() if not isinstance(value, torch.Tensor)]
    if strange:
        folders = [name for name in strange if isinstance(content[name], dict)]
        first, inside = (folders or strange)[0], " (one level too deep)" if folders else ""
        raise EncoderWeightsError(
            f"{file}: '{first}' is {type(content[first]).__name__}, not a tensor{inside}; "
            "give the file as it was published"
        )
    return dict(content)


def _read(file: Path) -> Any:
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(file)
        with warnings.catch_warnings(), torch.serialization.safe_globals(list(_LOG_CLASSES)):
            warnings.simplefilter("ignore")  # of pickle protocols; what cannot be read is an error
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a foreign file makes the parsers raise
        raise EncoderWeightsError(
            f"{file}: cannot be read as a checkpoint: {why_unreadable(error, file)}"
        ) from None


def why_unreadable(error: Exception, file: Path) -> str:
    """Return why a file cannot be read; torch's own words advise to run what is in it."""
    with contextlib.suppress(OSError), file.open("rb") as stream:
        start = stream.read(64).lstrip().lower()
        for beginning, reason in _NO_WEIGHTS.items():
            if start.startswith(beginning):
                return reason
    message = " ".join(str(error).split())
    code = re.search(r"GLOBAL (\S+) (was not an allowed|whose module)", message)
    if code:
        return (
            f"it holds '{code[1]}', which is code, not a tensor, and was not run; take the file "
            "from where it is published"
        )
    if isinstance(error, pickle.UnpicklingError | EOFError):
        return "it is empty or nothing that torch.save has written; download it again"
    return f"{message.partition('. ')[0][:160]}; download it again"


def strip_prefix(tensors: Tensors, prefix: str, file: Path) -> Tensors:
    """Return the tensors under a prefix, without it: one part of a larger model.

    Raises
    ------
    EncoderWeightsError
        No tensor is under the prefix.
    """
    part = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    if not part:
        raise EncoderWeightsError(
            f"{file}: none of its {len(tensors)} tensors is under '{prefix}', first "
            f"'{next(iter(tensors))}'; give the file as it was published"
        )
    return part


def rename(tensors: Tensors, names: Mapping[str, str]) -> Tensors:
    """Return the tensors with parts of their names replaced, in the order given."""
    renamed = {}
    for name, tensor in tensors.items():
        for old, new in names.items():
            name = name.replace(old, new)  # noqa: PLW2901 - one replacement after another
        renamed[name] = tensor
    return renamed


def load_strictly(
    module: nn.Module,
    tensors: Tensors,
    file: Path,
    *,
    unused: Iterable[str] = (),
    absent: Iterable[str] = (),
) -> None:
    """Pour tensors into a module, every one of them and nothing else.

    Batch normalisation's step counter, which older files lack, is the one that may be missing: it
    plays no part once training is over.

    Parameters
    ----------
    module
        Network to fill; its tensors are overwritten.
    tensors
        Tensors of the file, by their names in the network.
    file
        File that they are from, for errors.
    unused
        Tensors that the published file holds and the module has no place for: they must be there.
    absent
        Tensors of the module that the published file does not hold; they keep their values.

    Raises
    ------
    EncoderWeightsError
        A tensor is missing, left over, or has another shape: another model's file.
    """
    state, unused, absent = module.state_dict(), set(unused), set(absent)
    counters = {name for name in state if name.endswith(".num_batches_tracked")}
    # What may be missing from the file keeps the value that the module has.
    unchanged = {name: state[name] for name in (counters | absent) - (counters & tensors.keys())}
    wanted = (state.keys() - unchanged.keys()) | unused
    problems = _problems(state, tensors, wanted)
    if problems:
        raise EncoderWeightsError(
            f"{file}: not the weights of {type(module).__name__}: {'; '.join(problems)}; give the "
            "file of the encoder you named"
        )
    used = {name: tensor for name, tensor in tensors.items() if name not in unused}
    module.load_state_dict({**used, **unchanged}, strict=True)


def _problems(state: Tensors, tensors: Tensors, wanted: AbstractSet[str]) -> list[str]:
    """Return what keeps tensors from being the `wanted` ones of a network, first of each kind."""
    missing = sorted(wanted - tensors.keys())
    extra = sorted(tensors.keys() - wanted)
    shapes = [
        f"'{name}' is {tuple(tensors[name].shape)}, expected {tuple(state[name].shape)}"
        for name in sorted(state.keys() & tensors.keys())
        if tensors[name].shape != state[name].shape
    ]
    problems = [
        f"{len(missing)} tensors missing, first '{missing[0]}'" if missing else "",
        f"{len(extra)} unexpected, first '{extra[0]}'" if extra else "",
        shapes[0] if shapes else "",
    ]
    return [problem for problem in problems if problem]
