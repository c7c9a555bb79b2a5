"""SonoNet-16: a small network trained on fetal standard planes (arXiv 1612.05601, section III).

The checkpoint names its tensors `features.<block>.<layer>.{0,1}` and `adaption.<i>`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import torch
from timm.models import checkpoint
from torch import nn

from embedcache.encoders.checkpoints import load_strictly, read_state_dict
from embedcache.encoders.registry import Identified
from embedcache.encoders.spec import EncoderSpec
from embedcache.encoders.torch_encoder import TorchEncoder, load_torch

WIDTHS: Final = ((16, 16), (32, 32), (64, 64, 64), (128, 128, 128), (128, 128, 128))
CLASSES: Final = (
    "3VV",
    "4CH",
    "ABDOMINAL",
    "BACKGROUND",
    "BRAIN-CB",
    "BRAIN-TV",
    "FEMUR",
    "KIDNEYS",
    "LIPS",
    "LVOT",
    "PROFILE",
    "RVOT",
    "SPINE-CORONAL",
    "SPINE-SAGITTAL",
)
_EPS: Final = 1e-4  # Lasagne's batch normalisation, in which the network was trained


def _conv(n_in: int, n_out: int, kernel: int) -> list[nn.Module]:
    return [
        nn.Conv2d(n_in, n_out, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(n_out, eps=_EPS),
    ]


class SonoNet(nn.Module):
    """The network: five blocks of 3 x 3 convolutions, 2 x 2 max-pooling between them."""

    def __init__(self) -> None:
        super().__init__()
        self.is_checkpointed = False
        blocks, n_in = [], 1
        for widths in WIDTHS:
            layers = []
            for width in widths:
                layers.append(nn.Sequential(*_conv(n_in, width, 3), nn.ReLU(inplace=True)))
                n_in = width
            blocks.append(nn.Sequential(*layers))
        self.features = nn.Sequential(*blocks)
        self.adaption = nn.Sequential(
            *_conv(n_in, n_in // 2, 1), nn.ReLU(inplace=True), *_conv(n_in // 2, len(CLASSES), 1)
        )

    def feature_map(self, images: torch.Tensor) -> torch.Tensor:
        """Return the last block's map: (n, 1, 224, 288) to (n, 128, 14, 18)."""
        for number, block in enumerate(self.features):
            if number:
                images = nn.functional.max_pool2d(images, 2)
            images = checkpoint(block, images) if self.is_checkpointed else block(images)
        return images

    def group_matcher(self, *, coarse: bool) -> dict[str, str]:
        """Return which tensors are of one layer, as timm's networks do."""
        return {"blocks": r"^features\.(\d+)" if coarse else r"^features\.(\d+)\.(\d+)"}

    def set_grad_checkpointing(self) -> None:
        """Compute activations again in the backward pass instead of keeping them."""
        self.is_checkpointed = True

    def classify(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits of `CLASSES`, shape (n, 14)."""
        logits: torch.Tensor = self.adaption(self.feature_map(images)).mean((2, 3))
        return logits

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the embedding, the mean over the last map: shape (n, 128)."""
        return self.feature_map(images).mean((2, 3))


def load(identified: Identified, device: str) -> TorchEncoder:
    """Return the encoder."""
    return load_torch(build, identified, device)


def build(spec: EncoderSpec, file: Path | None) -> nn.Module:  # noqa: ARG001 - see load_torch
    """Return the network with the weights of `file`, or as initialised."""
    network = SonoNet()
    if file is not None:
        load_strictly(network, read_state_dict(file), file)
    return network
