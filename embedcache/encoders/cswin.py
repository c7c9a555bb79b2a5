"""CSWin: a vision transformer that attends within crosses of stripes (arXiv 2107.00652).

Half of a block's heads attend within vertical stripes of a map, half within horizontal ones, and a
depthwise convolution on the values says where in the stripe each lies ('LePE', section 3.2).
Written from the paper; MOFO's encoder puts a convolutional stem before it. Modules are named as
the published checkpoint names its tensors.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Literal, cast

import torch
from timm.models import checkpoint_seq
from torch import nn
from torch.nn import functional

from embedcache.encoders.checkpoints import load_strictly, read_state_dict, strip_prefix
from embedcache.encoders.registry import Identified
from embedcache.encoders.spec import EncoderSpec
from embedcache.encoders.torch_encoder import TorchEncoder, load_torch

Stripes = Literal["vertical", "horizontal", "one"]

# CSWin-S (table 2 of the paper): blocks, stripe width and heads of each stage.
DEPTHS: Final = (2, 4, 32, 2)
SPLITS: Final = (1, 2, 7, 7)
HEADS: Final = (2, 4, 8, 16)
WIDTH: Final = 64
_STEM_WIDTH: Final = 32
_MLP_RATIO: Final = 4


class StripeAttention(nn.Module):
    """Attention within the stripes of a map.

    Parameters
    ----------
    dim
        Number of channels.
    heads
        Number of attention heads, which share the channels equally.
    stripes
        'vertical' is the map's height by `split`, 'horizontal' `split` by its width, 'one' is the
        whole map.
    split
        Width of a stripe, in positions.
    """

    def __init__(self, dim: int, heads: int, stripes: Stripes, split: int) -> None:
        super().__init__()
        self.heads, self.stripes, self.split = heads, stripes, split
        self.get_v = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
    ) -> torch.Tensor:
        """Return what each position attends to; all are (n, height, width, dim)."""
        n, height, width, dim = values.shape
        tall = self.split if self.stripes == "horizontal" else height
        wide = self.split if self.stripes == "vertical" else width
        grid = (height // tall, tall, width // wide, wide)

        def cut(tokens: torch.Tensor) -> torch.Tensor:  # (stripes, tall, wide, dim)
            return tokens.reshape(n, *grid, dim).transpose(2, 3).reshape(-1, tall, wide, dim)

        def per_head(stripes: torch.Tensor) -> torch.Tensor:  # (stripes, heads, tall x wide, d)
            heads: torch.Tensor = stripes.flatten(1, 2).unflatten(2, (self.heads, -1))
            return heads.transpose(1, 2)

        stripes = cut(values)
        # The convolution sees one stripe at a time: beyond its border there are zeros.
        position = self.get_v(stripes.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        attended = functional.scaled_dot_product_attention(
            per_head(cut(queries)), per_head(cut(keys)), per_head(stripes)
        )
        merged = attended.transpose(1, 2).reshape(stripes.shape) + position
        merged = merged.reshape(n, grid[0], grid[2], tall, wide, dim).transpose(2, 3)
        return torch.as_tensor(merged.reshape(n, height, width, dim))


class Mlp(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, _MLP_RATIO * dim)
        self.fc2 = nn.Linear(_MLP_RATIO * dim, dim)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return (..., dim) for (..., dim)."""
        hidden = functional.gelu(self.fc1(tokens))
        return torch.as_tensor(self.fc2(hidden))


