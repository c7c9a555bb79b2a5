"""What the tests of encoders of published files share.

`golden/encoders/README.md` says how the authors' numbers were made. Weights are random, a value in
every tensor of the published layout: a tensor that is forgotten, swapped or left as initialised
shows.
"""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import checkpoints
import numpy as np
import pytest
import torch
from checkpoints import (
    CASES,
    GOLDEN,
    case_name,
    make_image,
    published,
    random_tensors,
    tensors_sha256,
    write_checkpoint,
)
from PIL import Image
from torch import nn

import embedcache
from embedcache.data.images import decode_image
from embedcache.encoders import torch_encoder
from embedcache.encoders.registry import BUILTIN
from embedcache.encoders.spec import Encoder
from embedcache.errors import EncoderWeightsError

SLOW = pytest.mark.slow
MODELS = ["usfm", "mofo", "ultrasam", "fetalclip"]
CLOSE, WRONG = 1e-4, 1e-4  # largest difference over largest value: nearer is right, farther wrong
Case = tuple[tuple[int, int], str, int]


# Files and encoders


@dataclass
class PublishedModel:
    """Checkpoints of one model with random weights, and its encoders, each made once.

    Parameters
    ----------
    model
        Name of the model, of `MODELS`.
    folder
        Folder of the checkpoints.
    """

    model: str
    folder: Path
    _files: dict[str, Path] = field(default_factory=dict)
    _encoders: dict[str, Encoder] = field(default_factory=dict)

    def file(self, **settings: Any) -> Path:
        """Return a checkpoint; see `write_checkpoint` for the settings."""
        suffix = checkpoints.SUFFIXES[self.model]
        name = re.sub(r"\W+", "-", f"{self.model}{settings or ''}") + suffix
        if name not in self._files:
            file = self.folder / name
            if settings == {"module_prefix": True}:  # drawing 428 million values again takes 7 s
                torch.save(published(self.model, self.tensors(), **settings), file)
            else:
                tensors = write_checkpoint(self.model, file, **settings)
                if not settings:
                    self._check(tensors)
            self._files[name] = file
        return self._files[name]

    def _check(self, tensors: Mapping[str, torch.Tensor]) -> None:
        expected = str(golden(self.model)["checkpoint_sha256"])
        assert tensors_sha256(tensors) == expected, (
            f"the random weights of {self.model} are not those that its goldens were made with: "
            f"numpy {np.__version__} draws other numbers than numpy 2.4 did, the encoder is not at "
            "fault"
        )

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return what the plain checkpoint was made of, read where it is used."""
        content = torch.load(self.file(), weights_only=True, mmap=True)
        return content.get("state_dict", content)

    def encoder(self, name: str) -> Encoder:
        """Return an encoder of the model, such as 'usfm:cls'; whoever breaks it mends it again."""
        if name not in self._encoders:
            # Both forms of FetalCLIP's names: with the prefix for one output, without for the other
            settings = {"module_prefix": True} if name == "fetalclip:cls" else {}
            file = self.file(**settings)
            self._encoders[name] = embedcache.load_encoder(name, weights=file, device="cpu")
        return self._encoders[name]


@contextmanager
def published_model(model: str, folders: pytest.TempPathFactory) -> Iterator[PublishedModel]:
    """Give the checkpoints and encoders of a model; the checkpoints are gone afterwards."""
    folder = folders.mktemp("checkpoints")
    yield PublishedModel(model, folder)
    shutil.rmtree(folder)


@cache
def golden(model: str) -> Mapping[str, np.ndarray]:
    """Return the numbers of the authors' code, by name."""
    with np.load(GOLDEN / f"{model}.npz") as archive:
        return dict(archive)


@cache
def tensor(name: str, model: str) -> torch.Tensor:
    """Return one tensor of a published file, by its published name."""
    lines = [line for line in checkpoints.layout(model) if line.split("\t")[0] == name]
    return random_tensors(lines)[name]


# Inputs


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def picture(case: Case) -> Image.Image:
    """Return an awkward picture as it comes out of a PNG file."""
    sink = io.BytesIO()
    make_image(*case).save(sink, "PNG")
    return decode_image(sink.getvalue(), on_note=lambda _: None)


# What holds for each of them


