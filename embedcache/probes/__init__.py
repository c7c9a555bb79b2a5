"""Light models on embeddings, NumPy at both ends; no torch, so that a laptop starts at once."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from embedcache.probes.estimators import LinearProbe, LinearProbeCV

__all__ = ["LinearProbe", "LinearProbeCV"]


def __getattr__(name: str) -> Any:
    # Late, so that what needs one small module of this package does not import scikit-learn.
    if name in __all__:
        return getattr(import_module("embedcache.probes.estimators"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
