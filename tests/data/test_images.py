from __future__ import annotations

import io
import os
from zlib import compress, crc32

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from embedcache.data.images import decode_image, picture_size
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


def white_is_least(pixels: np.ndarray, kind: str = "TIFF") -> bytes:
    """Return a grey TIFF whose lowest value is white, as its tag says."""
    return saved(Image.fromarray(pixels), kind, tiffinfo={262: 0})


def test_white_is_least_for_every_depth():
    wide, unit = GREY.astype(np.uint16) * 257, (GREY / 255).astype(np.float32)
    for pixels in (wide, unit):
        data = white_is_least(pixels)
        assert Image.open(io.BytesIO(data)).tag_v2[262] == 0
        assert np.array_equal(np.asarray(decode_image(data)), 255 - GREY)


def test_twelve_bits_of_a_tiff_are_scaled():
    values = np.random.default_rng(2).integers(0, 4096, (16, 24), dtype=np.uint16)
    halves = np.stack([values >> 4, (values & 15) << 4], axis=-1)  # three bytes for two pixels
    halves[:, ::2, 1] |= values[:, 1::2] >> 8
    packed = np.stack([halves[:, ::2, 0], halves[:, ::2, 1], values[:, 1::2] & 255], axis=-1)
    stream = io.BytesIO()
    Image.fromarray(np.zeros((16, 36), np.uint8)).save(stream, "TIFF")
    data = bytearray(stream.getvalue())
    for tag, value in ((256, 24), (258, 12)):
        place = data.index(tag.to_bytes(2, "little"), 8)
        data[place + 8 : place + 10] = value.to_bytes(2, "little")
    start = bytes(data).rindex(bytes(36 * 16))
    data[start : start + 36 * 16] = packed.astype(np.uint8).tobytes()
    picture = np.asarray(decode_image(bytes(data)))
    assert np.array_equal(picture, np.rint(values / 4095 * 255))


