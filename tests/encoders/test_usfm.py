"""USFM against the numbers of its authors' own code."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from published import (
    SLOW,
    WRONG,
    PublishedModel,
    assert_embeddings_of_the_authors,
    assert_every_tensor_is_in_its_place,
    assert_norms_have_the_authors_epsilon,
    assert_pixels_of_the_authors,
    assert_wrong_preprocessing_shows,
    difference,
    dropped,
    golden,
    named,
    noise,
    other_modules,
    other_tensors,
    published_model,
    swapped,
    tensor,
)
from torch import nn

from embedcache.encoders.registry import BUILTIN


@pytest.fixture(scope="module")
def usfm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PublishedModel]:
    with published_model("usfm", tmp_path_factory) as model:
        yield model


@SLOW
@pytest.mark.parametrize("name", ["usfm", "usfm:cls"])
def test_tensors_and_awkward_pictures_give_the_embeddings_of_the_authors_code(name, usfm):
    assert_embeddings_of_the_authors(usfm.encoder(name))


def test_awkward_pictures_become_the_pixels_of_the_authors_code():
    assert_pixels_of_the_authors("usfm")


@SLOW
@pytest.mark.parametrize("name", ["usfm", "usfm:cls"])
def test_norms_have_the_authors_epsilon(name, usfm):
    assert_norms_have_the_authors_epsilon(usfm, name, wrong=1e-5)


@SLOW
@pytest.mark.parametrize(
    ("name", "n_tensors"),
    [
        ("usfm", 186 - 2),  # its norm serves the CLS token only
        ("usfm:cls", 188 - 2),  # neither mask_token nor the index of positions
    ],
)
def test_every_tensor_is_where_it_belongs_also_those_that_no_output_shows(name, n_tensors, usfm):
    assert_every_tensor_is_in_its_place(usfm.encoder(name), usfm.tensors(), n_tensors)


BREAKS = {
    "norm copied into fc_norm": lambda m: other_tensors(
        m, {f"fc_norm.{end}": tensor(f"norm.{end}", "usfm") for end in ("weight", "bias")}
    ),
    "LayerScale left as initialised": lambda m: other_tensors(
        m, {k: torch.full_like(v, 0.1) for e in "12" for k, v in named(m, f"gamma_{e}").items()}
    ),
    "LayerScales swapped": lambda m: other_tensors(m, swapped(m, "gamma_1", "gamma_2")),
    "biases of queries and values swapped": lambda m: other_tensors(
        m, swapped(m, "q_bias", "v_bias")
    ),
    "biases of queries and values dropped": lambda m: other_tensors(
        m, dropped(m, "q_bias", "v_bias")
    ),
    "table of positions dropped": lambda m: other_tensors(
        m, dropped(m, "relative_position_bias_table")
    ),
    "index of positions transposed": lambda m: other_tensors(
        m, {k: v.T.clone() for k, v in named(m, "relative_position_index").items()}
    ),
    "no CLS token": lambda m: other_tensors(m, {"cls_token": torch.zeros(1, 1, 768)}),
    "mask token as CLS token": lambda m: other_tensors(
        m, {"cls_token": tensor("mask_token", "usfm")}
    ),
    "no norm after the mean": lambda m: other_modules(m, {"fc_norm": nn.Identity()}),
}


@SLOW
@pytest.mark.parametrize("wrong", BREAKS)
def test_a_wrong_network_shows(wrong, usfm):
    encoder = usfm.encoder("usfm")
    with BREAKS[wrong](encoder.module):
        rows = encoder.encode(noise(2, 3, 224, 224))
    assert difference(rows, golden("usfm")["tensor.patch-mean"]) > WRONG


@SLOW
@pytest.mark.parametrize(
    "settings",
    [
        {"mean": (0.0,) * 3, "std": (1.0,) * 3},
        {"mean": (0.5,) * 3, "std": (0.5,) * 3},
        {"mean": BUILTIN["fetalclip"].preprocess.mean, "std": BUILTIN["fetalclip"].preprocess.std},
        {"resample": "bilinear"},
        {"fit": "crop"},
    ],
    ids=str,
)
def test_wrong_preprocessing_shows(settings, usfm):
    assert_wrong_preprocessing_shows(usfm.encoder("usfm"), settings)
