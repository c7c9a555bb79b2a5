"""One image file to pixels: 8-bit grey or RGB, or one line that says why not.

A frame of a DICOM file that holds several is named `FILE.dcm#NUMBER`, counted from 0.
"""

from __future__ import annotations

import io
import re
import warnings
from typing import Any, Final

import numpy as np
from PIL import Image, UnidentifiedImageError

from embedcache.errors import ImageReadError, MissingExtraError

_MOVING: Final = {"TIFF", "GIF", "PNG", "WEBP"}  # formats that may hide further frames
# Resized to a shorter side of 224, a strip of 1 x 60,000 would take gigabytes.
_LONGEST: Final = 100
# Behind a DICOM suffix, a name without any (IM_0001), or a DICOM UID.
_FRAME: Final = re.compile(r"((?:.+/)?(?:[^/]+\.(?:dcm|dicom)|[^/.]+|[\d.]+))#(\d+)", re.I | re.S)
DICOM_SUFFIXES: Final = (".dcm", ".dicom")
SUFFIXES: Final = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".tif", ".tiff", ".bmp", ".webp"),
    *DICOM_SUFFIXES,
)


def split_frame(path: str) -> tuple[str, int | None]:
    """Return the file that a manifest's path names, and the frame in it, None for the only one."""
    match = _FRAME.fullmatch(path)
    return (match[1], int(match[2])) if match else (path, None)


def decode_image(data: bytes, frame: int | None = None) -> Image.Image:
    """Return the picture in a file's bytes, mode 'L' or 'RGB'.

    A colour picture whose three channels are equal comes back as 'L': everything downstream works
    channel by channel, so the values are the same and the work is a third. Alpha is dropped,
    palettes are resolved, 16-bit grey is scaled by 1/257 and rounded, 32-bit float is taken as
    0..1 if all of it lies there and as 0..255 otherwise. EXIF orientation is ignored. Of DICOM see
    `_decode_dicom`.

    Parameters
    ----------
    data
        All bytes of the file.
    frame
        Number of the frame of a DICOM file, from 0; None for the only one.

    Raises
    ------
    ImageReadError
        Not an image, truncated, unreasonably large or long, several frames, or NaN pixels.
    MissingExtraError
        A DICOM file, without the extra 'dicom'.
    """
    if data[128:132] == b"DICM":
        return grey_or_rgb(_decode_dicom(data, frame))
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
    return grey_or_rgb(image)


def picture_size(path: str) -> tuple[int, int]:
    """Return width and height from a file's header; (0, 0) where it has none that can be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return image.size
    except (OSError, Image.DecompressionBombError):
        return 0, 0


def count_frames(data: bytes) -> int:
    """Return how many frames a DICOM file holds.

    Raises
    ------
    ImageReadError
        No DICOM file.
    """
    return int(_read_dicom(data, stop_before_pixels=True).get("NumberOfFrames") or 1)


def _read_dicom(data: bytes, **settings: bool) -> Any:
    try:
        import pydicom
    except ImportError:
        raise MissingExtraError(
            "a DICOM file needs the extra 'dicom'; run `pip install pydicom`"
        ) from None
    try:
        return pydicom.dcmread(io.BytesIO(data), **settings)
    except Exception as error:  # whatever a foreign file makes the parser raise
        raise ImageReadError(f"cannot be read as DICOM: {error}") from None


def _decode_dicom(data: bytes, frame: int | None) -> Image.Image:
    """Return a frame as its viewer shows it: rescaled, windowed, bright on dark, 8 bits.

    Stored values go through rescale slope and intercept, then through the file's first window if it
    has one; then the whole range that the stored bits can hold is mapped to 0..255. MONOCHROME1 is
    inverted, colour spaces become RGB (DICOM PS3.3, C.7.6.3 and C.11).
    """
    from pydicom.pixels import apply_color_lut, apply_rescale, apply_windowing, pixel_array

    header = _read_dicom(data)
    n_frames = int(header.get("NumberOfFrames") or 1)
    if frame is None and n_frames > 1:
        raise ImageReadError(f"{n_frames} frames in one file; name one, as in FILE.dcm#0")
    if (frame or 0) >= n_frames:
        raise ImageReadError(f"no frame {frame}; the file has {n_frames}, counted from 0")
    try:
        stored = pixel_array(header, index=frame or 0)
        kind = header.PhotometricInterpretation
        if kind == "PALETTE COLOR":
            stored = apply_color_lut(stored, header)
            return Image.fromarray((stored >> (8 * stored.dtype.itemsize - 8)).astype(np.uint8))
        if stored.ndim == 3:  # pydicom has turned YBR into RGB
            return Image.fromarray(stored.astype(np.uint8))
        bits, signed = header.BitsStored, header.PixelRepresentation
        ends = np.array([-(1 << (bits - 1)), (1 << (bits - 1)) - 1]) if signed else None
        ends = np.array([0, (1 << bits) - 1]) if ends is None else ends
        low, high = np.sort(apply_rescale(ends, header).astype(np.float64))
        shown = apply_windowing(apply_rescale(stored, header), header).astype(np.float64)
    except Exception as error:  # whatever a foreign file makes the decoders raise
        raise ImageReadError(f"cannot be decoded: {error}") from None
    grey = np.clip((shown - low) / (high - low) * 255, 0, 255)
    return Image.fromarray(np.rint(255 - grey if kind == "MONOCHROME1" else grey).astype(np.uint8))


def grey_or_rgb(image: Image.Image) -> Image.Image:
    """Return a picture as 8-bit 'L' where its channels are equal, else as 'RGB'.

    Raises
    ------
    ImageReadError
        Pixels out of the range of their mode, or NaN.
    """
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
