"""What is learnt, what is kept of it, and what stops a training."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_trainings import (
    PLAIN,
    TINY,
    images_of,
    job,
    store_pictures,
    tiny_encoders_on_one_thread,
    trained,
)

from embedcache.encoders import registry
from embedcache.errors import DeviceError, RunError
from embedcache.finetune import train
from embedcache.finetune.determinism import relax_determinism_if_needed
from embedcache.finetune.fold_files import ENCODER, FoldFiles
from embedcache.finetune.model import Classifier, load_network

REGIMES = ("finetune", "lora", "head-only", "lp-ft", "partial:1")


@pytest.fixture(autouse=True)
def _tiny_encoders():
    with tiny_encoders_on_one_thread():
        yield


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    return store_pictures(tmp_path_factory.mktemp("stored"))


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