@pytest.mark.parametrize(
    ("pixels", "reason"),
    [
        (GREY.astype(np.uint16) * 16, "16-bit pixels of at most 40.. would be shown nearly black"),
        (GREY.astype(np.uint16), "16-bit pixels of at most 2.. would be shown nearly black"),
        (GREY.astype(np.int32) - 1, "integer pixels from -1 to .*; expected 0 to 65535"),
        (GREY.astype(np.int32) * 999, "integer pixels from 0 to .*; expected 0 to 65535"),
        ((GREY / 250).astype(np.float32), "float pixels from 0 to 1.02 would be shown nearly bl"),
        (60000 + GREY.astype(np.uint16) // 200, "its pixels differ .* but would be shown alike"),
    ],
)
def test_unusual_ranges_are_refused(pixels, reason):
    with pytest.raises(ImageReadError, match=reason):
        decode_image(saved(Image.fromarray(pixels), "TIFF"))


def test_a_black_picture_is_black_at_every_depth():
    for kind in (np.uint8, np.uint16, np.float32):
        black = decode_image(saved(Image.fromarray(np.zeros((4, 4), kind)), "TIFF"))
        assert not np.asarray(black).any()


def test_colours_of_sixteen_bits_that_use_the_lower_eight_are_refused():
    header = b"P6 30 20 65535\n"
    good = decode_image(header + (COLOUR.astype(">u2") * 257).tobytes())
    assert np.array_equal(np.asarray(good), COLOUR)
    ihdr = Image.open(io.BytesIO(deep_png(COLOUR.astype(">u2"))))
    assert ihdr.mode == "RGB"
    with pytest.raises(ImageReadError, match="16-bit pixels that would be shown nearly black"):
        decode_image(deep_png(COLOUR.astype(">u2")))
    assert np.array_equal(np.asarray(decode_image(deep_png(COLOUR.astype(">u2") * 257))), COLOUR)


def deep_png(pixels: np.ndarray) -> bytes:
    """Return a PNG of 16-bit colours, which Pillow does not write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + name + data + crc32(name + data).to_bytes(4, "big")

    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x10\x02\0\0\0"
    chunks = ((b"IHDR", head), (b"IDAT", compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*pair) for pair in chunks)


def test_signed_tiffs_are_refused():
    data = saved(Image.fromarray(GREY), "TIFF", tiffinfo={339: 2})
    with pytest.raises(ImageReadError, match="signed 8-bit pixels; expected unsigned"):
        decode_image(data)


def test_palettes_with_transparency_are_resolved_with_a_note_that_it_is_dropped():
    notes: list[str] = []
    palette = Image.fromarray(COLOUR).quantize(16)
    plain = decode_image(saved(palette))
    for transparency in (3, b"\1\2\3"):
        data = saved(palette, transparency=transparency)
        assert decode_image(data, on_note=notes.append) == plain
    assert notes == ["transparent pixels are read as if they were opaque"] * 2


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_a_picture_that_viewers_turn_is_turned_or_noted(kind):
    exif = Image.Exif()
    exif[274] = 6
    notes: list[str] = []
    picture = decode_image(saved(Image.fromarray(GREY), kind, exif=exif), on_note=notes.append)
    if kind == "TIFF":
        assert (picture.size, notes) == ((20, 30), [])
    else:
        assert picture.size == (30, 20)
        assert notes == ["EXIF orientation 6 is ignored; viewers turn it"]


def test_exif_that_nobody_can_read_costs_no_picture():
    data = saved(Image.fromarray(GREY), "JPEG", exif=b"Exif\0\0no EXIF at all")
    assert decode_image(data).size == (30, 20)


def test_a_palette_that_hides_the_picture_is_refused():
    image = Image.fromarray(GREY, "L").quantize(4)
    image.putpalette(b"\7" * 768)
    with pytest.raises(ImageReadError, match="would be shown alike"):
        decode_image(saved(image))


def test_of_a_telephones_two_pictures_the_first_is_read():
    pictures = [Image.fromarray(COLOUR), Image.fromarray(255 - COLOUR)]
    data = saved(pictures[0], "MPO", save_all=True, append_images=pictures[1:])
    first = decode_image(saved(pictures[0], "JPEG"))
    assert np.array_equal(np.asarray(decode_image(data)), np.asarray(first))


def test_only_the_listed_formats_reach_pillow(monkeypatch, tmp_path):
    data = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    assert Image.open(io.BytesIO(data)).format == "EPS"
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", None)
    with pytest.raises(ImageReadError, match="not an image"):
        decode_image(data)
    (tmp_path / "a.png").write_bytes(data)
    assert picture_size(str(tmp_path / "a.png")) == (0, 0)
    os.mkfifo(tmp_path / "b.png")
    assert picture_size(str(tmp_path / "b.png")) == (0, 0)
    (tmp_path / "c.png").write_bytes(saved(Image.fromarray(GREY)))
    assert picture_size(str(tmp_path / "c.png")) == (30, 20)


def test_lost_tags_of_a_tiff_are_a_refusal_and_odd_metadata_a_note():
    data = bytearray(saved(Image.fromarray(COLOUR), "TIFF", tiffinfo={270: "a" * 100}))
    place = data.index((270).to_bytes(2, "little"))
    data[place + 4 : place + 8] = (1 << 30).to_bytes(4, "little")
    with pytest.raises(ImageReadError, match="its TIFF tags are damaged"):
        decode_image(bytes(data))
    exif = b"Exif\0\0II*\0\x08\0\0\0\x05\0" + b"\x12\x01\x03\0\xff\0\0\0\xff\xff\0\0"
    notes: list[str] = []
    picture = decode_image(saved(Image.fromarray(COLOUR), "JPEG", exif=exif), on_note=notes.append)
    plain = decode_image(saved(Image.fromarray(COLOUR), "JPEG"))
    assert np.array_equal(np.asarray(picture), np.asarray(plain))
    assert notes


def test_a_huge_picture_is_noted(monkeypatch):
    data = saved(Image.fromarray(GREY))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    notes: list[str] = []
    assert decode_image(data, on_note=notes.append).size == (30, 20)
    assert "exceeds limit of 500 pixels" in notes[0]
