"""FetalCLIP against the numbers of its authors' own code: pictures and texts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import CASES
from published import (
    CLOSE,
    SLOW,
    WRONG,
    PublishedModel,
    activations,
    assert_embeddings_of_the_authors,
    assert_every_tensor_is_in_its_place,
    assert_pixels_of_the_authors,
    assert_wrong_preprocessing_shows,
    difference,
    golden,
    named,
    noise,
    other_modules,
    other_tensors,
    published_model,
)
from torch import nn

from embedcache.encoders.open_clip_encoders import load_text
from embedcache.encoders.registry import BUILTIN, identify_by_name
from embedcache.files.digests import DigestCache


@pytest.fixture(scope="module")
def fetalclip(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PublishedModel]:
    with published_model("fetalclip", tmp_path_factory) as model:
        yield model


@pytest.fixture(scope="module")
def texts(fetalclip):
    encoder = identify_by_name("fetalclip", digests=DigestCache(), weights=fetalclip.file())
    return load_text(encoder, "cpu")


def of_tokens(texts: Any) -> np.ndarray:
    """Return the embeddings of tokens of every part of the vocabulary."""
    with torch.inference_mode():
        tokens = torch.from_numpy(golden("fetalclip")["text.tokens"])
        return texts._model.encode_text(tokens).numpy()


@SLOW
@pytest.mark.parametrize("name", ["fetalclip", "fetalclip:cls"])
def test_tensors_and_awkward_pictures_give_the_embeddings_of_the_authors_code(name, fetalclip):
    # A second a picture, and all of them are held to the authors' pixels below.
    assert_embeddings_of_the_authors(fetalclip.encoder(name), CASES[4:7])


def test_awkward_pictures_become_the_pixels_of_the_authors_code():
    assert_pixels_of_the_authors("fetalclip")


@SLOW
def test_texts_give_the_embeddings_of_the_authors_code(texts):
    expected = golden("fetalclip")
    strings = [str(text) for text in expected["text.strings"]]
    tokens = texts._tokenizer(strings)
    assert np.array_equal(tokens.numpy(), expected["text.string_tokens"])
    rows = texts.encode(strings)
    assert rows.dtype == np.float32
    assert difference(rows, expected["text.string_embedding"]) < CLOSE
    assert difference(of_tokens(texts), expected["text.embedding"]) < CLOSE


@SLOW
def test_norms_have_the_authors_epsilon(texts):
    expected, model = golden("fetalclip"), texts._model
    fed = {
        name: value * 1e-3
        for name, value in model.state_dict().items()
        if re.search(str(expected["eps_scaled"]), name)
    }
    with other_tensors(model, fed):
        assert difference(of_tokens(texts), expected["eps.text"]) < CLOSE
        with torch.inference_mode():
            rows = model.encode_image(torch.from_numpy(noise(1, 3, 224, 224))).numpy()
        assert difference(rows, expected["eps.projected"]) < CLOSE
    assert {m.eps for m in model.modules() if isinstance(m, nn.LayerNorm)} == {1e-5}


@SLOW
def test_every_tensor_is_where_it_belongs_also_those_that_no_output_shows(fetalclip):
    assert_every_tensor_is_in_its_place(fetalclip.encoder("fetalclip"), fetalclip.tensors(), 296)


class QuickGelu(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(1.702 * x)


BREAKS = {
    "QuickGELU": lambda m: other_modules(m, activations(m, QuickGelu())),
    "rough GELU": lambda m: other_modules(m, activations(m, nn.GELU(approximate="tanh"))),
    "no first norm": lambda m: other_modules(m, {"visual.ln_pre": nn.Identity()}),
    "no last norm": lambda m: other_modules(m, {"visual.ln_post": nn.Identity()}),
    "no CLS token": lambda m: other_tensors(m, {"visual.class_embedding": torch.zeros(1024)}),
    "positions shifted by one": lambda m: other_tensors(
        m, {k: v.roll(1, 0) for k, v in named(m, "visual.positional_embedding").items()}
    ),
}


@SLOW
@pytest.mark.parametrize("wrong", BREAKS)
def test_a_wrong_network_shows(wrong, fetalclip):
    encoder = fetalclip.encoder("fetalclip")
    with BREAKS[wrong](encoder.module):
        rows = encoder.encode(noise(2, 3, 224, 224)[:1])
    assert difference(rows, golden("fetalclip")["tensor.projected"][:1]) > WRONG


@SLOW
def test_a_wrong_text_tower_shows(texts):
    model, expected = texts._model, golden("fetalclip")["text.embedding"]
    with other_modules(model.transformer, activations(model.transformer, QuickGelu())):
        assert difference(of_tokens(texts), expected) > WRONG
    with other_tensors(model, {"text_projection": model.text_projection.T.clone()}):
        assert difference(of_tokens(texts), expected) > WRONG
    mask = model.attn_mask
    model.attn_mask = torch.zeros_like(mask)
    try:
        assert difference(of_tokens(texts), expected) > WRONG
    finally:
        model.attn_mask = mask


@SLOW
@pytest.mark.parametrize(
    "settings",
    [
        {"mean": BUILTIN["usfm"].preprocess.mean, "std": BUILTIN["usfm"].preprocess.std},
        {"fit": "squash"},
        {"resample": "bilinear"},
        {"fit": "crop"},
    ],
    ids=str,
)
def test_wrong_preprocessing_shows(settings, fetalclip):
    assert_wrong_preprocessing_shows(fetalclip.encoder("fetalclip"), settings)
