"""The contract of `embedcache.testing`, kept by every encoder that there is, and enforced."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from checkpoints import random_state

import embedcache
from embedcache.encoders.registry import BUILTIN, Identified, identify_by_name, load
from embedcache.encoders.spec import Encoder
from embedcache.files.digests import DigestCache
from embedcache.testing import EncoderContract, FakeEncoder
from embedcache.testing.contract import TOLERANCE

# Minutes together: networks of 20 to 430 million parameters, the largest with one picture less.
SLOW = ("usfm", "ultrasam", "fetalclip", "dinov3", "efficientnetv2")
HEAVY = ("fetalclip", "dinov3-l", "efficientnetv2-l", "efficientnetv2-m")
# An input of 1024 x 1024 takes ten seconds a picture; the same network takes a smaller one.
SMALLER = {
    "ultrasam": 224,  # one window of its attention; the goldens have several
    "dinov3": 128,
    "dinov3-l": 128,
    "efficientnetv2-l": 192,
    "efficientnetv2-m": 192,
}
# As initialised their values grow to 1e3 and 1e9: rounding alone decides the rows in float32 (in
# float64 the batch size changes nothing). Other random weights keep them near 1.
CHAOTIC = ("efficientnetv2-m", "efficientnetv2-l")


class RandomContract(EncoderContract):
    """A built-in network with random weights, no file needed."""

    name = ""

    def make_encoder(self, tmp_path: Path, *, other_weights: bool = False) -> Encoder:
        if self.name in CHAOTIC:
            file = tmp_path / f"{int(other_weights)}.pth"
            network = timm.create_model(BUILTIN[self.name].architecture.removeprefix("timm:"))
            torch.save(random_state(network, int(other_weights)), file)
            return self.smaller(identify_by_name(self.name, digests=DigestCache(), weights=file))
        return self.smaller(
            identify_by_name(f"random:{self.name}", digests=DigestCache()), other_weights
        )

    def smaller(self, found: Identified, other_weights: bool = False) -> Encoder:
        spec = replace(found.spec, weights=replace(found.spec.weights, seed=int(other_weights)))
        side = SMALLER.get(self.name.partition(":")[0])
        if side is not None:
            spec = replace(spec, preprocess=replace(spec.preprocess, height=side, width=side))
        return load(replace(found, spec=spec), device="cpu")


for _name in BUILTIN:
    if BUILTIN[_name].weights.kind == "none":
        continue
    _title = "Test" + "".join(part.title() for part in _name.replace(":", "-").split("-"))
    _heavy = _name.startswith(HEAVY)
    _members: dict[str, Any] = {"name": _name, "n_pictures": 2 if _heavy else 3}
    if _name.startswith(SLOW):
        _members["pytestmark"] = pytest.mark.slow
    globals()[_title] = type(_title, (RandomContract,), _members)


class TestPixels(EncoderContract):
    """The encoder without a network."""

    has_weights = False
    n_pictures = 4

    def make_encoder(self, tmp_path: Path, *, other_weights: bool = False) -> Encoder:
        return embedcache.load_encoder("pixels")


class TestFake(EncoderContract):
    """The encoder of these tests."""

    def make_encoder(self, tmp_path: Path, *, other_weights: bool = False) -> Encoder:
        return FakeEncoder(weights=str(int(other_weights)))


PLUGIN = '''
"""An encoder of somebody else's: sixteen grey values times a number in a file."""
import numpy as np
from embedcache.encoders.preprocess import Preprocess
from embedcache.encoders.spec import Encoder, EncoderSpec, WeightsSource, check_rows, identity_of

SPEC = EncoderSpec(
    name="{name}", architecture="sixteen", output="values", dim=16,
    preprocess=Preprocess(
        height=4, width=4, fit="squash", resample="bilinear", mean=(0.0,), std=(1.0,)
    ),
    weights=WeightsSource(kind="user", location="nowhere", file="factor.txt"),
    loader=__name__ + ":load",
)

