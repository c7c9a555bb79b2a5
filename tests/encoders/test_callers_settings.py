"""Rows do not depend on how the caller has set torch, and the caller finds its settings again."""

import contextlib

import numpy as np
import pytest
import torch
from torch import nn

from embedcache.encoders.registry import find_spec, identify_by_name, load
from embedcache.encoders.spec import identity_of
from embedcache.encoders.torch_encoder import TorchEncoder
from embedcache.errors import DeviceError
from embedcache.files.digests import DigestCache
from embedcache.finetune.determinism import repeatable

NEW = hasattr(torch.backends.cuda.matmul, "fp32_precision")
PARTS = ["cuda.matmul", "cudnn.conv", "cudnn.rnn", "mkldnn.matmul", "mkldnn.conv", "mkldnn.rnn"]


def loaded():
    found = identify_by_name("random:timm:test_vit", digests=DigestCache())
    return load(found, device="cpu")


def pictures():
    return np.random.default_rng(0).normal(size=(3, 3, 160, 160)).astype(np.float32)


def part(name):
    holder = torch.backends
    for attribute in name.split("."):
        holder = getattr(holder, attribute)
    return holder


def precisions():
    return [part(name).fp32_precision for name in PARTS] if NEW else []


@pytest.fixture(autouse=True)
def _torch_as_it_was():
    before = precisions()
    yield
    if NEW:
        torch.backends.fp32_precision = "none"
        for name, value in zip(PARTS, before, strict=True):
            part(name).fp32_precision = value
    torch.set_float32_matmul_precision("highest")
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)
    torch.use_deterministic_algorithms(mode=False)
    torch.backends.mkldnn.enabled = True
    torch.backends.mha.set_fastpath_enabled(True)
    for kernel in ("flash", "mem_efficient", "math", "cudnn"):
        getattr(torch.backends.cuda, f"enable_{kernel}_sdp")(True)
    torch.backends.cudnn.benchmark = torch.backends.cudnn.deterministic = False


def hostile():
    """Set all that a notebook may have set."""
    if NEW:
        torch.backends.fp32_precision = "tf32"
        for name in PARTS:
            part(name).fp32_precision = "bf16" if name.startswith("mkldnn") else "tf32"
    else:
        torch.set_float32_matmul_precision("medium")
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    torch.use_deterministic_algorithms(mode=True)
    torch.backends.mkldnn.enabled = False
    torch.backends.mha.set_fastpath_enabled(False)
    torch.backends.cuda.enable_flash_sdp(False)
    torch.backends.cudnn.benchmark = torch.backends.cudnn.deterministic = True


def settings():
    return (
        *precisions(),
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.mkldnn.enabled,
        torch.backends.mha.get_fastpath_enabled(),
        torch.backends.cuda.flash_sdp_enabled(),
        torch.backends.cudnn.benchmark,
        torch.backends.cudnn.deterministic,
    )


def test_no_setting_of_the_caller_reaches_a_row_and_all_are_given_back():
    plain = loaded()
    batch = pictures()
    rows = plain.encode(batch)
    hostile()
    before = settings()
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
        other = loaded()
        assert other.fingerprint == plain.fingerprint
        for encoder in (plain, other):
            assert np.array_equal(encoder.encode(batch), rows)
        assert torch.is_autocast_enabled("cpu")
        assert torch.is_inference_mode_enabled()
    assert settings() == before


def test_a_training_has_exact_float32_and_on_a_gpu_one_order():
    hostile()
    torch.use_deterministic_algorithms(mode=False)
    before = settings()
    for device, is_strict in (("cpu", False), ("cuda", True)):
        with repeatable(torch.device(device)):
            assert set(precisions()) <= {"ieee"}
            assert torch.get_default_dtype() == torch.float32
            assert torch.are_deterministic_algorithms_enabled() == is_strict
            assert torch.backends.cudnn.deterministic == is_strict
            assert torch.backends.cudnn.benchmark != is_strict
        assert settings() == before


@pytest.mark.parametrize("level", ["high", "medium"])
def test_the_older_switch_does_not_reach_a_row_and_can_be_asked_again(level):
    encoder = loaded()
    rows = encoder.encode(pictures())
    torch.set_float32_matmul_precision(level)
    assert np.array_equal(encoder.encode(pictures()), rows)
    assert torch.get_float32_matmul_precision() == level


@pytest.mark.skipif(not NEW, reason="this torch has the older switches only")
def test_old_and_new_switches_that_contradict_each_other_are_no_error():
    encoder = loaded()
    rows = encoder.encode(pictures())
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    torch.backends.mkldnn.matmul.fp32_precision = "tf32"
    with pytest.raises(RuntimeError, match="mix of the legacy and new APIs"):
        torch.get_float32_matmul_precision()
    assert np.array_equal(encoder.encode(pictures()), rows)


@pytest.mark.skipif(not NEW, reason="this torch has the older switches only")
def test_what_is_set_for_all_of_torch_still_reaches_its_parts_afterwards():
    encoder = loaded()
    torch.backends.mkldnn.matmul.fp32_precision = "none"
    torch.backends.fp32_precision = "tf32"
    encoder.encode(pictures())
    torch.backends.fp32_precision = "ieee"
    assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"


@pytest.mark.parametrize("allowed", [True, False])
def test_no_operation_is_left_to_what_is_set_for_all_of_torch(allowed):
    torch.backends.cudnn.allow_tf32 = allowed  # False leaves convolutions to what is set above
    encoder = loaded()
    precision = []
    encoder.module.register_forward_hook(lambda *_: precision.append((*precisions(),)))
    if NEW:
        torch.backends.fp32_precision = "tf32"
    encoder.encode(pictures())
    assert set(precision[0]) <= {"ieee"}


class Full(nn.Module):
    """Asks for more memory than any machine has."""

    def forward(self, images):
        return torch.empty(len(images), 1 << 50)


def test_a_first_batch_that_the_machine_has_no_memory_for_is_an_error_of_one_line():
    spec = find_spec("random:timm:test_vit")
    encoder = TorchEncoder(spec, identity_of(spec, "x", "fp32"), Full(), device="cpu")
    with pytest.raises(DeviceError, match="memory of cpu even one image at a time; end what") as e:
        encoder.encode(pictures())
    assert "\n" not in str(e.value)


def test_a_network_that_memory_is_short_of_while_it_loads_is_an_error_of_one_line(monkeypatch):
    def build(*_: object):
        return torch.empty(1 << 55)

    monkeypatch.setattr("embedcache.encoders.timm_encoders.build", build)
    with pytest.raises(DeviceError, match="'random:timm:test_vit' does not fit into the memory of"):
        loaded()


def test_a_failed_batch_gives_the_settings_back():
    spec = find_spec("random:timm:test_vit")
    encoder = TorchEncoder(spec, identity_of(spec, "x", "fp32"), nn.Flatten(), device="cpu")
    before = settings()
    with contextlib.suppress(ValueError):
        encoder.encode(pictures())
    assert settings() == before
