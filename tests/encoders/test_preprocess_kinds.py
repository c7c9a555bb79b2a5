"""Each way of fitting a picture against the plain words for it, and every kind of image file."""

from __future__ import annotations

import hashlib
import io
import json

import numpy as np
import pytest
from checkpoints import CASES, GOLDEN, make_image
from PIL import Image

import embedcache
from embedcache.data.images import decode_image
from embedcache.encoders.preprocess import Preprocess, resize_bilinear
from embedcache.encoders.registry import BUILTIN
from embedcache.errors import EncoderError
from embedcache.testing.contract import picture_of

SIZES = [(37, 301), (301, 37), (640, 480), (223, 224), (224, 224), (1, 9), (8, 1), (1025, 333)]
FETALCLIP = BUILTIN["fetalclip"].preprocess
ULTRASAM = BUILTIN["ultrasam"].preprocess
OPENCV = json.loads((GOLDEN / "opencv.json").read_text())


def normalised(image: Image.Image, settings: Preprocess) -> np.ndarray:
    pixels = np.asarray(image.convert("RGB"), np.float32) / np.float32(255)
    mean, std = (np.asarray(part, np.float32) for part in (settings.mean, settings.std))
    return ((pixels - mean) / std).transpose(2, 0, 1)


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_pad_square_is_a_black_square_with_the_picture_in_the_middle(size, mode):
    image, side = make_image(size, mode, 3), max(size)
    square = Image.new("RGB", (side, side), (0, 0, 0))
    square.paste(image.convert("RGB"), ((side - size[0]) // 2, (side - size[1]) // 2))
    expected = normalised(square.resize((224, 224), Image.Resampling.BICUBIC), FETALCLIP)
    assert np.array_equal(FETALCLIP(image), expected)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_longest_side_pads_with_raw_black_on_the_right_and_below(size):
    image, (width, height) = make_image(size, "RGB", 4), size
    scale = 1024 / max(size)
    new = max(1, int(width * scale)), max(1, int(height * scale))
    canvas = Image.new("RGB", (1024, 1024))
    canvas.paste(Image.fromarray(resize_bilinear(np.asarray(image), new)))
    assert np.array_equal(ULTRASAM(image), normalised(canvas, ULTRASAM))
    # Black before normalising: not the mean colour, which is 0 afterwards.
    if min(new) < 1024:
        assert np.allclose(ULTRASAM(image)[:, -1, -1], [-2.117904, -2.035714, -1.804444])


@pytest.mark.parametrize("case", OPENCV["cases"], ids=lambda case: "{}x{}".format(*case["size"]))
def test_bilinear_resizing_is_opencvs_bit_by_bit(case):
    width, height = case["size"]
    scale = 1024 / max(width, height)
    assert case["resized"] == [max(1, int(width * scale)), max(1, int(height * scale))]
    image = make_image((width, height), case["mode"], case["seed"])
    resized = resize_bilinear(np.asarray(image), tuple(case["resized"]))
    assert resized.mean() == pytest.approx(case["mean"], abs=1e-5)
    assert hashlib.sha256(resized.tobytes()).hexdigest() == case["sha256"]


def test_a_width_may_be_rounded_down_to_1023():
    found = {tuple(case["size"]): tuple(case["resized"]) for case in OPENCV["cases"]}
    assert found[853, 61] == (1023, 73)
    assert found[61, 1682] == (37, 1023)
    black = ULTRASAM(Image.new("L", (9, 9)))[:, 0, 0]
    last = ULTRASAM(Image.new("L", (853, 61), 255))[:, 0, 1022:]
    assert (last[:, 1] == black).all()
    assert (last[:, 0] > 2).all()


def test_bilinear_resizing_is_that_of_the_opencv_that_is_here():
    cv2 = pytest.importorskip("cv2")
    chance = np.random.default_rng(0)
    for number in range(60):
        height, width, tall, wide = (int(n) for n in chance.integers(1, 300, 4))
        shape = (height, width, 3) if number % 2 else (height, width)
        pixels = chance.integers(0, 256, shape, dtype=np.uint8)
        expected = cv2.resize(pixels, (wide, tall), interpolation=cv2.INTER_LINEAR)
        assert np.array_equal(resize_bilinear(pixels, (wide, tall)), expected), (shape, wide, tall)


@pytest.mark.parametrize("fit", ["squash", "crop", "pad-square", "longest-side"])
@pytest.mark.parametrize("resample", ["bicubic", "cv2-bilinear"])
@pytest.mark.parametrize("case", CASES[:7], ids=str)
def test_every_fit_fills_the_shape_and_treats_grey_as_equal_channels(fit, resample, case):
    settings = Preprocess(height=40, width=40, fit=fit, resample=resample)
    image = make_image(*case).convert("L")
    array = settings(image)
    assert (array.shape, array.dtype) == ((3, 40, 40), np.float32)
    assert np.isfinite(array).all()
    assert np.array_equal(array, settings(image.convert("RGB")))


def test_preprocessing_is_changed_by_name_and_by_no_other():
    assert ULTRASAM.refitted("pad-square").fit == "pad-square"
    assert ULTRASAM.refitted("longest-side") == ULTRASAM
    with pytest.raises(
        EncoderError,
        match="no preprocessing 'stretch'; expected squash, crop, pad-square, longest-side",
    ):
        ULTRASAM.refitted("stretch")
    with pytest.raises(EncoderError, match="'crop' needs a square input, this one is 224 x 288"):
        BUILTIN["sononet16"].preprocess.refitted("crop")


@pytest.mark.parametrize("fit", ["pad-square", "longest-side"])
def test_every_fit_can_be_had_of_an_input_that_is_not_square(fit):
    settings = BUILTIN["sononet16"].preprocess.refitted(fit)
    for size in SIZES:
        array = settings(make_image(size, "L", 5))
        assert array.shape == (1, 224, 288)
        assert np.isfinite(array).all()


def test_longest_side_never_cuts_anything_off():
    """A wide input takes a tall picture whole, too."""
    settings = Preprocess(
        height=20, width=40, fit="longest-side", resample="bilinear", mean=(0.0,), std=(1.0,)
    )
    white = settings(Image.new("L", (10, 100), 255))[0]
    assert white.sum() == pytest.approx(20 * 2)  # all 20 rows, 2 of 40 columns
    assert settings(Image.new("L", (100, 10), 255))[0].sum() == pytest.approx(40 * 4)


def test_other_preprocessing_is_another_fingerprint_and_other_rows():
    image = make_image((60, 20), "L", 6)
    usual = embedcache.load_encoder("pixels")
    other = embedcache.load_encoder("pixels", preprocess="pad-square")
    assert embedcache.load_encoder("pixels", preprocess="squash").fingerprint == usual.fingerprint
    assert other.fingerprint != usual.fingerprint
    assert other.identity["preprocess"]["fit"] == "pad-square"
    assert not np.array_equal(other.embed([image]), usual.embed([image]))
    with pytest.raises(EncoderError, match="no preprocessing 'stretch'"):
        embedcache.load_encoder("pixels", preprocess="stretch")


MODES = ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "F"]
WRITABLE = {
    "PNG": ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"],
    "JPEG": ["L", "RGB", "CMYK"],
    "TIFF": ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "F"],
    "BMP": ["1", "L", "P", "RGB"],
    "WEBP": ["L", "RGB", "RGBA"],
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["pixels", "fetalclip", "ultrasam", "sononet16"])
def test_pictures_of_every_mode_are_what_pillow_makes_of_them_in_rgb(name, mode):
    settings, image = BUILTIN[name].preprocess, picture_of(mode)
    encoder = embedcache.load_encoder("pixels")
    encoder.spec = BUILTIN[name]
    if mode in {"I;16", "F"}:  # Pillow would clip these
        plain = Image.fromarray(
            (np.asarray(image, np.float64) / (257 if mode == "I;16" else 1)).astype(np.uint8)
        )
    else:
        plain = image.convert("RGB")
    assert np.array_equal(encoder.preprocess(image), settings(plain))


