"""An embedding-cache feature store with patient-level probes for foundation models in ultrasound.

>>> import embedcache
>>> project = embedcache.open("data_manifest.csv")  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from embedcache.data.embeddings import LabelledEmbeddings as LabelledEmbeddings
    from embedcache.encoders.registry import load_encoder as load_encoder
    from embedcache.errors import EmbedcacheError as EmbedcacheError
    from embedcache.project import Project as Project
    from embedcache.project import open_project as open  # noqa: A004 - embedcache.open
    from embedcache.protocol.estimators import LinearProbe as LinearProbe
    from embedcache.protocol.estimators import LinearProbeCV as LinearProbeCV

__version__ = "0.1.0"
__all__ = [
    "EmbedcacheError",
    "LabelledEmbeddings",
    "LinearProbe",
    "LinearProbeCV",
    "Project",
    "__version__",
    "load_encoder",
    "open",
]

_HOMES = {
    "EmbedcacheError": "embedcache.errors:EmbedcacheError",
    "LabelledEmbeddings": "embedcache.data.embeddings:LabelledEmbeddings",
    "LinearProbe": "embedcache.protocol.estimators:LinearProbe",
    "LinearProbeCV": "embedcache.protocol.estimators:LinearProbeCV",
    "Project": "embedcache.project:Project",
    "load_encoder": "embedcache.encoders.registry:load_encoder",
    "open": "embedcache.project:open_project",
}


def __getattr__(name: str) -> Any:
    # Loaded at first use, so that `import embedcache` costs nothing.
    if name not in _HOMES:
        raise AttributeError(f"module 'embedcache' has no attribute '{name}'")
    module, _, attribute = _HOMES[name].partition(":")
    return getattr(importlib.import_module(module), attribute)
