"""FetalCLIP and every model of open_clip: image towers as encoders, text towers for prompts."""

from __future__ import annotations

import contextlib
import difflib
import json
import logging
import pickle
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, cast

import open_clip
import torch
from torch import nn

from embedcache.encoders.checkpoints import load_strictly, read_state_dict, why_unreadable
from embedcache.encoders.choices import Fit
from embedcache.encoders.devices import find_device
from embedcache.encoders.model_folders import (
    LOCAL,
    architecture_of,
    described_model,
    network_settings,
)
from embedcache.encoders.preprocess import Preprocess
from embedcache.encoders.registry import Identified
from embedcache.encoders.spec import EncoderSpec, FloatArray, WeightsSource
from embedcache.encoders.torch_encoder import (
    TorchEncoder,
    load_torch,
    random_weights,
    to_device,
)
from embedcache.encoders.torch_settings import building_settings, encoder_settings
from embedcache.errors import EncoderError, EncoderWeightsError, UnknownEncoderError

# ViT-L/14 as OpenAI's, but for a longer text and the exact GELU.
_FETALCLIP: Final[dict[str, Any]] = {
    "embed_dim": 768,
    "vision_cfg": {"image_size": 224, "layers": 24, "width": 1024, "patch_size": 14},
    "text_cfg": {
        "context_length": 117,
        "vocab_size": 49408,
        "width": 768,
        "heads": 12,
        "layers": 12,
    },
}
_OWN: Final = WeightsSource(kind="user", location="your own training", file="your checkpoint")
_CONFIG: Final = "open_clip_config.json"
_FITS: Final[dict[str, Fit]] = {"shortest": "crop", "squash": "squash"}


class ImageTower(nn.Module):
    """The half of a CLIP model that looks at pictures."""

    def __init__(self, visual: Any, *, is_projected: bool = True) -> None:
        super().__init__()
        if not is_projected:
            visual.proj = None
        self.visual = visual

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return (n, dim) for (n, 3, size, size), not normalised."""
        rows = self.visual(images)
        # Captioning models return their tokens as well.
        return cast(torch.Tensor, rows[0] if isinstance(rows, tuple) else rows)

    def group_matcher(self, *, coarse: bool) -> dict[str, Any]:  # noqa: ARG002 - timm's form
        """Return which tensors are of one layer, as timm's networks do."""
        return {
            "stem": r"^visual\.(?:conv1|class_embedding|positional_embedding|ln_pre)",
            "blocks": [
                (r"^visual\.transformer\.resblocks\.(\d+)", None),
                (r"^visual\.(?:ln_post|proj)", (99999,)),
            ],
        }

    def no_weight_decay(self) -> set[str]:
        """Return the tensors that weight decay is not for."""
        return {"visual.class_embedding", "visual.positional_embedding"}

    def set_grad_checkpointing(self) -> None:
        """Compute activations again in the backward pass instead of keeping them."""
        self.visual.set_grad_checkpointing()


class TextTower:
    """The half of a CLIP model that reads.

    Parameters
    ----------
    model
        Model of open_clip with both halves, its weights loaded.
    tokenizer
        Function from texts to token numbers, shape (n, context length).
    name
        Name of the encoder, for messages.
    device
        'auto', 'cpu', 'cuda', 'cuda:N' or 'mps'.

    Raises
    ------
    DeviceError
        This machine has no such device, or the model does not fit into its memory.
    """

    def __init__(self, model: Any, tokenizer: Any, name: str, device: str) -> None:
        self._device = find_device(device)
        self._model: Any = to_device(model.eval(), self._device, name)
        self._tokenizer = tokenizer

    def encode(self, texts: Sequence[str]) -> FloatArray:
        """Return one row a text, shape (n, dim), float32, not normalised."""
        with encoder_settings(self._device):
            rows = self._model.encode_text(self._tokenizer(list(texts)).to(self._device))
        return cast(FloatArray, rows.float().cpu().numpy())


def describe(name: str, *, offline: bool = False) -> EncoderSpec:
    """Return the facts that open_clip knows of a model.

    Parameters
    ----------
    name
        `ARCH/TAG`, `ARCH` with the user's weights, `local-dir:PATH` or `hf-hub:ORG/NAME`.
    offline
        Whether the hub is never asked.

    Raises
    ------
    UnknownEncoderError
        open_clip has no such architecture or no such weights of it.
    EncoderError
        Its transform is one that this project does not have.
    """
    saved = described_model("open_clip", name, _CONFIG, offline=offline)
    if saved is None:
        config, facts, weights = _published(name)
        return _facts(name, f"open_clip:{name}", config, facts, weights)
    file, weights = saved
    document = json.loads(file.read_bytes())
    config, facts = document["model_cfg"], document.get("preprocess_cfg") or {}
    return _facts(name, architecture_of("open_clip", "", config), config, facts, weights)


