"""Models as timm and open_clip save them, in a folder or on the hub, by those libraries' names."""

import json
import shutil

import numpy as np
import open_clip
import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from timm.models import save_for_hf

import embedcache
from embedcache.encoders.registry import find_spec
from embedcache.encoders.torch_encoder import random_weights
from embedcache.errors import EncoderError, EncoderWeightsError, UnknownEncoderError

CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 100, "width": 16, "heads": 1, "layers": 1},
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model with a head of six classes, as timm saves it."""
    folder = tmp_path_factory.mktemp("timm") / "mine"
    with random_weights(1):
        network = timm.create_model("test_resnet", pretrained=False, num_classes=6)
    save_for_hf(network.eval(), folder, model_config={"num_classes": 6})
    return folder, network


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    with random_weights(1):
        model = open_clip.CLIP(**CLIP).eval()
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    config = {"model_cfg": CLIP, "preprocess_cfg": {"mean": [0.1] * 3, "interpolation": "bilinear"}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return folder, model


def batch(encoder):
    shape = (2, *encoder.spec.preprocess.shape)
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def test_a_model_that_timm_saved_gives_the_rows_that_timm_gives(saved):
    folder, network = saved
    encoder = embedcache.load_encoder(f"timm:local-dir:{folder}", device="cpu", offline=True)
    images = batch(encoder)
    with torch.inference_mode():
        expected = network.forward_head(
            network.forward_features(torch.from_numpy(images)), pre_logits=True
        )
    assert np.allclose(encoder.encode(images), expected.numpy(), atol=1e-5)


def test_a_model_that_open_clip_saved_gives_the_rows_that_open_clip_gives(clip):
    folder, model = clip
    encoder = embedcache.load_encoder(f"open_clip:local-dir:{folder}", device="cpu", offline=True)
    assert encoder.spec.preprocess.mean == (0.1, 0.1, 0.1)
    images = batch(encoder)
    with torch.inference_mode():
        expected = model.encode_image(torch.from_numpy(images)).numpy()
    assert np.allclose(encoder.encode(images), expected, atol=1e-5)


def test_a_model_is_the_same_wherever_it_lies_and_another_with_another_description(saved, tmp_path):
    folder, _ = saved
    copy = shutil.copytree(folder, tmp_path / "elsewhere")
    names = [f"timm:local-dir:{place}" for place in (folder, copy)]
    first, second = (embedcache.load_encoder(name, device="cpu") for name in names)
    assert first.fingerprint == second.fingerprint
    config = json.loads((copy / "config.json").read_text())
    config["pretrained_cfg"]["mean"] = [0.4, 0.4, 0.4]
    (copy / "config.json").write_text(json.dumps(config))
    assert embedcache.load_encoder(names[1], device="cpu").fingerprint != first.fingerprint


def test_a_saved_model_has_its_random_control(saved):
    encoder = embedcache.load_encoder(f"random:timm:local-dir:{saved[0]}", device="cpu")
    assert encoder.encode(batch(encoder)).shape == (2, encoder.spec.dim)


@pytest.mark.parametrize("library", ["timm", "open_clip"])
def test_a_folder_without_a_description_is_refused_with_a_way_out(library, tmp_path):
    with pytest.raises(UnknownEncoderError, match=r"config\.json: no such file.*--weights FILE"):
        find_spec(f"{library}:local-dir:{tmp_path}")


@pytest.mark.parametrize("library", ["timm", "open_clip"])
def test_a_name_of_the_hub_is_refused_offline_without_asking(library, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(EncoderWeightsError, match="--offline forbids.*local-dir:PATH.*--weights "):
        find_spec(f"{library}:hf-hub:org/name", offline=True)


@pytest.mark.parametrize(
    ("library", "file", "text"),
    [
        ("timm", "config.json", "no json"),
        ("timm", "config.json", '{"architecture": "no_such_network", "num_classes": 2}'),
        ("open_clip", "open_clip_config.json", "[1, 2]"),
        ("open_clip", "open_clip_config.json", '{"model_cfg": {"embed_dim": 3}}'),
    ],
)
def test_a_description_that_describes_nothing_is_one_line(library, file, text, tmp_path):
    (tmp_path / file).write_text(text)
    with pytest.raises(EncoderError, match="cannot be described: ") as raised:
        find_spec(f"{library}:local-dir:{tmp_path}")
    assert "\n" not in str(raised.value)


def test_missing_or_wrong_weights_in_a_folder_are_one_line(saved, tmp_path):
    folder = shutil.copytree(saved[0], tmp_path / "copy")
    for file in {*folder.iterdir()} - {folder / "config.json"}:
        file.unlink()
    with pytest.raises(EncoderWeightsError, match="no such file.*or pass --weights FILE"):
        embedcache.load_encoder(f"timm:local-dir:{folder}", device="cpu")
    other = timm.create_model("test_resnet", pretrained=False, num_classes=7)
    save_file(other.state_dict(), folder / "model.safetensors")
    with pytest.raises(EncoderWeightsError, match="not the weights of ResNet"):
        embedcache.load_encoder(f"timm:local-dir:{folder}", device="cpu")
