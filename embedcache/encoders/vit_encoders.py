"""USFM and UltraSAM: vision transformers that timm can build, under other names in their files."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Final, cast

import timm
import torch
from torch import nn

from embedcache.encoders.checkpoints import load_strictly, read_state_dict, rename, strip_prefix
from embedcache.encoders.registry import Identified
from embedcache.encoders.spec import EncoderSpec
from embedcache.encoders.torch_encoder import TorchEncoder, load_torch

_ULTRASAM_NAMES: Final = {
    "layers.": "blocks.",
    ".ln1.": ".norm1.",
    ".ln2.": ".norm2.",
    ".ffn.blocks.0.0.": ".mlp.fc1.",
    ".ffn.blocks.1.": ".mlp.fc2.",
    "patch_embed.projection": "patch_embed.proj",
    "channel_reduction": "neck",
}


def load_usfm(identified: Identified, device: str) -> TorchEncoder:
    """Return the encoder of USFM."""
    return load_torch(build_usfm, identified, device)


def load_ultrasam(identified: Identified, device: str) -> TorchEncoder:
    """Return the encoder of UltraSAM."""
    return load_torch(build_ultrasam, identified, device)


def build_usfm(spec: EncoderSpec, file: Path | None) -> nn.Module:
    """Return BEiT with one shared table of relative positions, its weights those of `file`.

    The published file ends in `norm`, which serves the CLS token. The mean of the patch tokens goes
    through a norm of its own, which the pretraining never had: it stays at weight 1 and bias 0.

    References
    ----------
    USFM: https://github.com/openmedlab/USFM, its ViT-B/16 for classification.
    """
    pools_patches = spec.output == "patch-mean"
    network = timm.create_model(
        "beit_base_patch16_224",
        num_classes=0,
        use_rel_pos_bias=False,
        use_shared_rel_pos_bias=True,
        init_values=0.1,
        global_pool="avg" if pools_patches else "token",
    )
    if file is not None:
        tensors = read_state_dict(file)
        pooled = {"fc_norm.weight", "fc_norm.bias"}, {"norm.weight", "norm.bias"}
        absent, unused = pooled if pools_patches else (set(), set())
        # timm computes the index of positions itself, and there is nothing to mask.
        unused |= {"mask_token", "rel_pos_bias.relative_position_index"}
        load_strictly(network, tensors, file, unused=unused, absent=absent)
    return cast(nn.Module, network)


class MapMean(nn.Module):
    """A SAM encoder up to its last block, averaged over the map.

    The mean includes what lies on the padding, as in the authors' classification head.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        network.neck = nn.Identity()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return (n, 768) for (n, 3, 1024, 1024)."""
        tokens: torch.Tensor = self.network.forward_features(images)  # (n, 768, 64, 64)
        return tokens.mean((2, 3))

    def group_matcher(self, *, coarse: bool) -> dict[str, Any]:  # noqa: ARG002 - timm's form
        """Return which tensors are of one layer, as timm's networks do."""
        return {
            "stem": r"^network\.(?:pos_embed|patch_embed)",
            "blocks": r"^network\.blocks\.(\d+)",
        }

    def no_weight_decay(self) -> set[str]:
        """Return the tensors that weight decay is not for."""
        return {f"network.{name}" for name in self.network.no_weight_decay()}

    def set_grad_checkpointing(self) -> None:
        """Compute activations again in the backward pass instead of keeping them."""
        self.network.set_grad_checkpointing()


def build_ultrasam(spec: EncoderSpec, file: Path | None) -> nn.Module:
    """Return SAM's ViT-B/16 with the weights of `file`, or as initialised.

    References
    ----------
    UltraSAM: https://github.com/CAMMA-public/UltraSam; SAM: arXiv 2304.02643.
    """
    # timm's norms have another epsilon than SAM's.
    network: Any = timm.create_model(
        "samvit_base_patch16", num_classes=0, norm_layer=partial(nn.LayerNorm, eps=1e-6)
    )
    if file is not None:
        tensors = strip_prefix(read_state_dict(file, under="state_dict"), "backbone.", file)
        load_strictly(network, rename(tensors, _ULTRASAM_NAMES), file)
    return MapMean(network) if spec.output == "map-mean" else cast(nn.Module, network)
