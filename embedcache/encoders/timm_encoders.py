"""Every network of timm as an encoder, with its published preprocessing."""

from __future__ import annotations

import difflib
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, cast

import timm
import torch
from timm.data import resolve_model_data_config
from timm.models._hub import load_model_config_from_path
from torch import nn

from embedcache.encoders.checkpoints import load_strictly, read_state_dict
from embedcache.encoders.model_folders import (
    architecture_of,
    described_model,
    network_settings,
)
from embedcache.encoders.preprocess import Preprocess
from embedcache.encoders.registry import Identified
from embedcache.encoders.spec import EncoderSpec, WeightsSource
from embedcache.encoders.torch_encoder import TorchEncoder, load_torch
from embedcache.errors import EncoderError, EncoderWeightsError, UnknownEncoderError

_COMMERCIAL: Final = {"apache-2.0": True, "mit": True, "bsd-3-clause": True}

# What timm calls them. DINOv3's authors return the CLS token, timm by default the patches' mean.
_POOLS: Final = {"cls": "token", "patch-mean": "avg"}


def describe(name: str, *, offline: bool = False) -> EncoderSpec:
    """Return the facts that timm knows of a model.

    Parameters
    ----------
    name
        `NAME`, `NAME.TAG`, `local-dir:PATH` or `hf-hub:ORG/NAME`.
    offline
        Whether the hub is never asked.

    Raises
    ------
    UnknownEncoderError
        timm has no such model.
    EncoderError
        Its evaluation transform is one that this project does not have.
    """
    saved = described_model("timm", name, "config.json", offline=offline)
    if saved is not None:
        return _describe_saved(name, *saved)
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=1)
        hint = f"did you mean 'timm:{near[0]}'?" if near else "see timm.list_models()"
        raise UnknownEncoderError(f"timm {timm.__version__} has no model '{architecture}'; {hint}")
    if tag and name not in timm.list_pretrained(f"{architecture}.*"):
        tags = ", ".join(timm.list_pretrained(f"{architecture}.*")) or "none"
        raise UnknownEncoderError(f"timm has no weights '{name}'; pretrained tags: {tags}")
    network = _sketch(name)
    config = network.pretrained_cfg
    weights = WeightsSource(
        kind="hub",
        location=str(config.get("hf_hub_id") or ""),
        file=str(config.get("hf_hub_filename") or ""),
    )
    full_name = ".".join(filter(None, (architecture, config.get("tag"))))
    return _facts(name, f"timm:{full_name}", network, weights)


def _describe_saved(name: str, config: Path, weights: WeightsSource) -> EncoderSpec:
    """Return the facts of a model that `timm.models.save_for_hf` has saved."""
    facts, architecture, arguments = load_model_config_from_path(config.parent)
    settings = {name: facts[name] for name in ("num_classes", "global_pool") if facts.get(name)}
    if facts.get("fixed_input_size"):
        settings["img_size"] = list(facts["input_size"][-2:])
    settings |= arguments
    network = _sketch(architecture, pretrained_cfg=facts, **settings)
    return _facts(name, architecture_of("timm", architecture, settings), network, weights)


def _sketch(architecture: str, **settings: Any) -> Any:
    """Return a network of shapes without numbers: to describe one costs neither memory nor time."""
    with torch.device("meta"):
        return _network(architecture, **settings)


def _facts(name: str, architecture: str, network: Any, weights: WeightsSource) -> EncoderSpec:
    settings = resolve_model_data_config(network)
    with torch.device("meta"):
        network.reset_classifier(0)
    config, parameters = network.pretrained_cfg, sum(p.numel() for p in network.parameters()) / 1e6
    licence = str(config.get("license") or "not stated")
    return EncoderSpec(
        name=f"timm:{name}",
        architecture=architecture,
        output="pooled",
        # Some networks put a layer between pooling and classifier; its output is returned.
        dim=int(getattr(network, "head_hidden_size", network.num_features)),
        preprocess=_preprocess(name, settings),
        weights=replace(weights, licence=licence, commercial=_COMMERCIAL.get(licence)),
        loader=f"{__name__}:load",
        parameters=round(parameters, 1),
        memory_gb=round(0.5 + 0.008 * parameters, 1),  # twice the weights, and some activations
        reference=str(config.get("paper_ids") or config.get("origin_url") or "timm"),
    )


