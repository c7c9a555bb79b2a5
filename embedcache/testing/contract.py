"""What every encoder must keep to, as a class of tests to inherit from; needs pytest to run, only.

>>> class TestMine(EncoderContract):  # doctest: +SKIP
...     def make_encoder(self, tmp_path, *, other_weights=False):
...         return load_encoder("mine", weights=write_weights(tmp_path, seed=int(other_weights)))
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Final

import numpy as np
from PIL import Image

from embedcache.encoders.preprocess import Preprocess
from embedcache.encoders.spec import Encoder, EncoderSpec, FloatArray, fingerprint_of, identity_of
from embedcache.files.durable import canonical_json

# Largest difference over largest value that another batch size may make. A processor adds floats
# in another order there; an encoder that mixes its rows is off by far more.
TOLERANCE: Final = 1e-4
# Taller, wider and smaller than what an encoder takes; grey and in colour.
_SIZES: Final = ((37, 61), (320, 200), (224, 224), (97, 90))
_MODES: Final = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "F")


class EncoderContract(ABC):
    """Tests that any encoder must pass; name the subclass `Test...` so that pytest collects it.

    A check that fails is an `AssertionError` that says what was broken.

    Attributes
    ----------
    has_weights
        Set to False for an encoder that has none: then there are no other weights to ask for.
    n_pictures
        Pictures to encode, 2 to 4. Fewer save time where a network is slow.
    """

    has_weights: ClassVar[bool] = True
    n_pictures: ClassVar[int] = 3
    _made: ClassVar[tuple[Encoder, FloatArray, FloatArray] | None] = None

    @abstractmethod
    def make_encoder(self, tmp_path: Path, *, other_weights: bool = False) -> Encoder:
        """Return the encoder to test, on the CPU.

        Parameters
        ----------
        tmp_path
            An empty folder, for files that it needs.
        other_weights
            Give it other weights, everything else the same.
        """

    @classmethod
    def teardown_class(cls) -> None:
        """Let go of the encoder when the last of its tests is over."""
        cls._made = None

    def _ready(self, tmp_path: Path) -> tuple[Encoder, FloatArray, FloatArray]:
        """Return the encoder, a batch and its rows: made once for all tests of the class."""
        kind = type(self)
        if kind._made is None:
            encoder = self.make_encoder(tmp_path)
            batch = np.stack([encoder.preprocess(picture) for picture in self._pictures()])
            kind._made = encoder, batch, encoder.encode(batch.copy())
        return kind._made

    def _pictures(self) -> list[Image.Image]:
        return pictures()[: self.n_pictures]

    def test_preprocessing_gives_the_stated_shape_for_pictures_of_every_mode(
        self, tmp_path: Path
    ) -> None:
        """`preprocess` takes any mode and returns float32 of `spec.preprocess.shape`."""
        encoder = self._ready(tmp_path)[0]
        shape = encoder.spec.preprocess.shape
        for mode in _MODES:
            array = encoder.preprocess(picture_of(mode))
            assert array.shape == shape, f"mode '{mode}': shape {array.shape}, expected {shape}"
            assert array.dtype == np.float32, f"mode '{mode}': {array.dtype}, expected float32"
            assert np.isfinite(array).all(), f"mode '{mode}': NaN or infinity"

    def test_rows_have_the_stated_shape_and_type(self, tmp_path: Path) -> None:
        """`encode` returns contiguous, finite float32 of shape (n, dim)."""
        encoder, batch, rows = self._ready(tmp_path)
        expected = (len(batch), encoder.spec.dim)
        assert rows.shape == expected, f"shape {rows.shape}, expected {expected}"
        assert rows.dtype == np.float32, f"{rows.dtype}, expected float32"
        assert rows.flags.c_contiguous, "rows are not contiguous in memory"
        assert np.isfinite(rows).all(), "NaN or infinity among the rows"

    def test_other_pictures_have_other_rows(self, tmp_path: Path) -> None:
        """Rows tell pictures apart: the network looks at its input."""
        rows = self._ready(tmp_path)[2]
        assert len(np.unique(rows, axis=0)) == len(rows), "two pictures have the same row"

    def test_encoding_again_gives_the_same_bits_and_leaves_the_batch_as_it_was(
        self, tmp_path: Path
    ) -> None:
        """`encode` is deterministic, and does not write into what it is given."""
        encoder, batch, rows = self._ready(tmp_path)
        given = batch.copy()
        again = encoder.encode(given)
        assert np.array_equal(given, batch), "`encode` changed its input"
        assert np.array_equal(again, rows), "the same batch gave other rows"

    def test_rows_come_in_order_whatever_the_batch_size(self, tmp_path: Path) -> None:
        """One picture at a time, from the last to the first, gives the same rows."""
        encoder, batch, rows = self._ready(tmp_path)
        alone = [encoder.encode(array[None])[0] for array in batch[::-1]]
        _assert_close(np.stack(alone[::-1]), rows, "pictures encoded one by one")

    def test_the_batch_may_be_overwritten_as_soon_as_encode_async_returns(
        self, tmp_path: Path
    ) -> None:
        """Reading the next batch into the same memory does not change the rows."""
        encoder, batch, rows = self._ready(tmp_path)
        memory = batch.copy()
        wait = encoder.encode_async(memory)
        memory[:] = np.nan
        _assert_close(wait(), rows, "a batch overwritten after encode_async")

    def test_embed_is_preprocess_and_encode(self, tmp_path: Path) -> None:
        """`embed` gives the same rows from pictures and files, and none from none."""
        encoder, _, rows = self._ready(tmp_path)
        images: list[Image.Image | Path] = list(self._pictures())
        file = tmp_path / "last.png"
        self._pictures()[-1].save(file)
        images[-1] = file
        _assert_close(encoder.embed(images), rows, "`embed`")
        assert encoder.embed([]).shape == (0, encoder.spec.dim), "`embed` of nothing"
        assert encoder.batch_size >= 1, f"batch_size {encoder.batch_size}, expected 1 or more"

    def test_facts_survive_json(self, tmp_path: Path) -> None:
        """What a store keeps of an encoder is enough to know it again."""
        spec = self._ready(tmp_path)[0].spec
        assert EncoderSpec.from_document(spec.document()) == spec, "facts are lost in the document"
        canonical_json(spec.document())

    def test_the_fingerprint_is_made_of_the_facts_and_not_of_the_name(self, tmp_path: Path) -> None:
        """Architecture, output, preprocessing, weights and precision decide, and nothing else."""
        encoder = self._ready(tmp_path)[0]
        weights, precision = encoder.identity["weights"], encoder.identity["precision"]
        expected = identity_of(encoder.spec, weights, precision)
        assert encoder.identity == expected, "its identity is not `identity_of(spec, ...)`"
        assert encoder.fingerprint == fingerprint_of(expected), "no digest of its identity"
        renamed = replace(encoder.spec, name="another", reference="elsewhere", overlap="unknown")
        same = fingerprint_of(identity_of(renamed, weights, precision))
        assert same == encoder.fingerprint, "the name changes the fingerprint"
        fit = "squash" if encoder.spec.preprocess.fit != "squash" else "pad-square"
        others = [
            replace(encoder.spec, preprocess=encoder.spec.preprocess.refitted(fit)),
            replace(encoder.spec, preprocess=_whiter(encoder.spec.preprocess)),
            replace(encoder.spec, output=encoder.spec.output + "-other"),
            replace(encoder.spec, architecture=encoder.spec.architecture + "-other"),
        ]
        prints = {fingerprint_of(identity_of(spec, weights, precision)) for spec in others}
        assert len(prints - {encoder.fingerprint}) == len(others), "a change does not show"

    def test_other_weights_are_another_encoder(self, tmp_path: Path) -> None:
        """Weights decide the rows, and the fingerprint tells them apart."""
        if not self.has_weights:
            return
        encoder, batch, rows = self._ready(tmp_path)
        other = self.make_encoder(tmp_path, other_weights=True)
        assert other.fingerprint != encoder.fingerprint, "other weights, the same fingerprint"
        assert other.spec.dim == encoder.spec.dim, "other weights, another length"
        assert not np.array_equal(other.encode(batch[:1]), rows[:1]), "other weights, the same row"

    def test_making_it_again_gives_the_same_fingerprint(self, tmp_path: Path) -> None:
        """The same encoder tomorrow finds the rows of today."""
        first = self._ready(tmp_path)[0].fingerprint
        folder = tmp_path / "again"
        folder.mkdir()
        assert self.make_encoder(folder).fingerprint == first, "its fingerprint changes"


def pictures() -> list[Image.Image]:
    """Return four pictures of awkward sizes, two grey and two in colour; always the same."""
    chance = np.random.default_rng(0)
    made = []
    for number, (width, height) in enumerate(_SIZES):
        shape = (height, width, 3) if number % 2 else (height, width)
        made.append(Image.fromarray(chance.integers(0, 256, shape, dtype=np.uint8)))
    return made


def picture_of(mode: str) -> Image.Image:
    """Return a small picture of one of Pillow's modes."""
    chance = np.random.default_rng(1)
    grey = chance.integers(0, 256, (23, 31), dtype=np.uint8)
    if mode == "I;16":
        return Image.fromarray(grey.astype(np.uint16) * 257)
    if mode == "F":
        return Image.fromarray(grey.astype(np.float32))
    colour = Image.fromarray(chance.integers(0, 256, (23, 31, 3), dtype=np.uint8))
    return colour.convert(mode)


def _assert_close(actual: FloatArray, expected: FloatArray, what: str) -> None:
    assert actual.shape == expected.shape, f"{what}: shape {actual.shape}, not {expected.shape}"
    largest = float(np.abs(expected).max())
    worst = float(np.abs(actual - expected).max())
    limit = TOLERANCE * largest
    assert worst <= limit, f"{what}: rows differ by {worst:.3g}, allowed {limit:.3g}"


def _whiter(preprocess: Preprocess) -> Preprocess:
    mean: Sequence[float] = preprocess.mean
    return replace(preprocess, mean=tuple(value + 0.25 for value in mean))
