"""The parameters that a training moves, and how fast each of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final, cast

import torch
from timm.models import group_parameters
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import nn

from embedcache.errors import EncoderError, MissingExtraError, RunError
from embedcache.finetune.model import BATCH_NORMS, Classifier, sees_gradient
from embedcache.finetune.recipe import Recipe

FULL: Final = "finetune"
LORA: Final = "lora"
HEAD_ONLY: Final = "head-only"
LP_FT: Final = "lp-ft"
_VIT_B: Final = 12  # blocks of ViT-B, the network for which recipes give `layer_decay`
_PARTIAL: Final = re.compile(r"partial:([1-9]\d*)")


@dataclass(frozen=True, slots=True)
class Regime:
    """The part of a classifier that is trained.

    Parameters
    ----------
    name
        'finetune': everything. 'lora': low-rank updates of the encoder's matrices (Hu et al. 2022,
        arXiv 2106.09685). 'head-only'. 'lp-ft': everything, from the probe's solution as the head
        (Kumar et al. 2022, arXiv 2202.10054); batch normalisation keeps its statistics there, or
        the features would not be those that the probe was fitted on. 'partial:N': the last N
        layers.
    """

    name: str

    def __post_init__(self) -> None:
        if self.name not in {FULL, LORA, HEAD_ONLY, LP_FT} and not _PARTIAL.fullmatch(self.name):
            raise RunError(
                f"no regime '{self.name}'; it may be {FULL}, {LORA}, {HEAD_ONLY}, {LP_FT} or "
                "partial:N"
            )

    @property
    def starts_at_probe(self) -> bool:
        """Whether the head starts at the probe's solution."""
        return self.name == LP_FT

    @property
    def n_layers(self) -> int | None:
        """Number of last layers that are trained; None for a regime that does not count layers."""
        match = _PARTIAL.fullmatch(self.name)
        return int(match[1]) if match else None


def choose_parameters(
    classifier: Classifier, regime: Regime, recipe: Recipe, pixels: torch.Tensor, name: str
) -> None:
    """Leave `requires_grad` on what the regime moves, LoRA's adapters put in.

    Parameters
    ----------
    classifier
        Fresh classifier, every parameter of it trainable.
    regime
        Part of the classifier that is trained.
    recipe
        Numbers of the training; rank, scale and dropout of LoRA are read here.
    pixels
        A few pictures, uint8, shape (n, 1 or 3, height, width), that show which parameters have a
        gradient.
    name
        Name of the encoder, for errors.

    Raises
    ------
    EncoderError
        The network does not say what its layers are, or has no matrix for LoRA.
    RunError
        It has fewer layers than are to be trained.
    MissingExtraError
        LoRA, without `peft`.
    """
    encoder = classifier.encoder
    reached = sees_gradient(classifier, pixels)
    if regime.name == LORA:
        classifier.encoder = _with_adapters(encoder, recipe, reached, name)
        left = {n for n, p in classifier.encoder.named_parameters() if p.requires_grad}
        unseen = left - sees_gradient(classifier, pixels)
        if unseen:  # a network that computes with `layer.weight` passes an adapter by
            raise EncoderError(
                f"'{name}' goes around {len(unseen)} of LoRA's {len(left)} tensors, first "
                f"'{min(unseen)}'; choose another regime"
            )
        return
    layer = _counted_layers(encoder, regime, name)
    first = 1 + max(layer.values(), default=0) - (regime.n_layers or 0)
    for path, parameter in encoder.named_parameters():
        # Where layers are not counted `layer` is empty, and all of them are among the last.
        is_moved = regime.name != HEAD_ONLY and layer.get(path, first) >= first
        parameter.requires_grad = is_moved and path in reached


def _counted_layers(encoder: Any, regime: Regime, name: str) -> dict[str, int]:
    """Return the layer of each parameter, empty where the regime does not count layers."""
    if not regime.n_layers:
        return {}
    if not hasattr(encoder, "group_matcher"):
        raise EncoderError(
            f"'{name}' does not say what its layers are, so there is no partial:N; give its "
            "network a group_matcher as timm's have"
        )
    layer = _layers(encoder)
    n_layers = 1 + max(layer.values())
    if regime.n_layers > n_layers:
        raise RunError(
            f"--regime {regime.name}: '{name}' has {n_layers} layers; name as many or fewer"
        )
    return layer


