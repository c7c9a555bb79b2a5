"""Real networks on a CPU: loading, exact outputs, devices; the CUDA path as far as a CPU allows."""

from __future__ import annotations

import io
import pickle

import numpy as np
import pytest
import timm
import torch
from conftest import real
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from torch import nn

import embedcache
from embedcache.data.images import decode_image
from embedcache.encoders import sononet
from embedcache.encoders.checkpoints import load_strictly, read_state_dict
from embedcache.encoders.devices import find_device, free_memory_gb
from embedcache.encoders.registry import (
    BUILTIN,
    find_spec,
    identify_by_name,
    library_versions,
    load,
)
from embedcache.encoders.torch_encoder import (
    TorchEncoder,
    random_weights,
    tensors_digest,
)
from embedcache.errors import DeviceError, EncoderError, EncoderWeightsError, UnknownEncoderError
from embedcache.files.digests import DigestCache

SIZES = [(300, 200), (200, 300), (224, 224), (41, 900), (233, 517)]


def pictures() -> list[Image.Image]:
    chance = np.random.default_rng(0)
    colour = [chance.integers(0, 256, (h, w, 3), dtype=np.uint8) for w, h in SIZES]
    return [Image.fromarray(pixels) for pixels in colour] + [
        Image.fromarray(pixels[:, :, 0]) for pixels in colour
    ]


def random_file(architecture: str, folder, seed: int = 0) -> tuple[nn.Module, object]:
    """Return timm's network with random values in every tensor, and a file of them."""
    network = timm.create_model(architecture, pretrained=False).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            values = torch.rand(tensor.shape, generator=generator)
            tensor.copy_(values + 0.5 if name.endswith("running_var") else (values - 0.5) * 0.1)
    file = folder / f"{architecture}.pth"
    torch.save(network.state_dict(), file)
    return network, file


@pytest.mark.parametrize("name", ["resnet50", "efficientnetv2", "dinov3", "efficientnet-lite0"])
def test_what_is_written_of_a_network_is_what_timm_says(name):
    spec, known = BUILTIN[name], find_spec("timm:" + BUILTIN[name].architecture[5:])
    assert spec.architecture == known.architecture
    assert spec.dim == known.dim
    assert spec.parameters == known.parameters
    if name != "efficientnet-lite0":
        assert spec.weights.location == known.weights.location
        assert spec.weights.licence.lower().replace(" ", "-") == known.weights.licence
    mine, theirs = spec.preprocess.document(), known.preprocess.document()
    if name == "efficientnetv2":  # the tag's test size, not its training size
        theirs |= {"height": 384, "width": 384}
    if name == "dinov3":  # its authors squash
        theirs |= {"fit": "squash"}
    assert mine == theirs


@pytest.mark.parametrize("architecture", ["resnet18", "vit_tiny_patch16_224", "efficientnet_b0"])
def test_outputs_and_preprocessing_equal_timm_called_directly(architecture, tmp_path):
    network, file = random_file(architecture, tmp_path)
    encoder = embedcache.load_encoder(f"timm:{architecture}", weights=file, device="cpu")
    transform = create_transform(**resolve_model_data_config(network))
    network.reset_classifier(0)
    network = network.to(memory_format=torch.channels_last)
    arrays = []
    for picture in pictures():
        sink = io.BytesIO()
        picture.save(sink, "PNG")
        arrays.append(encoder.preprocess(decode_image(sink.getvalue())))
        assert np.array_equal(arrays[-1], transform(picture.convert("RGB")).numpy())
    batch = np.stack(arrays)
    with torch.inference_mode():
        images = torch.from_numpy(batch).contiguous(memory_format=torch.channels_last)
        expected = network(images).numpy()
    assert np.array_equal(encoder.encode(batch), expected)


@pytest.mark.parametrize("name", ["random:timm:resnet18", "random:timm:vit_tiny_patch16_224"])
def test_a_row_does_not_depend_on_its_neighbours_in_a_batch_of_one_size(name):
    encoder = load(identify_by_name(name, digests=DigestCache()), device="cpu")
    batch = np.stack([encoder.preprocess(picture) for picture in pictures()[:6]])
    rows = encoder.encode(batch)
    assert np.array_equal(encoder.encode(batch[::-1])[::-1], rows)
    padded = np.zeros_like(batch)
    padded[:2] = batch[4:]
    assert np.array_equal(encoder.encode(padded)[:2], rows[4:])