def difference(rows: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference over the largest value."""
    assert rows.shape == expected.shape
    return float(np.abs(rows - expected).max() / np.abs(expected).max())


def assert_embeddings_of_the_authors(encoder: Encoder, cases: Sequence[Case] = CASES[:9]) -> None:
    """Hold an encoder of 224 x 224 pixels to the embeddings of noise and of some pictures."""
    expected, output = golden(encoder.spec.name.partition(":")[0]), encoder.spec.output
    rows = encoder.encode(noise(2, 3, 224, 224))
    assert difference(rows, expected[f"tensor.{output}"]) < CLOSE
    for case in cases:
        number = CASES.index(case)
        assert expected["images.names"][number] == case_name(*case)
        row = encoder.encode(encoder.preprocess(picture(case))[None])[0]
        assert difference(row, expected[f"images.{output}"][number]) < CLOSE, case


def assert_pixels_of_the_authors(model: str, cases: Sequence[Case] = CASES[:9]) -> None:
    """Hold a model's preprocessing to the pixels that its authors' code made."""
    expected, preprocess = golden(model), BUILTIN[model].preprocess
    for number, case in enumerate(cases):
        array = preprocess(picture(case))
        mean = array.mean((1, 2), dtype=np.float64)
        assert np.allclose(mean, expected["images.pixel_mean"][number], atol=2e-5), case
        if f"images.pixels_{case_name(*case)}" in expected:
            part = expected[f"images.pixels_{case_name(*case)}"]
            assert np.allclose(array[:, :160:5, ::8], part, atol=1e-6)


def assert_every_tensor_is_in_its_place(
    encoder: Encoder,
    tensors: Mapping[str, torch.Tensor],
    n_tensors: int,
    name_in_file: Callable[[str], str] = lambda name: name,
) -> None:
    """Hold an encoder to a published file, also where no output would show a wrong tensor."""
    state = encoder.module.state_dict()
    # A norm that the authors make of nothing in their file.
    poured = {name: value for name, value in state.items() if not name.startswith("fc_norm")}
    assert all(torch.equal(value, tensors[name_in_file(name)]) for name, value in poured.items())
    assert len(poured) == n_tensors


def assert_norms_have_the_authors_epsilon(model: PublishedModel, name: str, wrong: float) -> None:
    """Hold an encoder to what the authors' code gives where the norms are fed tiny values."""
    expected = golden(model.model)
    file = model.file(scaled=str(expected["eps_scaled"]))
    encoder = embedcache.load_encoder(name, weights=file, device="cpu")
    batch = noise(2, 3, 224, 224)
    assert difference(encoder.encode(batch), expected[f"eps.{encoder.spec.output}"]) < CLOSE
    with other_eps(encoder.module, wrong):
        assert difference(encoder.encode(batch), expected[f"eps.{encoder.spec.output}"]) > 0.1


def assert_wrong_preprocessing_shows(encoder: Encoder, settings: Mapping[str, Any]) -> None:
    """Check that another preprocessing gives another embedding than the authors' code."""
    case = CASES[6]
    array = replace(encoder.spec.preprocess, **settings)(picture(case))
    expected = golden(encoder.spec.name)[f"images.{encoder.spec.output}"][CASES.index(case)]
    assert difference(encoder.encode(array[None])[0], expected) > WRONG


def refused(model: str, file: Path, match: str) -> None:
    """Check that loading is refused in one line that names the file.

    Networks are built without values (device 'meta'): drawing those of FetalCLIP takes 5 s.
    """
    with (
        mock.patch.object(torch_encoder, "building_settings", return_value=torch.device("meta")),
        pytest.raises(EncoderWeightsError, match=match) as raised,
    ):
        embedcache.load_encoder(model, weights=file, device="cpu")
    assert str(raised.value).startswith(f"{file}: ")
    assert "\n" not in str(raised.value)
    assert "\x1b" not in str(raised.value)


# Breaking on purpose


@contextmanager
def other_tensors(module: nn.Module, changes: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Give tensors of a module other values for a while."""
    state = {**module.state_dict(), **dict(module.named_buffers())}
    before = {name: state[name].clone() for name in changes}
    assert before, "nothing was broken"
    for name, value in changes.items():
        state[name].copy_(value)
    try:
        yield
    finally:
        for name, value in before.items():
            state[name].copy_(value)


@contextmanager
def other_eps(module: nn.Module, eps: float) -> Iterator[None]:
    """Give the norms of a module another epsilon for a while."""
    norms = [part for part in module.modules() if isinstance(part, nn.LayerNorm)]
    before = [norm.eps for norm in norms]
    for norm in norms:
        norm.eps = eps
    try:
        yield
    finally:
        for norm, value in zip(norms, before, strict=True):
            norm.eps = value


@contextmanager
def other_modules(module: nn.Module, changes: Mapping[str, nn.Module]) -> Iterator[None]:
    """Put other modules in the place of some for a while."""
    before = {name: module.get_submodule(name) for name in changes}
    assert before, "nothing was broken"
    for name, value in changes.items():
        module.set_submodule(name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            module.set_submodule(name, value)


def named(module: nn.Module, end: str) -> dict[str, torch.Tensor]:
    """Return copies of the tensors whose name ends so."""
    state = {**module.state_dict(), **dict(module.named_buffers())}
    return {name: value.clone() for name, value in state.items() if name.endswith(end)}


def dropped(module: nn.Module, *ends: str) -> dict[str, torch.Tensor]:
    """Return zeros for the tensors whose name ends in one of these ways."""
    return {name: value * 0 for end in ends for name, value in named(module, end).items()}


def swapped(module: nn.Module, first: str, second: str) -> dict[str, torch.Tensor]:
    """Return the tensors whose names end in two ways, each with the other's value."""
    firsts, seconds = named(module, first), named(module, second)
    crossed = {name.removesuffix(first) + second: value for name, value in firsts.items()}
    crossed |= {name.removesuffix(second) + first: value for name, value in seconds.items()}
    return crossed


def activations(module: nn.Module, other: nn.Module) -> dict[str, nn.Module]:
    """Return another activation for every GELU of a module."""
    return {name: other for name, part in module.named_modules() if isinstance(part, nn.GELU)}
