"""Training itself: what moves, at which rate, what is learnt, and what nothing depends on."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_encoders
import torch
from conftest import PATIENCE
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file
from timm.layers import DropPath
from torch import nn

import embedcache
from embedcache.encoders import registry
from embedcache.encoders.plugins import register_file
from embedcache.encoders.preprocess import Preprocess
from embedcache.errors import DeviceError, EncoderError, LeakageError, RunError
from embedcache.extract.pictures import hold_pixels
from embedcache.files.backend import on_disk
from embedcache.files.digests import DigestCache
from embedcache.finetune import batches, train
from embedcache.finetune.augment import augmentation
from embedcache.finetune.determinism import relax_determinism_if_needed
from embedcache.finetune.fold_files import ENCODER, FoldFiles
from embedcache.finetune.jobs import FoldJob, Part
from embedcache.finetune.model import (
    Classifier,
    Normalise,
    load_network,
    set_drop_path,
    set_gradient_checkpointing,
)
from embedcache.finetune.processes import on_devices
from embedcache.finetune.recipe import Recipe, parse_changes, read_recipe, recipe_text
from embedcache.finetune.regimes import (
    Regime,
    choose_parameters,
    merge_adapters,
    parameter_groups,
)
from embedcache.finetune.splits import Split, check_apart, split_fold
from embedcache.finetune.train import train_fold, train_folds
from embedcache.probes.logistic import fit_sweep
from embedcache.testing import write_cohort
from embedcache.verbs.session import Session

REGIMES = ("finetune", "lora", "head-only", "lp-ft", "partial:1")
TINY = ("tiny-vit", "tiny-cnn")
_OFF = "label_smoothing ema drop_path weight_decay flip rotation translation scale"
PLAIN = dict.fromkeys(  # nothing random but the order, and nothing that keeps the loss from 0
    [*_OFF.split(), "brightness", "contrast", "gamma", "speckle"], 0.0
)


@pytest.fixture(autouse=True)
def _registered():
    register_file(Path(tiny_encoders.__file__))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # networks so small wait for each other's threads, and do little else
    yield
    torch.set_num_threads(threads)


def identified(name: str) -> registry.Identified:
    found = registry.identify_by_name(name, digests=DigestCache())
    digest = registry.load(found, device="cpu").identity["weights"]
    return replace(found, weights_digest=digest)


def recipe(**changes: object) -> Recipe:
    return read_recipe(None, changes)


def classifier(name: str, regime: str, **changes: object) -> tuple[Classifier, Regime, Recipe]:
    found, how, made = identified(name), Regime(regime), recipe(**changes)
    spec = found.spec
    network = Classifier(load_network(found), spec.preprocess, spec.dim, 3)
    few = torch.zeros(2, 1, *spec.preprocess.shape[1:], dtype=torch.uint8)
    choose_parameters(network, how, made, few, name)
    return network, how, made


def moved(network: Classifier) -> set[str]:
    return {name for name, one in network.named_parameters() if one.requires_grad}


# What moves, and how fast


def test_everything_moves_in_full_fine_tuning():
    for regime in ("finetune", "lp-ft"):
        network, *_ = classifier("tiny-vit", regime)
        assert moved(network) == {name for name, _ in network.named_parameters()}


def test_only_the_head_moves_in_head_only():
    network, *_ = classifier("tiny-vit", "head-only")
    assert moved(network) == {"head.linear.weight", "head.linear.bias"}


def test_the_last_layers_move_in_partial():
    network, *_ = classifier("tiny-vit", "partial:1")
    assert {name.split(".")[1] for name in moved(network) - {"head.linear.bias"}} == {
        "blocks",
        "norm",
        "linear",
    }
    assert {name for name in moved(network) if "blocks" in name} == {
        name for name, _ in network.named_parameters() if "encoder.blocks.2." in name
    }
    network, *_ = classifier("tiny-vit", "partial:4")  # three blocks and the patch embedding
    assert moved(network) == {name for name, _ in network.named_parameters()}


def test_partial_of_more_layers_than_there_are_says_how_many_there_are():
    with pytest.raises(RunError, match="'tiny-vit' has 4 layers; name as many or fewer"):
        classifier("tiny-vit", "partial:5")


def test_partial_needs_a_network_that_names_its_layers(monkeypatch):
    monkeypatch.delattr("timm.models.vision_transformer.VisionTransformer.group_matcher")
    with pytest.raises(EncoderError, match="'tiny-vit' does not say what its layers are"):
        classifier("tiny-vit", "partial:1")
    network, how, made = classifier("tiny-vit", "finetune")  # and no other regime does
    assert parameter_groups(network, how, made)


def test_lora_moves_adapters_and_the_head_only():
    for name in TINY:
        network, *_ = classifier(name, "lora")
        assert {one.split(".")[0] for one in moved(network)} == {"encoder", "head"}
        of_encoder = {one for one in moved(network) if one.startswith("encoder")}
        assert of_encoder
        assert all("lora_" in one for one in of_encoder)


def test_lora_changes_nothing_before_training_and_merges_to_what_it_computed():
    for name in TINY:
        network, *_ = classifier(name, "lora")
        pixels = torch.randint(0, 255, (4, 1, 16, 16), dtype=torch.uint8)
        network.eval()
        with torch.no_grad():
            plain = identified(name)
            fresh = Classifier(load_network(plain), plain.spec.preprocess, plain.spec.dim, 3)
            fresh.eval()
            assert torch.allclose(network.embed(pixels), fresh.embed(pixels), atol=1e-5)
            for path, one in network.named_parameters():
                if "lora_B" in path:
                    one.normal_(0, 0.05)
            adapted = network.embed(pixels)
            assert not torch.allclose(adapted, fresh.embed(pixels), atol=1e-3)
            merge_adapters(network)
            assert torch.allclose(network.embed(pixels), adapted, atol=1e-4)
        names = set(network.encoder.state_dict())
        assert names == set(load_network(plain).state_dict())  # its plain self again


@pytest.mark.slow
def test_lora_reaches_the_matrix_that_beit_multiplies_by_itself():
    """USFM's attention computes with `qkv.weight`, past any adapter, unless told otherwise."""
    network, *_ = classifier("random:usfm", "lora")
    with_qkv = {name for name in moved(network) if ".qkv.lora_" in name}
    assert len(with_qkv) == 24