def test_random_weights_are_the_same_each_time_and_leave_the_generator_alone():
    before = torch.random.get_rng_state()
    first, second = (
        load(identify_by_name("random:timm:resnet18", digests=DigestCache()), device="cpu")
        for _ in "ab"
    )
    assert torch.equal(before, torch.random.get_rng_state())
    assert first.fingerprint == second.fingerprint
    assert tensors_digest(first.module) == tensors_digest(second.module)
    with random_weights(1):
        other = timm.create_model("resnet18", num_classes=0)
    assert tensors_digest(other) != tensors_digest(first.module)


def test_random_weights_found_in_a_store_need_no_drawing():
    encoder = load(identify_by_name("random:timm:resnet18", digests=DigestCache()), device="cpu")
    document = {
        "spec": encoder.spec.document(),
        "identity": encoder.identity,
        "versions": library_versions(),
    }
    found = identify_by_name("random:timm:resnet18", digests=DigestCache(), documents=[document])
    assert found.fingerprint == encoder.fingerprint
    document["versions"]["torch"] = "0.1"
    assert identify_by_name(
        "random:timm:resnet18", digests=DigestCache(), documents=[document]
    ).fingerprint is None  # fmt: skip


@pytest.mark.parametrize("name", ["timm:resnet18", "random:timm:resnet18"])
def test_a_timm_model_found_in_a_store_is_not_asked_of_timm_again(name, monkeypatch):
    document = {"spec": find_spec(name).document(), "versions": {"timm": timm.__version__}}
    monkeypatch.setattr(timm, "is_model", lambda _: pytest.fail("timm was asked"))
    assert find_spec(name, [document]).document() == document["spec"]


def test_unknown_timm_names_get_the_nearest():
    with pytest.raises(
        UnknownEncoderError, match="has no model 'resnet51'; did you mean 'timm:res"
    ):
        find_spec("timm:resnet51")
    with pytest.raises(UnknownEncoderError, match="no weights 'resnet50.zzz'; pretrained tags: "):
        find_spec("timm:resnet50.zzz")


def test_a_network_with_another_way_of_cropping_is_refused():
    odd = next(
        name
        for name in timm.list_models(pretrained=True)
        if timm.get_pretrained_cfg(name).crop_mode == "border"
    )
    with pytest.raises(EncoderError, match="crop_mode 'border'.*not supported"):
        find_spec(f"timm:{odd}")


def test_wrong_files_are_refused_whole(tmp_path):
    network, file = random_file("resnet18", tmp_path)
    tensors = network.state_dict()

    def refused(tensors, match, suffix=".pth"):
        bad = tmp_path / f"bad{suffix}"
        torch.save(tensors, bad)
        with pytest.raises(EncoderWeightsError, match=match):
            embedcache.load_encoder("timm:resnet18", weights=bad, device="cpu")

    refused({k: v for k, v in tensors.items() if k != "layer1.0.conv1.weight"}, "not the weights")
    refused({**tensors, "extra.weight": torch.zeros(2)}, "not the weights of timm's resnet18")
    refused({**tensors, "fc.weight": torch.zeros(10, 512)}, "not the weights of timm's resnet18")
    refused({"state_dict": tensors}, "'state_dict' is OrderedDict, not a tensor")
    refused([1, 2], "holds list, expected named tensors")
    random_file("resnet34", tmp_path)
    with pytest.raises(EncoderWeightsError, match="not the weights of timm's resnet18"):
        embedcache.load_encoder("timm:resnet18", weights=tmp_path / "resnet34.pth", device="cpu")
    for suffix in (".pth", ".safetensors"):
        page = tmp_path / f"page{suffix}"
        page.write_text("<!DOCTYPE html><html>")
        with pytest.raises(EncoderWeightsError, match="it is a web page; download the file itself"):
            embedcache.load_encoder("timm:resnet18", weights=page, device="cpu")
        page.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
        with pytest.raises(EncoderWeightsError, match="it is a Git LFS pointer; run `git lfs "):
            embedcache.load_encoder("timm:resnet18", weights=page, device="cpu")
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    with pytest.raises(EncoderWeightsError, match="cannot be read as a checkpoint"):
        embedcache.load_encoder("timm:resnet18", weights=file, device="cpu")


