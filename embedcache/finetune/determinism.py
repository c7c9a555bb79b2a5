"""Sums in one order on a GPU, so that a training that was interrupted ends the same to the bit."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from embedcache.encoders.torch_settings import own_settings

_log = logging.getLogger(__name__)


@contextmanager
def repeatable(device: torch.device) -> Iterator[None]:
    """Have a GPU add in one order inside, so that a training that went on ends the same.

    See `relax_determinism_if_needed` for networks that cannot. As in extraction, fp32 is fp32,
    whatever the caller has set.
    """
    with own_settings(repeatable=device.type == "cuda"):
        yield


def relax_determinism_if_needed(passes: Callable[[], object]) -> None:
    """Try a network once, and allow sums in any order where an operation has no fixed one.

    A training of such a network that was interrupted may end a little differently; a warning says
    so.

    Parameters
    ----------
    passes
        Function that runs the network forward and back.
    """
    try:
        passes()
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        _log.warning("not repeatable to the bit on this device: %s", str(error).split(". ")[0])
        torch.use_deterministic_algorithms(mode=True, warn_only=True)