def test_rates_fall_by_layer_decay_away_from_the_head():
    network, how, made = classifier("random:dinov3-s", "finetune", lr=1.0, head_lr=2.0)
    rate = {
        id(one): group["lr"] * group.get("lr_scale", 1)
        for group in parameter_groups(network, how, made)
        for one in group["params"]
    }
    of = {name: rate[id(one)] for name, one in network.named_parameters()}
    for number in range(11):
        ratio = (
            of[f"encoder.blocks.{number}.mlp.fc1.weight"]
            / of[f"encoder.blocks.{number + 1}.mlp.fc1.weight"]
        )
        assert ratio == pytest.approx(0.75)
    assert of["encoder.blocks.11.mlp.fc1.weight"] == 1.0
    assert of["encoder.patch_embed.proj.weight"] == pytest.approx(0.75**12)
    assert of["head.linear.weight"] == 2.0
    assert len(of) == len(rate)  # each parameter in one group


def test_a_deep_network_learns_at_its_first_layer_as_a_vit_b_does():
    network, how, made = classifier("random:mofo", "finetune", lr=1.0)
    scales = [group.get("lr_scale", 1) for group in parameter_groups(network, how, made)]
    assert min(scales) == pytest.approx(0.75**12, rel=0.05)


def test_networks_with_batch_norm_have_one_rate_and_lora_its_own():
    network, how, made = classifier("tiny-cnn", "finetune", lr=0.5, head_lr=2.0)
    assert {group["lr"] for group in parameter_groups(network, how, made)} == {0.5, 2.0}
    network, how, made = classifier("tiny-vit", "lora", lora_lr=0.25, head_lr=2.0)
    groups = parameter_groups(network, how, made)
    assert {group["lr"] * group.get("lr_scale", 1) for group in groups} == {0.25, 2.0}


