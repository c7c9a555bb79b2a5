"""What moves in each regime, at which rate, and what stays as it is."""

from __future__ import annotations

import pytest
import torch
from timm.layers import DropPath
from tiny_trainings import TINY, classifier, identified, moved, tiny_encoders_on_one_thread
from torch import nn

from embedcache.encoders import registry
from embedcache.errors import EncoderError, RunError
from embedcache.files.digests import DigestCache
from embedcache.finetune.model import Classifier, load_network, set_drop_path
from embedcache.finetune.regimes import Regime, merge_adapters, parameter_groups


@pytest.fixture(autouse=True)
def _tiny_encoders():
    with tiny_encoders_on_one_thread():
        yield


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


def test_regimes_are_known_by_name():
    for name in ("partial", "partial:0", "linear", "partial:x"):
        with pytest.raises(RunError, match=f"no regime '{name}'; it may be finetune, lora"):
            Regime(name)
    assert Regime("partial:12").n_layers == 12
