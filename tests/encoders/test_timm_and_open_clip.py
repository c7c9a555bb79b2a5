"""Networks of timm and open_clip: an encoder is what the library itself computes."""

from __future__ import annotations

import re
from collections.abc import Callable

import checkpoints
import numpy as np
import open_clip
import pytest
import timm
import torch
from checkpoints import CASES, random_state, random_tensors
from PIL import Image
from published import SLOW, picture
from timm.data import create_transform, resolve_model_data_config
from torch import nn
from torchvision import transforms

import embedcache
from embedcache.encoders.open_clip_encoders import load_text
from embedcache.encoders.registry import find_spec, identify_by_name
from embedcache.encoders.spec import fingerprint_of
from embedcache.errors import EncoderWeightsError, UnknownEncoderError
from embedcache.files.digests import DigestCache


def squashing(size: int) -> Callable[[Image.Image], torch.Tensor]:
    """Return the transform that DINOv3's authors publish."""
    return transforms.Compose(
        [
            transforms.Resize((size, size), transforms.InterpolationMode.BICUBIC),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )


def bits_of(network: nn.Module, batch: np.ndarray) -> np.ndarray:
    """Return a network's own answer, in the memory format that encoders use."""
    network = network.eval().to(memory_format=torch.channels_last)
    with torch.inference_mode():
        images = torch.from_numpy(batch).contiguous(memory_format=torch.channels_last)
        return network(images).numpy()


@pytest.mark.parametrize(
    ("name", "architecture", "pool"),
    [
        pytest.param("dinov3-s", "vit_small_patch16_dinov3", "token", marks=SLOW),
        ("dinov3-s:patches", "vit_small_patch16_dinov3", "avg"),
        pytest.param("dinov3", "vit_base_patch16_dinov3", "token", marks=SLOW),
        ("resnet50", "resnet50", "avg"),
        pytest.param("efficientnetv2", "tf_efficientnetv2_s", "avg", marks=SLOW),
    ],
)
def test_outputs_equal_timm_called_directly(name, architecture, pool, tmp_path):
    network = timm.create_model(architecture, global_pool=pool)
    tensors = random_state(network)
    network.load_state_dict(tensors)
    file = tmp_path / "weights.pth"
    torch.save(tensors, file)
    encoder = embedcache.load_encoder(name, weights=file, device="cpu")

    spec = encoder.spec
    if name.startswith("dinov3"):
        transform = squashing(256)
    else:
        settings = resolve_model_data_config(
            timm.create_model(spec.architecture[5:]), use_test_size=name == "efficientnetv2"
        )
        transform = create_transform(**settings)
    pictures = [picture(case) for case in CASES[:3]]
    batch = np.stack([encoder.preprocess(one) for one in pictures])
    expected = np.stack([transform(one.convert("RGB")).numpy() for one in pictures])
    assert np.array_equal(batch, expected)

    network.reset_classifier(0, global_pool=pool)
    assert np.array_equal(encoder.encode(batch), bits_of(network, batch))
    assert encoder.identity == {
        "architecture": spec.architecture,
        "output": spec.output,
        "dim": network.num_features,
        "preprocess": spec.preprocess.document(),
        "weights": DigestCache().file_digest(file),
        "precision": "fp32",
        "dtype": "float32",
    }
    assert encoder.fingerprint == fingerprint_of(encoder.identity)


def test_a_named_network_is_the_same_encoder_as_timms_and_other_settings_are_not(tmp_path):
    torch.save({}, tmp_path / "weights.pth")

    def fingerprint(name: str) -> str | None:
        return identify_by_name(
            name, digests=DigestCache(), weights=tmp_path / "weights.pth"
        ).fingerprint

    assert fingerprint("resnet50") == fingerprint("timm:resnet50.a1_in1k")
    # Here timm's evaluation size, or what it takes for the embedding, is another.
    assert fingerprint("efficientnetv2") != fingerprint("timm:tf_efficientnetv2_s.in21k_ft_in1k")
    tag = "vit_base_patch16_dinov3.lvd1689m"
    prints = {fingerprint(one) for one in ("dinov3", "dinov3:patches", f"timm:{tag}", "dinov3-s")}
    assert len(prints) == 4


def test_metas_own_file_of_dinov3_loads(tmp_path):
    tensors = random_tensors(checkpoints.layout("dinov3_s16"))
    torch.save(tensors, tmp_path / "dinov3_vits16.pth")
    encoder = embedcache.load_encoder(
        "dinov3-s", weights=tmp_path / "dinov3_vits16.pth", device="cpu"
    )
    state = encoder.module.state_dict()
    assert torch.equal(state["reg_token"], tensors["storage_tokens"])
    assert torch.equal(state["cls_token"], tensors["cls_token"])
    for name, tensor in state.items():
        theirs = name.replace("reg_token", "storage_tokens")
        theirs = re.sub(r"\.gamma_([12])$", r".ls\1.gamma", theirs)
        assert torch.equal(tensor, tensors[theirs]), name
    tensors.pop("blocks.5.mlp.fc1.weight")
    torch.save(tensors, tmp_path / "dinov3_vits16.pth")
    with pytest.raises(EncoderWeightsError, match=r"not the weights of timm's vit_small_patch16_d"):
        embedcache.load_encoder("dinov3-s", weights=tmp_path / "dinov3_vits16.pth", device="cpu")


@SLOW
@pytest.mark.parametrize(
    ("name", "quick"), [("RN50/openai", True), ("ViT-B-32/laion2b_s34b_b79k", False)]
)
def test_outputs_equal_open_clip_called_directly(name, quick, tmp_path):
    architecture = name.partition("/")[0]
    model = open_clip.create_model(architecture, force_quick_gelu=quick)
    tensors = random_state(model)
    model.load_state_dict(tensors)
    torch.save(tensors, tmp_path / "weights.pt")
    encoder = embedcache.load_encoder(
        f"open_clip:{name}", weights=tmp_path / "weights.pt", device="cpu"
    )
    transform = open_clip.image_transform(224, is_train=False)
    pictures = [picture(case) for case in CASES[:3]]
    batch = np.stack([encoder.preprocess(one) for one in pictures])
    expected = np.stack([transform(one.convert("RGB")).numpy() for one in pictures])
    assert np.array_equal(batch, expected)
    assert np.array_equal(encoder.encode(batch), bits_of(model.visual, batch))
    encoder = identify_by_name(
        f"open_clip:{name}", digests=DigestCache(), weights=tmp_path / "weights.pt"
    )
    texts = ["a fetal head", "a femur"]
    with torch.inference_mode():
        expected = model.eval().encode_text(open_clip.get_tokenizer(architecture)(texts)).numpy()
    assert np.array_equal(load_text(encoder, "cpu").encode(texts), expected)

    tensors.pop("ln_final.weight")
    torch.save(tensors, tmp_path / "weights.pt")
    with pytest.raises(EncoderWeightsError, match=f"not the weights of open_clip:{name}: .*ln_fin"):
        embedcache.load_encoder(f"open_clip:{name}", weights=tmp_path / "weights.pt", device="cpu")


def test_unknown_names_of_open_clip_get_the_nearest():
    with pytest.raises(
        UnknownEncoderError, match="no architecture 'ViT-B-33'; did you mean 'ViT-B-32'"
    ):
        find_spec("open_clip:ViT-B-33/openai")
    with pytest.raises(UnknownEncoderError, match="no weights 'RN50/opnai'; tags: openai, yfcc15m"):
        find_spec("open_clip:RN50/opnai")
    with pytest.raises(UnknownEncoderError, match="no architecture 'x'.*open_clip:ARCH/TAG"):
        find_spec("open_clip:x")