def test_a_head_that_starts_at_the_probe_moves_at_the_encoders_rate():
    network, how, made = classifier("tiny-cnn", "lp-ft", lr=0.5, head_lr=2.0)
    assert {group["lr"] for group in parameter_groups(network, how, made)} == {0.5}


def test_biases_norms_and_tables_have_no_weight_decay():
    network, how, made = classifier("tiny-vit", "finetune")
    exempt = {
        id(one)
        for group in parameter_groups(network, how, made)
        if group["weight_decay"] == 0
        for one in group["params"]
    }
    for name, one in network.named_parameters():
        is_exempt = one.ndim < 2 or name.split(".")[1] in {"pos_embed", "cls_token"}
        assert (id(one) in exempt) == is_exempt, name


def test_what_nothing_is_computed_with_is_left_alone():
    network, *_ = classifier("random:sononet16", "finetune")
    assert not any(name.startswith("encoder.adaption") for name in moved(network))
    assert any(name.startswith("encoder.features.0") for name in moved(network))


def test_frozen_parts_work_as_they_will_be_applied():
    network, *_ = classifier("tiny-cnn", "head-only")
    network.train()
    assert not any(one.training for one in network.encoder.modules())
    network, *_ = classifier("tiny-cnn", "lora")
    network.train()
    norms = [one for one in network.modules() if isinstance(one, nn.BatchNorm2d)]
    assert norms
    assert not any(one.training for one in norms)
    network, *_ = classifier("tiny-cnn", "finetune")
    network.train()
    assert all(one.training for one in network.modules())


@pytest.mark.parametrize(
    ("name", "blocks"),
    [("tiny-vit", 3), ("tiny-cnn", 4), ("random:mofo", 40), ("random:sononet16", 0)],
)
def test_drop_path_rises_from_the_first_block_to_the_last(name, blocks):
    network = load_network(identified(name))
    names = set(network.state_dict())
    assert set_drop_path(network, 0.3) == blocks
    rates = [one.drop_prob for one in network.modules() if isinstance(one, DropPath)]
    assert rates == sorted(rates)
    assert max(rates, default=0.3) == pytest.approx(0.3)
    assert set(network.state_dict()) == names


def test_an_encoder_without_a_network_cannot_be_trained():
    found = registry.identify_by_name("pixels", digests=DigestCache())
    with pytest.raises(EncoderError, match="'pixels' is no network of torch"):
        load_network(found)


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


# Splits and batches


@settings(max_examples=40, deadline=None)
@given(st.integers(6, 40), st.integers(1, 4), st.sampled_from([0.1, 0.15, 0.3]), st.integers(0, 5))
def test_no_patient_is_on_two_sides_of_any_fold(n_patients, n_images, share, seed):
    patient = [f"p{number % n_patients}" for number in range(n_patients * n_images)]
    label = [("a", "b", "c")[int(name[1:]) % 3] for name in patient]
    if len(set(label)) == len(label):
        return
    fold = np.array([int(name[1:]) % 3 for name in patient])
    for number in range(3):
        split = split_fold(patient, label, fold, number, validation=share, seed=seed)
        rows = np.concatenate([split.train, split.validation, split.test])
        assert sorted(rows) == list(range(len(patient)))
        assert set(split.test) == set(np.flatnonzero(fold == number))
        assert len(split.train)
        assert len(split.validation)
        sides = [{patient[row] for row in part} for part in (split.train, split.validation)]
        tested = {patient[row] for row in split.test}
        for one, other in ((sides[0], tested), (sides[1], tested), sides):
            assert not one & other