def _preprocess(name: str, settings: dict[str, Any]) -> Preprocess:
    channels, height, width = settings["input_size"]
    if channels != 3:
        raise EncoderError(f"timm:{name} takes pictures of {channels} channels, expected 3")
    fit = {"center": "crop", "squash": "squash"}.get(settings["crop_mode"])
    squashes_all = fit == "squash" and settings["crop_pct"] == 1
    if not (squashes_all or (fit == "crop" and height == width)):
        raise EncoderError(
            f"timm:{name} resizes by crop_mode '{settings['crop_mode']}' to {height} x {width} at "
            f"crop_pct {settings['crop_pct']}, which is not supported; choose another model"
        )
    return Preprocess(
        height=height,
        width=width,
        fit="squash" if squashes_all else "crop",
        resample=settings["interpolation"],
        crop_pct=float(settings["crop_pct"]),
        mean=tuple(settings["mean"]),
        std=tuple(settings["std"]),
    )


def _network(architecture: str, **settings: Any) -> Any:
    return timm.create_model(architecture, pretrained=False, **settings)


def load(identified: Identified, device: str) -> TorchEncoder:
    """Return the encoder of a network whose published file timm knows."""
    return load_torch(build, identified, device)


def load_by_position(identified: Identified, device: str) -> TorchEncoder:
    """Return the encoder of a network whose file has other names for the same tensors."""
    return load_torch(build_by_position, identified, device)


def build(spec: EncoderSpec, file: Path | None) -> nn.Module:
    """Return timm's network, headless, with the weights of `file` or as initialised.

    The file is loaded strictly into the network with its classifier, through the network's own
    conversion of published layouts; only then the classifier is dropped. (Loading into a headless
    network makes timm lenient: it would leave missing tensors at random.)

    Raises
    ------
    EncoderWeightsError
        The file is not this network's.
    """
    architecture, saved = network_settings(spec.architecture)
    if saved:
        network = _network(architecture, **saved)
        if file is not None:
            load_strictly(network, read_state_dict(file), file)
        network.reset_classifier(0)
        return cast(nn.Module, network)
    settings = {"global_pool": _POOLS[spec.output]} if spec.output in _POOLS else {}
    if file is None:
        network = _network(architecture, **settings)
    else:
        # `custom_load` would have the network read a file by itself, of its authors' format.
        overlay = {"state_dict": read_state_dict(file), "custom_load": False}
        try:
            network = timm.create_model(
                architecture, pretrained=True, pretrained_cfg_overlay=overlay, **settings
            )
        except (RuntimeError, KeyError, AttributeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise EncoderWeightsError(
                f"{file}: not the weights of timm's {architecture}: {reason}"
            ) from None
    network.reset_classifier(0, **settings)
    return cast(nn.Module, network)


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def build_by_position(spec: EncoderSpec, file: Path | None) -> nn.Module:
    """Return timm's network with weights that another code base published under other names.

    EfficientNet-lite0's file lists the same tensors in the same order; shapes are checked one by
    one, and outputs were found identical to the original code's.
    """
    network = _network(spec.architecture.removeprefix("timm:"))
    if file is not None:
        tensors = read_state_dict(file)
        names = network.state_dict().keys()
        if [_last(name) for name in tensors] != [_last(name) for name in names]:
            raise EncoderWeightsError(
                f"{file}: not the {len(names)} tensors of '{spec.name}' in their published order"
            )
        renamed = dict(zip(names, tensors.values(), strict=True))
        load_strictly(network, renamed, file)
    network.reset_classifier(0)
    return cast(nn.Module, network)
