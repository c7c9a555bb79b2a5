"""Models in a folder or a repository of the hub, as timm and open_clip save them and name them.

Beside its weights such a model has a file that describes it. What decides the network goes into
`EncoderSpec.architecture` as JSON, so that rows of one model are the same rows wherever it lies.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from embedcache.encoders.hub import NotFetched, hub_file
from embedcache.encoders.spec import WeightsSource
from embedcache.encoders.weights import HUB_FILES
from embedcache.errors import EncoderWeightsError, UnknownEncoderError
from embedcache.files.durable import canonical_json

LOCAL: Final = "local-dir"
_HUB: Final = "hf-hub"


def described_model(
    library: str, name: str, config_name: str, *, offline: bool
) -> tuple[Path, WeightsSource] | None:
    """Return the file that describes a model, and where its weights are; None for another name.

    Parameters
    ----------
    library
        'timm' or 'open_clip', for messages.
    name
        Name without the library: 'local-dir:PATH' or 'hf-hub:ORG/NAME', or any other.
    config_name
        Name of the file that describes a model of this library.
    offline
        Whether the hub is never asked.

    Raises
    ------
    UnknownEncoderError
        The folder has no such file.
    EncoderWeightsError
        The hub's file is not here and cannot be fetched.
    """
    source, _, place = name.partition(":")
    if source == LOCAL:
        config = Path(place).expanduser().absolute() / config_name
        if not config.is_file():
            raise UnknownEncoderError(
                f"{config}: no such file; {library}:{LOCAL}:PATH names the folder of a model that "
                f"{library} has saved, others go as {library}:NAME with --weights FILE"
            )
        files = [file for file in HUB_FILES if (config.parent / file).is_file()]
        weights = WeightsSource(
            kind="folder", location=str(config.parent), file=(*files, HUB_FILES[0])[0]
        )
        return config, weights
    if source != _HUB:
        return None
    try:
        config = hub_file(place, (config_name,), offline=offline)
    except NotFetched as refusal:
        raise EncoderWeightsError(
            f"'{library}:{name}' cannot be described: {refusal}; download the repository "
            f"https://huggingface.co/{place} and name its folder as {library}:{LOCAL}:PATH, or "
            f"give {library}:NAME with --weights FILE"
        ) from None
    return config, WeightsSource(kind="hub", location=place)


def architecture_of(library: str, name: str, settings: dict[str, Any]) -> str:
    """Return the text that names a network by what its class is made with.

    Parameters
    ----------
    library
        Name of the library.
    name
        Name of the network there; '' where the settings are all of it.
    settings
        Arguments of the network, as JSON can hold them.
    """
    return f"{library}:{name}{canonical_json(settings).decode()}"


def network_settings(architecture: str) -> tuple[str, dict[str, Any]]:
    """Return the name and the arguments of a network: what `architecture_of` was given."""
    name, brace, rest = architecture.partition(":")[2].partition("{")
    return name, json.loads(brace + rest) if brace else {}