@pytest.mark.parametrize(
    ("split", "message"),
    [
        (((0,), (1,), (2, 3)), "patient 'a' is in both the train and the test part"),
        (((1,), (0,), (2, 3)), "patient 'a' is in both the validation and the test part"),
        (((0,), (2,), (1, 3)), "patient 'a' is in both the train and the validation part"),
    ],
)
def test_a_patient_on_two_sides_is_refused(split, message):
    with pytest.raises(LeakageError, match=message):
        check_apart(np.array(["a", "b", "a", "c"]), Split(*map(np.array, split)))


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 200), st.integers(1, 40), st.integers(0, 9))
def test_an_epoch_holds_each_image_once_in_batches_of_nearly_one_size(n, size, seed):
    parts = batches.epoch_batches(n, size, (seed,))
    assert sorted(np.concatenate(parts)) == list(range(n))
    lengths = {len(part) for part in parts}
    assert max(lengths) <= size
    assert max(lengths) - min(lengths) <= 1


def test_epochs_have_orders_of_their_own_and_the_same_one_again():
    first, again, other = (batches.epoch_batches(50, 8, (0, 1, e)) for e in (0, 0, 1))
    assert all(map(np.array_equal, first, again))
    assert not all(map(np.array_equal, first, other))


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Pictures of 16 x 16 in a store, their keys and the numbers of their classes."""
    register_file(Path(tiny_encoders.__file__))
    folder = tmp_path_factory.mktemp("stored")
    write_cohort(folder, n_patients=12, n_images=2, size=16)
    workspace = embedcache.open(folder).workspace
    workspace.create_store()
    images = Session(workspace).images
    preprocess = registry.find_spec("tiny-vit").preprocess
    store, report = hold_pixels(workspace, preprocess, images.files)
    assert report.n_failed == 0
    labels = images.table["label"].to_pylist()
    return store, tuple(images.keys), np.unique(labels, return_inverse=True)[1].astype(np.int64)


def images_of(store):
    """Return the images whose pictures a store holds."""
    return Session(embedcache.open(Path(store.folder).parents[2]).workspace).images


def test_stored_pictures_are_the_bytes_of_the_fitted_ones(stored, tmp_path):
    store, keys, _ = stored
    assert store.dtype == np.uint8
    rows = store.read(keys[:3])
    assert rows.dtype == np.uint8
    images = images_of(store)
    fit = registry.find_spec("tiny-vit").preprocess.unnormalised()
    for row, file in zip(rows, images.files, strict=False):
        assert np.array_equal(row.reshape(3, 16, 16), fit(Image.open(file.path)))


def test_a_picture_changes_alike_whoever_loads_it_and_beside_whom(stored):
    store, keys, _ = stored
    pictures = batches.Pictures(store, keys, (16, 16), augmentation(recipe()), (0, 1))
    torch.manual_seed(1)
    before = torch.get_rng_state()
    _, together = pictures.__getitems__([(2, 3), (2, 4), (2, 5)])
    assert torch.equal(torch.get_rng_state(), before)
    _, alone = pictures.__getitems__([(2, 4)])
    assert torch.equal(together[1:2], alone)
    _, later = pictures.__getitems__([(3, 4)])
    assert not torch.equal(later, alone)
    _, plain = pictures.__getitems__([(batches.UNCHANGED, 4)])
    assert np.array_equal(plain[0, 0].numpy(), store.read([keys[4]]).reshape(3, 16, 16)[0])
    for workers in (0, 1):
        reader = batches.Reader(pictures, workers=workers, device=torch.device("cpu"))
        for _ in "ab":  # the same workers, another turn
            ((numbers, loaded),) = list(reader.read([[5, 4]], epoch=2))
            assert numbers.tolist() == [5, 4]
            assert torch.equal(loaded, together[[2, 1]])


def test_a_grey_picture_changes_alike_beside_one_in_colour(tmp_path):
    write_cohort(tmp_path, n_patients=4, n_images=1, size=16)
    for path in sorted((tmp_path / "images").glob("*.png"))[::2]:
        grey = np.asarray(Image.open(path))
        Image.fromarray(np.stack([grey, grey // 2, grey // 3], axis=2)).save(path)
    workspace = embedcache.open(tmp_path).workspace
    workspace.create_store()
    images = Session(workspace).images
    store, _ = hold_pixels(workspace, registry.find_spec("tiny-vit").preprocess, images.files)
    pictures = batches.Pictures(store, images.keys, (16, 16), augmentation(recipe()), (0,))
    _, together = pictures.__getitems__([(0, number) for number in range(len(images.keys))])
    assert together.shape[1] == 3
    for number, one in enumerate(together):
        _, alone = pictures.__getitems__([(0, number)])
        assert torch.equal(alone[0].expand(3, -1, -1), one)


def test_workers_leave_the_draws_of_drop_path_alone(stored, tmp_path):
    settings = {"epochs": 2, "lr": 1e-3, "drop_path": 0.5}
    losses = []
    for workers in (0, 1):
        one = job(stored, "tiny-vit", "finetune", tmp_path / str(workers), **settings)
        losses.append([epoch.loss for epoch in trained(replace(one, workers=workers)).epochs])
    assert losses[0] == losses[1]


def test_a_network_that_cannot_be_repeated_to_the_bit_is_trained_all_the_same(caplog):
    def passes():
        raise RuntimeError("x_backward does not have a deterministic implementation. Turn it off")

    try:
        relax_determinism_if_needed(passes)
        assert torch.is_deterministic_algorithms_warn_only_enabled()
        assert "x_backward does not have a deterministic implementation" in caplog.text
    finally:
        torch.use_deterministic_algorithms(mode=False)
    with pytest.raises(ZeroDivisionError):
        relax_determinism_if_needed(lambda: 1 / 0)


def test_augmentation_keeps_shape_type_and_top():
    torch.manual_seed(0)
    picture = torch.zeros(1, 32, 32, dtype=torch.uint8)
    picture[:, :8] = 200
    for _ in range(20):
        changed = augmentation(recipe())(picture)
        assert changed.shape == picture.shape
        assert changed.dtype == torch.uint8
        assert changed[0, :8].float().mean() > changed[0, 24:].float().mean()
    plain = augmentation(recipe(**PLAIN))
    assert torch.equal(plain(picture), picture)


# What is learnt


def job(stored, name: str, regime: str, folder: Path, **changes: object) -> FoldJob:
    store, keys, codes = stored
    found = identified(name)
    part = Part(keys, codes)
    probe = None
    if regime == "lp-ft":
        encoder = registry.load(found, device="cpu")
        images = images_of(store)
        X = encoder.embed([file.path for file in images.files])
        [probe] = fit_sweep(X, codes, 3, [(np.arange(len(codes)), [1.0])])
    return FoldJob(
        fold=0,
        seed=0,
        encoder=found,
        regime=Regime(regime),
        recipe=recipe(**{"precision": "fp32", "batch_size": 16, **changes}),
        n_classes=3,
        train=part,
        validation=part,
        tests=(part,),
        probe=probe,
        pixels=store.folder,
        folder=folder,
        logs=None,
        workers=0,
    )


def trained(one: FoldJob, *, n_devices: int = 1, theirs: FoldJob | None = None, **callbacks):
    """Train a fold; `theirs` is what the other processes do, where it is something else."""
    with on_devices(
        train_folds,
        ([theirs or one],),
        device="cpu",
        n_devices=n_devices,
        precision=one.recipe.precision,
        encoder_file=Path(tiny_encoders.__file__),
    ) as fabric:
        assert fabric.world_size == n_devices
        return train_fold(fabric, one, **callbacks)


@pytest.mark.parametrize(
    "regime",
    [one if one == "finetune" else pytest.param(one, marks=pytest.mark.slow) for one in REGIMES],
)
@pytest.mark.parametrize("name", TINY)
def test_a_tiny_set_is_learnt_by_heart(stored, tmp_path, name, regime):
    fast = {"lr": 3e-3, "lora_lr": 2e-2, "head_lr": 0.3, "lora_rank": 4, "layer_decay": 1.0}
    one = job(stored, name, regime, tmp_path, epochs=30, **PLAIN, **fast)
    result = trained(one)
    assert result.epochs[-1].loss < 0.02
    said = result.probability[0].argmax(axis=1)
    assert (said == one.train.codes).all()
    assert np.allclose(result.probability[0].sum(axis=1), 1)


@pytest.mark.parametrize("name", TINY)
def test_the_head_starts_at_the_probe(stored, tmp_path, name):
    one = job(stored, name, "lp-ft", tmp_path, epochs=1, lr=1e-12, **PLAIN)
    images = images_of(stored[0])
    X = registry.load(one.encoder, device="cpu").embed([file.path for file in images.files])
    expected = one.probe.probability(X)[0]
    assert np.abs(trained(one).probability[0] - expected).max() < 1e-3


def test_precisions_and_accumulation_learn_the_same(stored, tmp_path):
    settings = {"epochs": 3, "lr": 1e-3, **PLAIN}
    losses = {}
    for key, changes in {
        "fp32": {},
        "bf16": {"precision": "bf16"},
        "fp16": {"precision": "fp16"},
        "accumulated": {"accumulate": 4},
        "checkpointed": {"gradient_checkpointing": True},
    }.items():
        one = job(stored, "tiny-vit", "finetune", tmp_path / key, **settings, **changes)
        losses[key] = [epoch.loss for epoch in trained(one).epochs]
    assert np.allclose(losses["accumulated"], losses["fp32"], rtol=1e-4)
    assert np.allclose(losses["checkpointed"], losses["fp32"], rtol=1e-4)
    assert losses["bf16"] != losses["fp32"]
    assert np.allclose(losses["bf16"], losses["fp32"], rtol=0.1)
    # A loss scaler begins too high and skips steps until it has found its place.
    assert losses["fp16"][0] > losses["fp16"][-1] > losses["fp32"][-1]


@pytest.mark.slow
def test_two_processes_learn_what_one_does(stored, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("NODE_RANK", "1")  # of a cluster's job, say: our processes are all here
    monkeypatch.setenv("MASTER_ADDR", "192.0.2.1")
    found = {}
    for n_devices in (1, 2):
        one = job(
            stored,
            "tiny-vit",
            "finetune",
            tmp_path / str(n_devices),
            epochs=3,
            lr=1e-3,
            drop_path=0.0,
            accumulate=2,
        )
        # Each process has readers of its own, as on GPUs.
        found[n_devices] = trained(replace(one, workers=n_devices - 1), n_devices=n_devices)
    for key in ("loss", "validation_loss", "macro_f1", "lr"):
        values = [[getattr(e, key) for e in found[n].epochs] for n in (1, 2)]
        assert np.allclose(*values, rtol=1e-4), key
    assert np.allclose(found[1].probability[0], found[2].probability[0], atol=1e-4)
    assert found[2].cost["devices"] == 2
    assert capfd.readouterr() == ("", "")  # Fabric has nothing to say that a user needs


@pytest.mark.slow
def test_a_process_that_fails_is_told_in_one_line(stored, tmp_path, capfd):
    one = job(stored, "tiny-vit", "finetune", tmp_path, epochs=1, batch_size=1)
    with pytest.raises(RunError, match="batches of 1 images cannot be shared by 2 devices"):
        trained(one, n_devices=2)
    two = job(stored, "tiny-vit", "finetune", tmp_path, epochs=1)
    gone = Part(("0" * 64,) * 2, two.train.codes[:2])
    for theirs in (
        replace(two, pixels=on_disk(tmp_path / "nowhere")),  # fails at once
        replace(two, train=gone, workers=1),  # beside readers
    ):
        with pytest.raises(DeviceError, match="process 1 of 2 ended with exit code 1"):
            trained(two, n_devices=2, theirs=theirs)
    assert "StoreCorruptError" in capfd.readouterr().err


@pytest.mark.slow
def test_a_process_that_cannot_begin_is_not_waited_for(tmp_path):
    with (
        pytest.raises(DeviceError, match="process 1 of 2 ended with exit code 1, its reason"),
        on_devices(
            train_folds,
            ([],),
            device="cpu",
            n_devices=2,
            precision="fp32",
            encoder_file=tmp_path / "nowhere.py",
        ),
    ):
        pytest.fail("nothing to do alone")


STUCK = """
import time
from embedcache.finetune import processes