class Block(nn.Module):
    """Cross-shaped attention, then an MLP, each behind a norm and beside a shortcut."""

    def __init__(self, dim: int, heads: int, split: int, *, crosses: bool) -> None:
        super().__init__()
        parts: tuple[Stripes, ...] = ("vertical", "horizontal") if crosses else ("one",)
        self.norm1 = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.attns = nn.ModuleList(
            StripeAttention(dim // len(parts), heads // len(parts), part, split) for part in parts
        )
        self.proj = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim)
        self.drop_path = nn.Identity()  # fine-tuning may put stochastic depth here

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return (n, height, width, dim) for the same."""
        packed = self.qkv(self.norm1(tokens)).chunk(3, dim=-1)  # queries, keys, values
        shares = zip(*(part.chunk(len(self.attns), dim=-1) for part in packed), strict=True)
        mixed = [attend(*share) for attend, share in zip(self.attns, shares, strict=True)]
        tokens = tokens + self.drop_path(self.proj(torch.cat(mixed, dim=-1)))
        out: torch.Tensor = tokens + self.drop_path(self.mlp(self.norm2(tokens)))
        return out


class Merge(nn.Module):
    """Halve a map's sides and change its channels: convolution and norm."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(n_in, n_out, 3, stride=2, padding=1)
        self.norm = nn.LayerNorm(n_out)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return (n, height / 2, width / 2, n_out) for (n, height, width, n_in)."""
        merged = self.conv(tokens.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return torch.as_tensor(self.norm(merged))


class MofoEncoder(nn.Module):
    """MOFO's encoder: a convolutional stem and CSWin-S, without its last norm.

    References
    ----------
    MOFO: https://github.com/Git-HB-CHEN/MOFO; CSWin-S: arXiv 2107.00652, table 2.
    """

    def __init__(self) -> None:
        super().__init__()
        self.is_checkpointed = False
        stem: list[nn.Module] = []
        for n_in, stride in ((3, 2), (_STEM_WIDTH, 1)):
            stem += [
                nn.Conv2d(n_in, _STEM_WIDTH, 3, stride=stride, padding=1),
                nn.InstanceNorm2d(_STEM_WIDTH),
                nn.LeakyReLU(),
            ]
        self.stage0_conv_embed = nn.Sequential(*stem)
        n_in = _STEM_WIDTH
        for number, (depth, split, heads) in enumerate(zip(DEPTHS, SPLITS, HEADS, strict=True)):
            # Channels double from stage to stage while a merge halves the sides.
            dim, is_last = WIDTH << number, number == len(DEPTHS) - 1
            self.add_module(f"merge{number}", Merge(n_in, dim))
            blocks = (Block(dim, heads, split, crosses=not is_last) for _ in range(depth))
            self.add_module(f"stage{number + 1}", nn.Sequential(*blocks))
            n_in = dim

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the mean over the last map: (n, 3, 224, 224) to (n, 512)."""
        tokens = self.stage0_conv_embed(images).permute(0, 2, 3, 1)
        for number in range(len(DEPTHS)):
            tokens = self.get_submodule(f"merge{number}")(tokens)
            stage = cast(nn.Sequential, self.get_submodule(f"stage{number + 1}"))
            tokens = checkpoint_seq(stage, tokens) if self.is_checkpointed else stage(tokens)
        return torch.as_tensor(tokens.mean((1, 2)))

    def group_matcher(self, *, coarse: bool) -> dict[str, Any]:
        """Return which tensors are of one layer, as timm's networks do.

        A merge belongs to the block before it, as a downsampling layer does there.
        """
        blocks = r"^stage(\d+)" if coarse else r"^stage(\d+)\.(\d+)"
        return {
            "stem": r"^stage0_conv_embed|^merge0",
            "blocks": [(blocks, None), (r"^merge(\d+)", (99999,))],
        }

    def set_grad_checkpointing(self) -> None:
        """Compute activations again in the backward pass instead of keeping them."""
        self.is_checkpointed = True


def load(identified: Identified, device: str) -> TorchEncoder:
    """Return the encoder."""
    return load_torch(build, identified, device)


def build(spec: EncoderSpec, file: Path | None) -> nn.Module:  # noqa: ARG001 - see load_torch
    """Return the network with the weights of `file`, or as initialised.

    The file holds a segmentation model; only its encoder is used, without the norm and the
    classifier that the segmentation model does not use either.
    """
    network = MofoEncoder()
    if file is not None:
        tensors = strip_prefix(read_state_dict(file), "_backbone_encoder.", file)
        unused = ("norm.weight", "norm.bias", "head.weight", "head.bias")
        load_strictly(network, tensors, file, unused=unused)
    return network
