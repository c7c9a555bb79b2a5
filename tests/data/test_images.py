from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from embedcache.data.images import decode_image
from embedcache.errors import ImageReadError

GREY = np.random.default_rng(0).integers(0, 256, (20, 30), dtype=np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def saved(image: Image.Image, kind: str = "PNG", **settings) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **settings)
    return sink.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP"])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P"])
def test_grey_pictures_come_back_grey_whatever_they_were_saved_as(kind, mode):
    if kind == "BMP" and mode in {"LA", "RGBA"}:
        pytest.skip("BMP has no alpha here")
    picture = decode_image(saved(Image.fromarray(GREY).convert(mode), kind))
    assert picture.mode == "L"
    assert np.array_equal(np.asarray(picture), GREY)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_colour_stays_colour_and_alpha_is_dropped(mode):
    picture = decode_image(saved(Image.fromarray(COLOUR).convert(mode)))
    assert picture.mode == "RGB"
    assert np.array_equal(np.asarray(picture), COLOUR)


def test_cmyk_and_jpeg_and_webp_are_read():
    for kind in ("JPEG", "WEBP", "TIFF"):
        image = Image.fromarray(COLOUR).convert("CMYK" if kind != "WEBP" else "RGB")
        assert decode_image(saved(image, kind)).mode == "RGB"


def test_one_bit_pictures_become_black_and_white():
    picture = decode_image(saved(Image.fromarray(GREY > 127)))
    assert np.array_equal(np.asarray(picture), np.where(GREY > 127, 255, 0))


def test_sixteen_bits_are_scaled_not_clipped():
    deep = GREY.astype(np.uint16) * 257
    assert np.array_equal(np.asarray(decode_image(saved(Image.fromarray(deep)))), GREY)


def test_float_pictures_are_scaled_by_their_range():
    unit, octet = (GREY / 255).astype(np.float32), GREY.astype(np.float32)
    assert np.array_equal(np.asarray(decode_image(saved(Image.fromarray(unit), "TIFF"))), GREY)
    assert np.array_equal(np.asarray(decode_image(saved(Image.fromarray(octet), "TIFF"))), GREY)


@pytest.mark.parametrize("bad", [np.nan, -1.0, 300.0])
def test_float_pictures_outside_every_range_are_refused(bad):
    pixels = np.full((4, 4), bad, np.float32)
    with pytest.raises(ImageReadError, match=r"float pixels from .* expected 0\.\.1 or 0\.\.255"):
        decode_image(saved(Image.fromarray(pixels), "TIFF"))


def test_a_truncated_file_is_an_error_at_once():
    data = saved(Image.fromarray(COLOUR))
    for cut in (len(data) // 2, len(data) - 20, 60):
        with pytest.raises(ImageReadError, match="cannot be decoded|not an image"):
            decode_image(data[:cut])


def test_a_flipped_bit_in_a_png_is_an_error():
    data = bytearray(saved(Image.fromarray(COLOUR)))
    data[len(data) // 2] ^= 1
    with pytest.raises(ImageReadError, match="cannot be decoded"):
        decode_image(bytes(data))


@pytest.mark.parametrize(("data", "message"), [(b"", "empty file"), (b"hello", "not an image")])
def test_what_is_no_image_says_so(data, message):
    with pytest.raises(ImageReadError, match=message):
        decode_image(data)


def test_several_frames_in_one_file_are_refused():
    frames = [Image.fromarray(GREY), Image.fromarray(255 - GREY)]
    data = saved(frames[0], "TIFF", save_all=True, append_images=frames[1:])
    with pytest.raises(ImageReadError, match="2 frames in one file; expected one"):
        decode_image(data)


def test_a_decompression_bomb_is_refused(monkeypatch):
    data = saved(Image.fromarray(GREY))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ImageReadError, match="unreasonably large"):
        decode_image(data)


def test_a_strip_that_would_take_gigabytes_to_resize_is_refused():
    stream = io.BytesIO()
    Image.new("L", (6000, 1)).save(stream, "PNG")
    with pytest.raises(ImageReadError, match="6000 x 1 pixels, hardly a picture"):
        decode_image(stream.getvalue())


def test_whatever_a_decoder_raises_is_an_image_that_cannot_be_decoded(monkeypatch):
    def confused(*_, **__):
        raise TypeError("Missing dimensions")

    monkeypatch.setattr(Image, "open", confused)
    with pytest.raises(ImageReadError, match="cannot be decoded: Missing dimensions"):
        decode_image(b"II*")
