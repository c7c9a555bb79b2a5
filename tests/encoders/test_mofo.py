"""MOFO against the numbers of its authors' own code."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

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
)
from torch import nn

from embedcache.encoders import cswin
from embedcache.encoders.registry import BUILTIN


@pytest.fixture(scope="module")
def mofo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PublishedModel]:
    with published_model("mofo", tmp_path_factory) as model:
        yield model


@SLOW
def test_tensors_and_awkward_pictures_give_the_embeddings_of_the_authors_code(mofo):
    assert_embeddings_of_the_authors(mofo.encoder("mofo"))


def test_awkward_pictures_become_the_pixels_of_the_authors_code():
    assert_pixels_of_the_authors("mofo")


@SLOW
def test_norms_have_the_authors_epsilon(mofo):
    assert_norms_have_the_authors_epsilon(mofo, "mofo", wrong=1e-6)


@SLOW
def test_every_tensor_is_where_it_belongs_also_those_that_no_output_shows(mofo):
    assert_every_tensor_is_in_its_place(
        mofo.encoder("mofo"), mofo.tensors(), 656, "_backbone_encoder.{}".format
    )


@contextmanager
def stripes_swapped(module: nn.Module) -> Iterator[None]:
    other = {"vertical": "horizontal", "horizontal": "vertical", "one": "one"}

    def swap() -> None:
        for part in module.modules():
            if isinstance(part, cswin.StripeAttention):
                part.stripes = other[part.stripes]

    swap()
    try:
        yield
    finally:
        swap()


@contextmanager
def rough_gelu(_: nn.Module) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        gelu = nn.functional.gelu
        patch.setattr(cswin.functional, "gelu", lambda x: gelu(x, approximate="tanh"))
        yield


def repacked(module: nn.Module, *order: int) -> dict[str, torch.Tensor]:
    packed = {**named(module, "qkv.weight"), **named(module, "qkv.bias")}
    return {k: torch.cat([v.chunk(3)[part] for part in order]) for k, v in packed.items()}


def stem(**modules: nn.Module) -> Callable[[nn.Module], Any]:
    changes = {f"stage0_conv_embed.{name.strip('_')}": part for name, part in modules.items()}
    return lambda m: other_modules(m, changes)


BREAKS = {
    "stripes swapped": stripes_swapped,
    "no InstanceNorm": stem(_1=nn.Identity(), _4=nn.Identity()),
    "InstanceNorm's epsilon": stem(
        _1=nn.InstanceNorm2d(32, eps=1e-3), _4=nn.InstanceNorm2d(32, eps=1e-3)
    ),
    "ReLU": stem(_2=nn.ReLU(), _5=nn.ReLU()),
    "LeakyReLU's slope": stem(_2=nn.LeakyReLU(0.02), _5=nn.LeakyReLU(0.02)),
    "rough GELU": rough_gelu,
    "convolutions of the two branches swapped": lambda m: other_tensors(
        m,
        {
            k: v
            for end in ("weight", "bias")
            for k, v in swapped(m, f"attns.0.get_v.{end}", f"attns.1.get_v.{end}").items()
            if not k.startswith("stage4")
        },
    ),
    "convolutions transposed": lambda m: other_tensors(
        m, {k: v.transpose(2, 3) for k, v in named(m, "get_v.weight").items()}
    ),
    "convolutions dropped": lambda m: other_tensors(m, dropped(m, "get_v.weight", "get_v.bias")),
    "keys packed first": lambda m: other_tensors(m, repacked(m, 1, 0, 2)),
    "values packed first": lambda m: other_tensors(m, repacked(m, 2, 1, 0)),
    "merging norms as initialised": lambda m: other_tensors(
        m,
        {
            f"merge{n}.norm.{end}": torch.full((64 << n,), value)
            for n in range(4)
            for end, value in (("weight", 1.0), ("bias", 0.0))
        },
    ),
}


@SLOW
@pytest.mark.parametrize("wrong", BREAKS)
def test_a_wrong_network_shows(wrong, mofo):
    encoder = mofo.encoder("mofo")
    with BREAKS[wrong](encoder.module):
        rows = encoder.encode(noise(2, 3, 224, 224))
    assert difference(rows, golden("mofo")["tensor.map-mean"]) > WRONG


@SLOW
@pytest.mark.parametrize(
    "settings",
    [
        {"mean": BUILTIN["usfm"].preprocess.mean, "std": BUILTIN["usfm"].preprocess.std},
        {"resample": "bilinear"},
        {"fit": "crop"},
    ],
    ids=str,
)
def test_wrong_preprocessing_shows(settings, mofo):
    assert_wrong_preprocessing_shows(mofo.encoder("mofo"), settings)