def _published(name: str) -> tuple[dict[str, Any], dict[str, Any], WeightsSource]:
    """Return the architecture, the preprocessing and the weights that open_clip lists."""
    architecture, _, tag = name.partition("/")
    config = open_clip.get_model_config(architecture)
    if config is None:
        near = difflib.get_close_matches(architecture, open_clip.list_models(), n=1)
        hint = f"did you mean '{near[0]}'?" if near else "see open_clip.list_models()"
        raise UnknownEncoderError(
            f"open_clip has no architecture '{architecture}'; {hint} Give it as open_clip:ARCH/TAG"
        )
    facts = open_clip.get_pretrained_cfg(architecture, tag)
    if tag and not facts:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(architecture)) or "none"
        raise UnknownEncoderError(f"open_clip has no weights '{name}'; tags: {tags}")
    repository, _, file = facts.get("hf_hub", "").rpartition("/")
    return config, facts, WeightsSource(kind="hub", location=repository, file=file) if tag else _OWN


def _facts(
    name: str,
    architecture: str,
    config: dict[str, Any],
    facts: dict[str, Any],
    weights: WeightsSource,
) -> EncoderSpec:
    size = config["vision_cfg"].get("image_size", 224)
    height, width = (size, size) if isinstance(size, int) else size
    fit = _FITS.get(facts.get("resize_mode", "shortest"))
    if fit is None or (fit == "crop" and height != width):
        raise EncoderError(
            f"open_clip:{name} resizes by '{facts['resize_mode']}' to {height} x {width}, which is "
            "not supported; choose another model"
        )
    page = f"https://huggingface.co/{weights.location}" if weights.kind == "hub" else ""
    return EncoderSpec(
        name=f"open_clip:{name}",
        architecture=architecture,
        output="projected",
        dim=int(config["embed_dim"]),
        preprocess=Preprocess(
            height=height,
            width=width,
            fit=fit,
            resample=facts.get("interpolation", "bicubic"),
            mean=tuple(facts.get("mean", open_clip.OPENAI_DATASET_MEAN)),
            std=tuple(facts.get("std", open_clip.OPENAI_DATASET_STD)),
        ),
        weights=weights,
        loader=f"{__name__}:load",
        memory_gb=4.0,  # as a large one takes while it is loaded
        reference=facts.get("url") or page,
    )


def load(identified: Identified, device: str) -> TorchEncoder:
    """Return the encoder of a model's image tower."""
    return load_torch(build, identified, device)


def load_text(identified: Identified, device: str) -> TextTower:
    """Return the text half of a model, its weights those of the image half."""
    with building_settings(), random_weights(identified.spec.weights.seed):
        model = _model(identified.spec, identified.weights_file)
    if _is_fetalclip(identified.spec):
        context: int = _FETALCLIP["text_cfg"]["context_length"]
        tokenizer = open_clip.SimpleTokenizer(context_length=context)
    else:
        with _openable(identified.spec) as architecture:
            tokenizer = open_clip.get_tokenizer(architecture)
    return TextTower(model, tokenizer, identified.spec.name, device)


def build(spec: EncoderSpec, file: Path | None) -> nn.Module:
    """Return a model's image tower with the weights of `file`, or as initialised."""
    return ImageTower(_model(spec, file).visual, is_projected=spec.output == "projected")


def _is_fetalclip(spec: EncoderSpec) -> bool:
    return not spec.architecture.startswith("open_clip:")


def _model(spec: EncoderSpec, file: Path | None) -> Any:
    if _is_fetalclip(spec):
        return _fetalclip(file)
    name, _ = network_settings(spec.architecture)
    facts = open_clip.get_pretrained_cfg(name.partition("/")[0], name.partition("/")[2])
    # It warns that the weights are random, which they are for a moment only.
    with _openable(spec) as architecture, _hushed():
        # OpenAI's weights want an approximate GELU, which the architecture's name leaves open.
        model = open_clip.create_model(
            architecture,
            force_quick_gelu=bool(facts.get("quick_gelu")),
            load_weights=False,
            pretrained_text=False,
        )
    if file is not None:
        try:
            open_clip.load_checkpoint(model, str(file), strict=True, weights_only=True)
        except Exception as error:  # whatever a foreign file makes the parsers raise
            is_code = isinstance(error, pickle.UnpicklingError)
            reason = why_unreadable(error, file) if is_code else " ".join(str(error).split())[:200]
            raise EncoderWeightsError(
                f"{file}: not the weights of {spec.architecture}: {reason}"
            ) from None
    return model


@contextlib.contextmanager
def _openable(spec: EncoderSpec) -> Iterator[str]:
    """Yield the name by which open_clip makes the network of an encoder."""
    name, config = network_settings(spec.architecture)
    if not config:
        yield name.partition("/")[0]
        return
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, _CONFIG).write_text(json.dumps({"model_cfg": config}), encoding="utf-8")
        yield f"{LOCAL}:{folder}"


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _fetalclip(file: Path | None) -> Any:
    """Return FetalCLIP (arXiv 2502.14807).

    Its training wrapped the model for several GPUs or not: the prefix 'module.' may be there.
    """
    model = open_clip.CLIP(**_FETALCLIP)
    if file is not None:
        tensors = read_state_dict(file, under="state_dict")
        if all(name.startswith("module.") for name in tensors):
            tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
        load_strictly(model, tensors, file)
    return model
