"""Every kind of encoder can be trained, on the pixels that it embeds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_trainings import classifier, identified, moved, tiny_encoders_on_one_thread

from embedcache.encoders import registry
from embedcache.encoders.preprocess import Preprocess
from embedcache.finetune.model import Normalise, set_gradient_checkpointing


@pytest.fixture(autouse=True)
def _tiny_encoders():
    with tiny_encoders_on_one_thread():
        yield


ENCODERS = ["sononet16", "efficientnet-lite0", "resnet50", "usfm", "mofo", "dinov3-s"]
LARGE = ("usfm", "mofo", "dinov3-s")  # seconds each
CLIP = "open_clip:ViT-S-32-alt"  # as FetalCLIP's image tower, but small


def check_gradient(name: str, *, checkpointed: bool) -> None:
    network, *_ = classifier(f"random:{name}", "finetune")
    if checkpointed:
        set_gradient_checkpointing(network.encoder, name)
    height, width = identified(f"random:{name}").spec.preprocess.shape[1:]
    pixels = torch.randint(0, 255, (2, 1, height, width), dtype=torch.uint8)
    network.train()
    network.embed(pixels).square().sum().backward()
    assert {n for n, one in network.encoder.named_parameters() if one.grad is not None} == {
        n for n, one in network.encoder.named_parameters() if one.requires_grad
    }


def slow_if_large(*names: str) -> list:
    return [pytest.param(name, marks=pytest.mark.slow if name in LARGE else []) for name in names]


@pytest.mark.parametrize("name", slow_if_large(*ENCODERS, CLIP))
def test_every_kind_of_encoder_takes_a_gradient(name):
    check_gradient(name, checkpointed=False)


@pytest.mark.parametrize("name", slow_if_large("sononet16", "mofo", CLIP))
def test_our_own_networks_can_compute_activations_twice(name):
    check_gradient(name, checkpointed=True)


def test_lora_and_layers_of_a_clip_tower():
    network, *_ = classifier(f"random:{CLIP}", "lora")
    assert any(".attn.lora_A" in name for name in moved(network))
    network, *_ = classifier(f"random:{CLIP}", "partial:1")
    blocks = {name.split(".")[4] for name in moved(network) if "resblocks" in name}
    assert len(blocks) == 1
    assert "encoder.visual.proj" in moved(network)


@pytest.mark.parametrize("name", ENCODERS)
def test_bytes_become_what_the_encoders_own_preprocessing_makes(name):
    preprocess = registry.find_spec(name).preprocess
    chance = np.random.default_rng(3)
    for shape in ((90, 70), (90, 70, 3)):
        image = Image.fromarray(chance.integers(0, 256, shape, dtype=np.uint8))
        kept = preprocess.unnormalised()(image)
        assert kept.min() >= 0
        assert np.array_equal(kept, kept.round())
        pixels = torch.from_numpy(kept.astype(np.uint8))[None]
        pixels = pixels[:, :1] if len(shape) == 2 else pixels
        made = Normalise(preprocess)(pixels)[0].numpy()
        expected = preprocess(image)
        assert np.abs(made - expected).max() <= 1e-6 * np.abs(expected).max()


def test_one_channel_of_a_colour_picture_is_the_mean_of_three():
    preprocess = Preprocess(
        height=4, width=4, fit="squash", resample="bilinear", mean=(0.5,), std=(0.5,)
    )
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8))
    pixels = torch.from_numpy(preprocess.unnormalised()(image).astype(np.uint8))[None]
    assert np.allclose(Normalise(preprocess)(pixels)[0].numpy(), preprocess(image), atol=1e-6)
