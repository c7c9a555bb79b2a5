"""Files of published encoders that are not what they should be, and files that are registered."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import blank_tensors, make_image
from checkpoints import published as published_content
from published import MODELS, SLOW, PublishedModel, published_model, refused

from embedcache.encoders.registry import BUILTIN, identify_by_name
from embedcache.encoders.weights import register_weights, registered_file
from embedcache.errors import EncoderWeightsError
from embedcache.files.digests import DigestCache

NETWORKS = {"usfm": "Beit", "mofo": "MofoEncoder", "ultrasam": "", "fetalclip": "CLIP"}
INSIDE = {  # of each model's file, a tensor of its encoder
    "usfm": "blocks.3.attn.qkv.weight",
    "mofo": "_backbone_encoder.stage3.0.qkv.weight",
    "ultrasam": "backbone.layers.3.attn.qkv.weight",
    "fetalclip": "visual.proj",
}


@pytest.mark.parametrize("other", MODELS)
@pytest.mark.parametrize("model", MODELS)
def test_another_models_file_is_refused(model, other, tmp_path):
    if model == other:
        pytest.skip("not another model")
    file = tmp_path / "other.pth"
    torch.save(published_content(other, blank_tensors(other)), file)
    refused(model, file, "expected|is under|has no 'state_dict'|not a tensor|not the weights of")


@pytest.mark.parametrize("module_prefix", [False, True])
@pytest.mark.parametrize("model", MODELS)
def test_a_file_with_other_tensors_is_refused(model, module_prefix, tmp_path):
    if module_prefix and model != "fetalclip":
        pytest.skip("only FetalCLIP's names may have it")
    tensors, name, file = blank_tensors(model), INSIDE[model], tmp_path / "weights.pth"
    write = partial(published_content, model, module_prefix=module_prefix)

    torch.save(write({k: v for k, v in tensors.items() if k != name}), file)
    refused(model, file, f"not the weights of {NETWORKS[model]}.*: 1 tensors missing, first '")
    extra = name.replace("weight", "scale").replace("proj", "scale")
    torch.save(write({**tensors, extra: torch.zeros(2)}), file)
    refused(model, file, f"not the weights of {NETWORKS[model]}.*: 1 unexpected, first '")
    torch.save(write({**tensors, name: torch.zeros(5, 7)}), file)
    refused(model, file, rf"not the weights of {NETWORKS[model]}.*' is \(5, 7\), expected \(\d+, ")


@pytest.mark.parametrize("key", ["state_dict", "model"])
@pytest.mark.parametrize("model", MODELS)
def test_a_file_that_is_wrapped_once_too_often_is_refused(model, key, tmp_path):
    file = tmp_path / "wrapped.pth"
    torch.save({key: published_content(model, blank_tensors(model))}, file)
    refused(model, file, "one level too deep|has no 'state_dict'")


@pytest.mark.parametrize("model", ["ultrasam", "fetalclip"])
def test_tensors_without_their_wrapper_are_refused(model, tmp_path):
    file = tmp_path / "flat.pth"
    torch.save(blank_tensors(model), file)
    refused(model, file, "has no 'state_dict', under which the published file keeps its tensors")


@pytest.mark.parametrize("model", MODELS)
def test_truncated_and_empty_files_are_refused(model, tmp_path):
    file = tmp_path / "half.pth"
    torch.save(published_content(model, blank_tensors(model)), file)
    whole = file.read_bytes()
    for size in (0, 1, 100, len(whole) // 2, len(whole) - 30):
        file.write_bytes(whole[:size])
        refused(model, file, "cannot be read as a checkpoint: .*; download it again")
    file.write_bytes(b"<!DOCTYPE html><title>Sign in</title>" * 100)
    refused(model, file, "cannot be read as a checkpoint: it is a web page; download the file")


class Evil:
    """Would leave a trace when unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        import os

        return os.system, (f"touch {self.trace}",)


@pytest.mark.parametrize("model", MODELS)
def test_code_in_a_file_is_named_and_not_run(model, tmp_path):
    trace, file = tmp_path / "trace", tmp_path / "evil.pth"
    content = published_content(model, blank_tensors(model))
    if model in {"usfm", "mofo"}:
        content["more"] = Evil(trace)
    else:
        content["meta"] = {"log": Evil(trace)}
    torch.save(content, file)
    refused(model, file, r"holds '\w+\.system', which is code, not a tensor, and was not run; take")
    file.write_bytes(pickle.dumps({"w": Evil(trace)}))
    refused(model, file, "cannot be read as a checkpoint")
    assert not trace.exists()


# Registered files


def test_a_wrong_file_is_not_registered(command, tmp_path):
    torch.save(published_content("usfm", blank_tensors("usfm")), tmp_path / "usfm.pth")
    for name in ("mofo", "ultrasam"):
        said = command("weights", "add", name, "usfm.pth")
        assert (said.code, said.out) == (6, "")
        assert said.err.count("\n") == 1
        assert "usfm.pth" in said.err
        with pytest.raises(EncoderWeightsError, match=f"'{name}' are not registered; download "):
            registered_file(BUILTIN[name])


@pytest.fixture(scope="module")
def mofo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PublishedModel]:
    with published_model("mofo", tmp_path_factory) as model:
        yield model


@SLOW
def test_registered_weights_serve_every_output_and_are_checked_before_each_use(
    command, tmp_path, mofo
):
    shutil.copyfile(mofo.file(), tmp_path / "mofo_weight_sel.pth")
    said = command("weights", "add", "mofo", "mofo_weight_sel.pth")
    assert said.code == 0, said.err
    assert "mofo" in said.out
    kept = registered_file(BUILTIN["mofo"])
    digests = DigestCache()
    digest = digests.file_digest(kept)
    with mofo.file().open("rb") as whole, kept.open("rb") as copied:
        assert whole.read() == copied.read()
    assert identify_by_name("mofo", digests=digests).weights_digest == digest
    said = command("weights", "add", "mofo", "mofo_weight_sel.pth", "--link")
    assert said.code == 0, said.err
    assert registered_file(BUILTIN["mofo"]).resolve() == tmp_path / "mofo_weight_sel.pth"
    with (tmp_path / "mofo_weight_sel.pth").open("r+b") as damaged:
        damaged.seek(1_000_000)
        damaged.write(b"damaged")
    make_image((30, 20), "L", 0).save(tmp_path / "a.png")
    (tmp_path / "data_manifest.csv").write_text(
        "image_id,path,patient_id,label,cohort\na,a.png,p,brain,home\n"
    )
    said = command("extract", "-m", "mofo")
    assert said.code == 6, said.err
    assert "not what was registered for 'mofo'" in said.err
    assert "`embedcache weights add mofo FILE` again" in said.err


def test_an_encoders_other_output_finds_the_same_registered_file(tmp_path):
    (tmp_path / "f.pth").write_bytes(b"weights")
    kept = register_weights(
        BUILTIN["usfm"], tmp_path / "f.pth", DigestCache().file_digest(tmp_path / "f.pth")
    )
    assert registered_file(BUILTIN["usfm:cls"]) == kept
    prints = {
        identify_by_name(name, digests=DigestCache()).fingerprint for name in ("usfm", "usfm:cls")
    }
    assert len(prints) == 2