def fail(fabric):
    raise ValueError("as if the GPU were gone")

if __name__ == "__main__":
    processes._FAREWELL_S = 0.5
    with processes.on_devices(fail, (), device="cpu", n_devices=2, precision="fp32"):
        time.sleep(600)  # as in a collective of NCCL, which no exception ends
"""


@pytest.mark.slow
def test_a_process_that_waits_for_a_dead_one_ends(tmp_path):
    (tmp_path / "stuck.py").write_text(STUCK)
    done = subprocess.run(
        [sys.executable, tmp_path / "stuck.py"],
        stderr=subprocess.PIPE,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 1
    assert "as if the GPU were gone" in done.stderr
    assert "\nembedcache: process 1 of 2 ended with exit code 1" in done.stderr


@pytest.mark.parametrize("regime", ["finetune", "lora"])
def test_the_encoder_that_is_kept_is_the_one_that_predicted(stored, tmp_path, monkeypatch, regime):
    monkeypatch.setattr(train, "_merit", lambda one: -abs(one.epoch - 2))
    head: dict[str, torch.Tensor] = {}
    finish = train._Training.finish

    def noted(self):
        result = finish(self)
        head.update(self.evaluated.head.state_dict())
        return result

    monkeypatch.setattr(train._Training, "finish", noted)
    one = job(stored, "tiny-vit", regime, tmp_path, epochs=4, lr=1e-2, lora_lr=1e-1, head_lr=0.1)
    assert one.recipe.ema > 0
    result = trained(one)
    assert result.best_epoch == 2  # neither the last weights nor those that were averaged last
    network, spec = load_network(one.encoder), one.encoder.spec
    network.load_state_dict(load_file(tmp_path / ENCODER))
    model = Classifier(network, spec.preprocess, spec.dim, one.n_classes).eval()
    model.head.load_state_dict(head)
    store, keys, _ = stored
    with torch.no_grad():
        p = model(torch.from_numpy(store.read(keys).reshape(-1, 3, 16, 16))).softmax(1)
    assert np.allclose(p, result.probability[0], atol=1e-5)


class Stop(BaseException):
    """Stands for a kill."""


@pytest.mark.parametrize(
    "changes",
    [{}, {"ema": 0.0}, {"precision": "fp16"}, {"lora_dropout": 0.3, "regime": "lora"}],
    ids=["usual", "no average", "scaler", "lora"],
)
def test_a_training_that_was_stopped_anywhere_ends_as_one_that_was_not(stored, tmp_path, changes):
    regime = changes.get("regime", "finetune")
    settings = {key: value for key, value in changes.items() if key != "regime"}
    asked = {"epochs": 3, "lr": 1e-3, **settings}
    expected = trained(job(stored, "tiny-vit", regime, tmp_path / "whole", **asked))
    one = job(stored, "tiny-vit", regime, tmp_path / "stopped", **asked)
    n_steps = 3 * -(-len(one.train) // 16)
    for stop_at in range(0, n_steps, 2):
        seen = iter(range(n_steps))

        def stop(_, seen=seen, stop_at=stop_at):
            if next(seen) == stop_at:
                raise Stop

        with pytest.raises(Stop):
            trained(one, on_step=stop)
        if stop_at > n_steps // 3:
            break
    result = trained(one)
    assert np.array_equal(result.probability[0], expected.probability[0])
    assert [e.loss for e in result.epochs] == [e.loss for e in expected.epochs]
    assert result.best_epoch == expected.best_epoch


def test_a_finished_fold_is_read_back_as_it_was(stored, tmp_path):
    one = job(stored, "tiny-vit", "head-only", tmp_path, epochs=2)
    result = trained(one)
    again = FoldFiles(tmp_path).read_result()
    assert np.array_equal(again.probability[0], result.probability[0])
    assert again.epochs == result.epochs
    assert again.cost == result.cost
    assert FoldFiles(tmp_path / "elsewhere").read_result() is None


def test_the_generator_of_the_caller_is_left_alone(stored, tmp_path):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    trained(job(stored, "tiny-vit", "finetune", tmp_path, epochs=1))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_loss_that_is_no_number_stops_the_fold_with_the_reason(stored, tmp_path):
    one = job(stored, "tiny-vit", "finetune", tmp_path, epochs=2, lr=1e9, clip_norm=0.0, warmup=0.0)
    with pytest.raises(
        RunError, match=r"fold 0 stopped in epoch [12], step \d: the loss is (nan|inf)"
    ):
        trained(one)


def test_predictions_that_are_no_numbers_stop_the_fold_with_the_reason(stored, tmp_path):
    """One step breaks the weights, and there is no later loss to tell."""
    alone = {"epochs": 1, "lr": 1e9, "clip_norm": 0.0, "warmup": 0.0, "batch_size": 999}
    one = job(stored, "tiny-cnn", "finetune", tmp_path, **alone)
    with pytest.raises(
        RunError, match=r"fold 0 stopped after epoch 1: \d+ of \d+ predictions are nan; the epochs"
    ):
        trained(one)
    assert not list(tmp_path.iterdir())


def test_too_little_memory_is_told_with_the_way_out(stored, tmp_path):
    def fail(_):
        raise torch.OutOfMemoryError

    one = job(stored, "tiny-vit", "finetune", tmp_path, epochs=1, accumulate=2)
    with pytest.raises(
        DeviceError, match=r"fold 0: cpu has too little memory; pass --set acc\w+=4"
    ):
        trained(one, on_step=fail)


# The recipe


def test_every_key_of_the_recipe_has_a_default_and_says_what_it_is():
    lines = [line for line in recipe_text().splitlines() if "=" in line.split("#")[0]]
    assert len(lines) == len(Recipe.__dataclass_fields__)
    assert all("#" in line for line in lines)


def test_a_file_changes_some_keys_and_a_key_by_itself_comes_last(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text("epochs = 7\nlr = 1\n")
    made = read_recipe(file, parse_changes(["lr=0.5", "class_weights=none"]))
    assert (made.epochs, made.lr, made.class_weights) == (7, 0.5, "none")
    assert made.batch_size == read_recipe().batch_size


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("lrr=1", "--set: no recipe key 'lrr'; did you mean 'lr'?"),
        ("nonsense=1", "--set: no recipe key 'nonsense'; `--show-config` prints them all"),
        ("epochs=1.5", "--set: epochs = 1.5; expected of type int"),
        ("epochs=0", "--set: epochs = 0; expected from 1 to"),
        ("validation=0.9", "--set: validation = 0.9; expected from 0.01 to 0.5"),
        ("scale=1", "--set: scale = 1.0; expected from 0 to 0.99"),
        ("lr=nan", "--set: lr = nan; expected from 0 to"),
        ("precision=tf32", "--set: precision = 'tf32'; expected auto or fp32 or bf16 or fp16"),
        ("epochs", "--set epochs: expected KEY=VALUE"),
    ],
)
def test_a_wrong_key_says_what_is_right(pair, message):
    with pytest.raises(RunError) as caught:
        read_recipe(None, parse_changes([pair]))
    assert str(caught.value).startswith(message)


def test_a_wrong_recipe_file_is_named(tmp_path):
    with pytest.raises(RunError, match=r"absent.toml: No such file or directory; expected a TOML"):
        read_recipe(tmp_path / "absent.toml")
    (tmp_path / "bad.toml").write_text("lr = = 1")
    with pytest.raises(RunError, match=r"bad.toml: not TOML"):
        read_recipe(tmp_path / "bad.toml")


def test_regimes_are_known_by_name():
    for name in ("partial", "partial:0", "linear", "partial:x"):
        with pytest.raises(RunError, match=f"no regime '{name}'; it may be finetune, lora"):
            Regime(name)
    assert Regime("partial:12").n_layers == 12
