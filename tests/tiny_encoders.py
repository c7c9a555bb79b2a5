"""A transformer and a convolutional network that train in a moment: for --encoder-file."""

from __future__ import annotations

from timm.models.resnet import BasicBlock, ResNet
from timm.models.vision_transformer import VisionTransformer

from embedcache.encoders.preprocess import Preprocess
from embedcache.encoders.spec import EncoderSpec, WeightsSource
from embedcache.encoders.torch_encoder import load_torch

SIZE = 16
_FIT = Preprocess(height=SIZE, width=SIZE, fit="squash", resample="bilinear")


def _spec(name: str, dim: int, loader: str) -> EncoderSpec:
    return EncoderSpec(
        name=name,
        architecture=name,
        output="pooled",
        dim=dim,
        preprocess=_FIT,
        weights=WeightsSource(kind="random", seed=1),
        loader=f"{__name__}:{loader}",
    )


TINY_VIT = _spec("tiny-vit", 24, "load_vit")
TINY_CNN = _spec("tiny-cnn", 64, "load_cnn")


def build_vit(spec, file):
    return VisionTransformer(
        img_size=SIZE, patch_size=4, embed_dim=24, depth=3, num_heads=2, num_classes=0
    )


def build_cnn(spec, file):
    return ResNet(BasicBlock, (1, 1, 1, 1), channels=(16, 32, 48, 64), num_classes=0)


def load_vit(found, device):
    return load_torch(build_vit, found, device)


def load_cnn(found, device):
    return load_torch(build_cnn, found, device)