class Sixteen(Encoder):
    factor = 1.0
    def encode(self, batch):
        return check_rows(batch.reshape(len(batch), 16) * np.float32(self.factor), len(batch),
                          self.spec)

def load(found, device):
    encoder = Sixteen(found.spec, identity_of(found.spec, found.weights_digest, found.precision))
    encoder.factor = float(found.weights_file.read_text())
    return encoder
'''


class TestFileOfTheUsers(EncoderContract):
    """An encoder that embedcache does not know."""

    def make_encoder(self, tmp_path: Path, *, other_weights: bool = False) -> Encoder:
        file, weights = tmp_path / "sixteen.py", tmp_path / f"factor{int(other_weights)}.txt"
        file.write_text(PLUGIN.format(name="sixteen-of-contract"))
        weights.write_text("3" if other_weights else "2")
        return embedcache.load_encoder("sixteen-of-contract", weights=weights, encoder_file=file)


class Restless(FakeEncoder):
    """Keeps none of it; each flaw is switched on by its name."""

    flaw = ""

    def encode(self, batch):
        rows = super().encode(batch)
        if self.flaw == "order":
            rows = rows[::-1]
        if self.flaw == "neighbours":
            rows = rows - rows.mean(axis=0)
        if self.flaw == "noise":
            rows = rows + np.random.default_rng(self.n_encoded).normal(size=rows.shape)
        if self.flaw == "type":
            rows = rows.astype(np.float64)
        if self.flaw == "nan":
            rows = rows * np.nan
        if self.flaw == "input":
            batch[:] = 0
        if self.flaw == "constant":
            rows = np.ones_like(rows)
        return rows.astype(rows.dtype if self.flaw in {"type"} else np.float32)

    def encode_async(self, batch):
        return (lambda: self.encode(batch)) if self.flaw == "late" else super().encode_async(batch)


FLAWS = {
    "order": ("test_rows_come_in_order_whatever_the_batch_size", "one by one: rows differ by"),
    "neighbours": ("test_rows_come_in_order_whatever_the_batch_size", "one by one: rows differ"),
    "noise": (
        "test_encoding_again_gives_the_same_bits_and_leaves_the_batch_as_it_was",
        "the same batch gave other rows",
    ),
    "type": ("test_rows_have_the_stated_shape_and_type", "float64, expected float32"),
    "nan": ("test_rows_have_the_stated_shape_and_type", "NaN or infinity among the rows"),
    "input": (
        "test_encoding_again_gives_the_same_bits_and_leaves_the_batch_as_it_was",
        "`encode` changed its input",
    ),
    "constant": ("test_other_pictures_have_other_rows", "two pictures have the same row"),
    "late": (
        "test_the_batch_may_be_overwritten_as_soon_as_encode_async_returns",
        "a batch overwritten after encode_async",
    ),
    "name": (
        "test_the_fingerprint_is_made_of_the_facts_and_not_of_the_name",
        "its identity is not",
    ),
    "weights": ("test_other_weights_are_another_encoder", "other weights, the same fingerprint"),
}


@pytest.mark.parametrize("flaw", FLAWS)
def test_each_flaw_is_found_by_the_test_that_is_meant_for_it(flaw, tmp_path):
    class Flawed(EncoderContract):
        def make_encoder(self, tmp_path: Path, *, other_weights: bool = False) -> Encoder:
            encoder = Restless(weights="0" if flaw == "weights" else str(int(other_weights)))
            encoder.flaw = flaw
            if flaw == "name":
                encoder.identity["name"] = encoder.spec.name
            return encoder

    name, message = FLAWS[flaw]
    with pytest.raises(AssertionError, match=message), np.errstate(invalid="ignore"):
        getattr(Flawed(), name)(tmp_path)


def test_the_contract_can_be_imported_without_pytest_and_without_torch():
    code = """
        import sys
        sys.modules["pytest"] = None
        from embedcache.testing import EncoderContract
        assert "torch" not in sys.modules
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_documented_tolerance_is_the_one_that_is_used():
    assert TOLERANCE == 1e-4