class Evil:
    """Would run code when unpickled."""

    def __reduce__(self):
        return (pytest.fail, ("a checkpoint ran code",))


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    for name, data in (("a.pth", pickle.dumps({"w": Evil()})), ("b.safetensors", b"no")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(EncoderWeightsError, match=f"{name}: cannot be read as a checkpoint"):
            read_state_dict(tmp_path / name)
    torch.save({"w": Evil()}, tmp_path / "c.pth")
    with pytest.raises(EncoderWeightsError, match=r"c\.pth: cannot be read as a checkpoint"):
        read_state_dict(tmp_path / "c.pth")


def test_batch_normalisation_counters_may_be_missing_and_nothing_else(tmp_path):
    network = sononet.SonoNet()
    tensors = {k: v for k, v in network.state_dict().items() if "num_batches_tracked" not in k}
    load_strictly(network, tensors, tmp_path / "f")
    tensors.pop("features.0.0.0.weight")
    with pytest.raises(EncoderWeightsError, match=r"1 tensors missing, first 'features\.0\.0\.0"):
        load_strictly(network, tensors, tmp_path / "f")


def test_lite0_has_the_published_weights_and_classifies_like_a_network_that_was_trained():
    encoder = embedcache.load_encoder("efficientnet-lite0", device="cpu")
    assert encoder.fingerprint.startswith("ebc125c93a06")
    rows = encoder.encode(np.stack([encoder.preprocess(p) for p in pictures()]))
    assert rows.shape == (10, 1280)
    # Equal inputs give equal rows, unequal ones do not: the weights are in use.
    assert not np.allclose(rows[0], rows[1])


def test_half_precision_is_another_fingerprint_and_nearly_the_same_row():
    exact = load(identify_by_name("random:timm:resnet18", digests=DigestCache()), device="cpu")
    found = identify_by_name("random:timm:resnet18", digests=DigestCache(), precision="bf16")
    rough = load(found, device="cpu")
    assert exact.fingerprint != rough.fingerprint
    batch = np.stack([exact.preprocess(picture) for picture in pictures()[:3]])
    a, b = exact.encode(batch), rough.encode(batch)
    assert not np.array_equal(a, b)
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert (cosine > 0.99).all()
    assert b.dtype == np.float32


def test_exact_float32_is_restored_after_each_batch():
    encoder = load(identify_by_name("random:timm:resnet18", digests=DigestCache()), device="cpu")
    cudnn = []
    encoder.module.register_forward_hook(
        lambda *_: cudnn.append((torch.backends.cudnn.enabled, torch.backends.cudnn.allow_tf32))
    )
    torch.set_float32_matmul_precision("high")
    try:
        encoder.encode(np.zeros((1, 3, 224, 224), np.float32))
        assert cudnn == [(True, False)]
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_no_cuda_is_an_error_never_a_cpu(monkeypatch):
    monkeypatch.setattr("embedcache.encoders.devices._loads", lambda _: True)
    with pytest.raises(DeviceError, match="--device cuda: torch .* pass --device cpu"):
        find_device("cuda")
    assert find_device("auto").type in {"cpu", "mps"}


@pytest.mark.parametrize("device", ["cuda:2", "cuda:300", "cuda:99999999999"])
def test_a_gpu_that_this_machine_lacks_is_an_error_of_one_line(monkeypatch, device):
    monkeypatch.setattr("embedcache.encoders.devices._loads", lambda _: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for ask in (find_device, free_memory_gb):
        with pytest.raises(DeviceError, match=rf"--device {device}: .* has 2 CUDA GPU\(s\), num"):
            ask(device)
    assert find_device("cuda:1") == torch.device("cuda:1")


@pytest.mark.parametrize(
    ("refusal", "message"),
    [
        ("OutOfMemoryError", "does not fit into the memory of cpu: its weights alone take 0.0 GB"),
        ("AcceleratorError", "cpu refuses 'random:timm:resnet18': CUDA error: it is busy; pass -"),
    ],
)
def test_a_network_that_the_device_does_not_take_is_an_error_of_one_line(refusal, message):
    if not hasattr(torch, refusal):
        pytest.skip(f"torch {torch.__version__} has no {refusal}")

    class Refused(nn.Module):
        def _apply(self, *_: object, **__: object):
            raise getattr(torch, refusal)("CUDA error: it is busy\nCompile with TORCH_USE_...")

    with pytest.raises(DeviceError, match=message) as raised:
        fake_encoder(Refused())
    assert "\n" not in str(raised.value)


class OutOfMemory(nn.Module):
    """Runs out of memory above a number of images, as a GPU does."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most, self.sizes = most, []

    def forward(self, images):
        self.sizes.append(len(images))
        if len(images) > self.most:
            raise torch.OutOfMemoryError
        return images.mean((2, 3))


def fake_encoder(module: nn.Module) -> TorchEncoder:
    from dataclasses import replace

    from embedcache.encoders.spec import identity_of

    spec = replace(find_spec("random:timm:resnet18"), dim=3)
    return TorchEncoder(spec, identity_of(spec, "x", "fp32"), module, device="cpu")


def test_a_batch_too_large_for_the_device_is_halved_until_it_fits():
    module = OutOfMemory(most=3)
    encoder = fake_encoder(module)
    batch = np.random.default_rng(0).normal(size=(8, 3, 4, 4)).astype(np.float32)
    assert np.allclose(encoder.encode(batch), batch.mean((2, 3)), atol=1e-6)
    module.sizes.clear()
    encoder.encode(batch)
    assert max(module.sizes) <= 3  # it remembers
    with pytest.raises(DeviceError, match="even one image at a time"):
        fake_encoder(OutOfMemory(most=0)).encode(batch)


class Cuda:
    """Stands in for torch.cuda: records the order in which a stream is used."""

    def __init__(self) -> None:
        self.log: list[str] = []

    def Stream(self, device):  # noqa: N802
        return "side stream"

    def stream(self, stream):
        import contextlib

        return contextlib.nullcontext(self.log.append(f"on {stream}"))

    def current_stream(self, device):
        log = self.log

        class Stream:
            def wait_stream(self, other):
                log.append(f"wait for {other}")

        return Stream()

    def Event(self):  # noqa: N802
        log = self.log

        class Event:
            def record(self, stream):
                log.append("record")

            def synchronize(self):
                log.append("synchronize")

        return Event()


def test_staging_copies_on_its_own_stream_waits_before_reuse_and_keeps_values(monkeypatch):
    from embedcache.encoders import torch_encoder

    cuda = Cuda()
    monkeypatch.setattr(torch_encoder.torch, "cuda", cuda)
    empty = torch.empty
    monkeypatch.setattr(
        torch_encoder.torch, "empty_like", lambda t, pin_memory: empty(t.shape, dtype=t.dtype)
    )
    monkeypatch.setattr(
        torch_encoder.torch, "empty", lambda shape, dtype, pin_memory: empty(shape, dtype=dtype)
    )
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda *_: cuda.log.append("keep"))
    staging = torch_encoder._Staging(torch.device("cpu"))
    batches = [torch.full((2, 3), float(i)) for i in range(5)] + [torch.full((4, 3), 9.0)]
    for batch in batches:
        uploaded = staging.upload(batch)
        assert torch.equal(uploaded, batch)
    assert len(staging._buffers) == 2
    each = ["synchronize", "on side stream", "record", "wait for side stream", "keep"]
    assert cuda.log == each * len(batches)
    assert torch.equal(staging.download(batches[-1])(), batches[-1])


def test_sononet_head_knows_its_example_planes():
    encoder = embedcache.load_encoder(
        "sononet16", weights=real("sononet", "SonoNet16.pth"), device="cpu"
    )
    right = 0
    files = sorted(real("sononet", "example_images").glob("*.tiff"))
    for file in files:
        picture = decode_image(file.read_bytes()).crop((81, 115, 874, 734))
        logits = encoder.module.classify(torch.from_numpy(encoder.preprocess(picture)[None]))
        right += sononet.CLASSES[int(logits.argmax())] == file.stem
    assert (right, len(files)) == (13, 13)


def test_sononet_calls_brains_brains():
    encoder = embedcache.load_encoder(
        "sononet16", weights=real("sononet", "SonoNet16.pth"), device="cpu"
    )
    files = sorted(real("fpdb_brain_subset", "images").glob("*.png"))
    batch = np.stack([encoder.preprocess(decode_image(file.read_bytes())) for file in files])
    called = encoder.module.classify(torch.from_numpy(batch)).argmax(1).tolist()
    brains = sum(sononet.CLASSES[number].startswith("BRAIN") for number in called)
    assert brains >= 55
    assert len(files) == 57


def test_tensors_that_changed_places_are_not_loaded_by_position(tmp_path):
    network = timm.create_model("tf_efficientnet_lite0")
    names = list(network.state_dict())
    names[1], names[2] = names[2], names[1]  # a batch norm's weight and bias: the same shape
    swapped = {f"x{n}.{name}": network.state_dict()[name] for n, name in enumerate(names)}
    torch.save(swapped, tmp_path / "swapped.pth")
    with pytest.raises(EncoderWeightsError, match="in their published order"):
        embedcache.load_encoder("efficientnet-lite0", weights=tmp_path / "swapped.pth")
