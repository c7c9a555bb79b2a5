"""One image file to pixels: 8-bit grey or RGB, or one line that says why not."""

from __future__ import annotations

import io
import warnings
from typing import Final

import numpy as np
from PIL import Image, UnidentifiedImageError

from embedcache.errors import ImageReadError

_MOVING: Final = {"TIFF", "GIF", "PNG", "WEBP"}  # formats that may hide further frames
# Resized to a shorter side of 224, a strip of 1 x 60,000 would take gigabytes.
_LONGEST: Final = 100
SUFFIXES: Final = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")


def decode_image(data: bytes) -> Image.Image:
    """Return the picture in a file's bytes, mode 'L' or 'RGB'.

    A colour picture whose three channels are equal comes back as 'L': everything downstream works
    channel by channel, so the values are the same and the work is a third. Alpha is dropped,
    palettes are resolved, 16-bit grey is scaled by 1/257 and rounded, 32-bit float is taken as
    0..1 if all of it lies there and as 0..255 otherwise. EXIF orientation is ignored.

    Raises
    ------
    ImageReadError
        Not an image, truncated, unreasonably large or long, several frames, or NaN pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data))
            n_frames = getattr(image, "n_frames", 1)
            if image.format in _MOVING and n_frames > 1:
                raise ImageReadError(f"{n_frames} frames in one file; expected one")
            if image.format == "PNG":
                # Decoding stops at the last pixel; only this looks at the checksums and the end.
                Image.open(io.BytesIO(data)).verify()
            image.load()
    except ImageReadError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageReadError(f"unreasonably large: {error}") from None
    except UnidentifiedImageError:
        raise ImageReadError(
            "not an image" if data else "an empty file, expected an image"
        ) from None
    except Exception as error:  # whatever a foreign file makes the decoders raise
        raise ImageReadError(f"cannot be decoded: {error}") from None
    if max(image.size) > _LONGEST * min(image.size):
        raise ImageReadError(f"{image.width} x {image.height} pixels, hardly a picture")
    return _to_grey_or_rgb(image)


def _to_grey_or_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "L":
        return image
    if image.mode in {"1", "LA", "La"}:
        return image.convert("L")
    if image.mode.startswith("I"):
        return _from_uint16(np.asarray(image))
    if image.mode == "F":
        return _from_float(np.asarray(image))
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    red, green, blue = (np.asarray(rgb.getchannel(name)) for name in "RGB")
    if np.array_equal(red, green) and np.array_equal(red, blue):
        return Image.fromarray(red)
    return rgb


def _from_uint16(pixels: np.ndarray) -> Image.Image:
    low, high = int(pixels.min()), int(pixels.max())
    if low < 0 or high > 65535:
        raise ImageReadError(f"integer pixels from {low} to {high}; expected 0 to 65535")
    return Image.fromarray(((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8))


def _from_float(pixels: np.ndarray) -> Image.Image:
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= 0 and high <= 255):  # also true of NaN
        raise ImageReadError(f"float pixels from {low:g} to {high:g}; expected 0..1 or 0..255")
    scale = 255.0 if high <= 1 else 1.0
    return Image.fromarray(np.rint(pixels * scale).astype(np.uint8))