def _layers(encoder: Any) -> dict[str, int]:
    """Return the number of each parameter's layer, 0 the first, as timm counts them.

    But a norm by itself, such as the last one, belongs to the layer before it.
    """
    # timm gives a norm between blocks a number of its own; only layers with a matrix count here.
    layer = group_parameters(encoder, encoder.group_matcher(coarse=False), reverse=True)
    real = {layer[path] for path, p in encoder.named_parameters() if p.ndim > 1}
    number = {old: sum(other <= old for other in real) - 1 for old in set(layer.values())}
    return {path: max(0, number[old]) for path, old in layer.items()}


def _decay(encoder: Any, recipe: Recipe) -> float:
    """Return the decay a layer; in a deep network the first layer still learns as in a ViT-B."""
    depth = max(_layers(encoder).values()) if hasattr(encoder, "group_matcher") else _VIT_B
    return float(recipe.layer_decay ** (_VIT_B / max(_VIT_B, depth)))


def _with_adapters(encoder: nn.Module, recipe: Recipe, reached: set[str], name: str) -> nn.Module:
    try:
        from peft import LoraConfig
        from peft.tuners.lora import LoraModel
    except ImportError:
        raise MissingExtraError(
            "--regime lora needs the extra 'finetune'; run `pip install peft`"
        ) from None
    for module in encoder.modules():
        if hasattr(module, "qkv_bias_separate"):
            # BEiT and EVA would use the bare matrix, around the adapter; the sum is the same.
            setattr(module, "qkv_bias_separate", True)  # noqa: B010 - no attribute torch knows of
    targets = _matrices(encoder, reached)
    if not targets:
        raise EncoderError(f"'{name}' has no matrix that LoRA could adapt; choose another regime")
    config = LoraConfig(
        r=recipe.lora_rank,
        lora_alpha=recipe.lora_alpha,
        lora_dropout=recipe.lora_dropout,
        target_modules=targets,
    )
    return cast(nn.Module, LoraModel(encoder, config, "default"))


def _matrices(encoder: nn.Module, reached: set[str]) -> list[str]:
    """Return the attentions and linear layers that are computed with; else the convolutions."""
    attentions = [n for n, m in encoder.named_modules() if isinstance(m, nn.MultiheadAttention)]
    inside = tuple(f"{name}." for name in attentions)
    linear, convolutions = [*attentions], []
    for name, module in encoder.named_modules():
        if f"{name}.weight" not in reached or name.startswith(inside):
            continue
        if isinstance(module, nn.Linear):
            linear.append(name)
        elif isinstance(module, nn.Conv2d) and module.groups == 1:
            convolutions.append(name)
    return linear or convolutions


def merge_adapters(classifier: Classifier) -> None:
    """Add LoRA's updates to the matrices they adapt; the network is then its plain self again."""
    merge = getattr(classifier.encoder, "merge_and_unload", None)
    if merge is not None:
        classifier.encoder = merge()


def parameter_groups(
    classifier: Classifier, regime: Regime, recipe: Recipe
) -> list[dict[str, Any]]:
    """Return what moves, with its rate and weight decay, as AdamW takes it.

    Rates fall by `layer_decay` a layer away from the head in networks without batch normalisation,
    for which it was found; biases, norms and tables have no weight decay. The two groups of the
    head, its bias and its weight, come last.

    Parameters
    ----------
    classifier
        Classifier after `choose_parameters`.
    regime
        Part of the classifier that is trained.
    recipe
        Numbers of the training.
    """
    encoder = classifier.encoder
    is_lora = regime.name == LORA
    has_batch_norm = any(isinstance(module, BATCH_NORMS) for module in encoder.modules())
    settings: dict[str, Any] = {
        "weight_decay": recipe.weight_decay,
        "no_weight_decay_list": getattr(encoder, "no_weight_decay", set)(),
    }
    groups: list[dict[str, Any]]
    if is_lora or has_batch_norm:
        groups = param_groups_weight_decay(encoder, **settings)
    else:
        groups = param_groups_layer_decay(encoder, layer_decay=_decay(encoder, recipe), **settings)
    for group in groups:
        group["lr"] = recipe.lora_lr if is_lora else recipe.lr
    weight, bias = classifier.head.linear.weight, classifier.head.linear.bias
    head = {"lr": recipe.lr if regime.starts_at_probe else recipe.head_lr, "lr_scale": 1.0}
    groups.append({"params": [bias], "weight_decay": 0.0, **head})
    groups.append({"params": [weight], "weight_decay": recipe.weight_decay, **head})
    return groups