@pytest.mark.parametrize(
    ("kind", "mode"), [(kind, mode) for kind, modes in WRITABLE.items() for mode in modes]
)
def test_files_of_every_kind_and_mode_are_embedded_as_their_pictures_are(kind, mode, tmp_path):
    encoder = embedcache.load_encoder("pixels")
    file = tmp_path / f"a.{kind.lower()}"
    settings = {"lossless": True} if kind == "WEBP" else {}
    picture_of(mode).save(file, kind, **settings)
    with Image.open(file) as read:
        again = read.copy()
    rows = encoder.embed([file, str(file), again])
    assert rows.shape == (3, 256)
    assert np.array_equal(rows[0], rows[1])
    assert np.array_equal(rows[0], rows[2])
    assert rows.std() > 0
    if kind != "JPEG":
        assert np.array_equal(rows[0], encoder.embed([picture_of(mode)])[0])


def test_a_picture_is_embedded_the_same_from_memory_and_from_a_file():
    encoder = embedcache.load_encoder("pixels")
    for case in CASES[:9]:
        image, sink = make_image(*case), io.BytesIO()
        image.save(sink, "PNG")
        rows = encoder.embed([image, decode_image(sink.getvalue(), on_note=lambda _: None)])
        assert np.array_equal(rows[0], rows[1])
