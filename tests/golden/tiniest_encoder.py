"""A transformer of a few thousand numbers, for `--encoder-file`: it trains in a moment."""

from __future__ import annotations

from timm.models.vision_transformer import VisionTransformer

from embedcache.encoders.preprocess import Preprocess
from embedcache.encoders.spec import EncoderSpec, WeightsSource
from embedcache.encoders.torch_encoder import load_torch

SIZE = 16

TINIEST_VIT = EncoderSpec(
    name="tiniest-vit",
    architecture="tiniest-vit",
    output="pooled",
    dim=8,
    preprocess=Preprocess(height=SIZE, width=SIZE, fit="squash", resample="bilinear"),
    weights=WeightsSource(kind="random", seed=1),
    loader=f"{__name__}:load",
)


def build(spec, file):
    return VisionTransformer(
        img_size=SIZE, patch_size=8, embed_dim=8, depth=1, num_heads=2, num_classes=0
    )


def load(found, device):
    return load_torch(build, found, device)
