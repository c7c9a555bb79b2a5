"""One image file to pixels: 8-bit grey or RGB, or one line that says why not.

A frame of a DICOM file that holds several is named `FILE.dcm#NUMBER`, counted from 0.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

import numpy as np
from PIL import Image, UnidentifiedImageError

from embedcache.data.decoders import decoder_warnings, why_undecodable
from embedcache.data.dicom import decode_dicom, is_dicom
from embedcache.data.pixel_ranges import check_not_flattened, from_float, from_integers
from embedcache.errors import ImageReadError
from embedcache.files.regular import open_regular

# Pillow knows 40 more formats, some of which run programs.
_FORMATS: Final = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
_MOVING: Final = {"TIFF", "GIF", "PNG", "WEBP"}  # formats that may hide further frames
# Resized to a shorter side of 224, a strip of 1 x 60,000 would take gigabytes.
_LONGEST: Final = 100
# Behind a DICOM suffix, a name without any (IM_0001), or a DICOM UID.
_FRAME: Final = re.compile(r"((?:.+/)?(?:[^/]+\.(?:dcm|dicom)|[^/.]+|[\d.]+))#(\d+)", re.I | re.S)
DICOM_SUFFIXES: Final = (".dcm", ".dicom")
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF
_ORIENTATION: Final = 274  # tag of EXIF
_MIN_IS_WHITE: Final = 0
_SIGNED: Final = 2
_DEEP_COLOURS: Final = re.compile(r"(RGB|LA|CMYK)\w*;16")
_BEGINNINGS: Final = {
    b"\x89PNG": "PNG",
    b"\xff\xd8": "JPEG",
    b"\xff\x4f": "JPEG 2000",
    b"\0\0\0\x0cjP": "JPEG 2000",
    b"II": "TIFF",
    b"MM": "TIFF",
    b"RIFF": "WebP",
    b"BM": "BMP",
    b"GIF8": "GIF",
}
# Warnings of Pillow that tags of a TIFF were lost, which may be those that say what its pixels are.
_LOST_TAGS: Final = re.compile("Skipping tag|offset too large|[Tt]runcated|file, expected to read")
SUFFIXES: Final = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".tif", ".tiff", ".bmp", ".webp"),
    *DICOM_SUFFIXES,
)


def split_frame(path: str) -> tuple[str, int | None]:
    """Return the file that a manifest's path names, and the frame in it, None for the only one."""
    match = _FRAME.fullmatch(path)
    return (match[1], int(match[2])) if match else (path, None)


def decode_image(
    data: bytes, frame: int | None = None, on_note: Callable[[str], None] | None = None
) -> Image.Image:
    """Return the picture in a file's bytes, mode 'L' or 'RGB'.

    A colour picture whose three channels are equal comes back as 'L': everything downstream works
    channel by channel, so the values are the same and the work is a third. Alpha is dropped,
    palettes are resolved, 16-bit grey is scaled by 1/257 and rounded, 32-bit float is taken as
    0..1 if all of it lies there and as 0..255 otherwise. EXIF orientation is ignored, and so is all
    but the first picture of a JPEG of several. Of DICOM see `decode_dicom`.

    Parameters
    ----------
    data
        All bytes of the file.
    frame
        Number of the frame of a DICOM file, from 0; None for the only one.
    on_note
        Function called with each warning about the picture, one line; None for a Python warning.

    Raises
    ------
    ImageReadError
        Not an image, truncated, unreasonably large or long, several frames, pixels in an unusual
        range, or differences between them that would not be shown.
    MissingExtraError
        A DICOM file, without the extra 'dicom'.
    """
    with decoder_warnings() as notes:
        if is_dicom(data):
            picture = grey_or_rgb(_proportioned(Image.fromarray(decode_dicom(data, frame))))
        else:
            picture = _decode(data, notes)
    for note in notes:
        if on_note is not None:
            on_note(note)
        else:
            warnings.warn(note, stacklevel=2)
    return picture


def _decode(data: bytes, notes: list[str]) -> Image.Image:
    """Return the picture in the bytes of a file that is not DICOM."""
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
        n_frames = getattr(image, "n_frames", 1)
        if image.format in _MOVING and n_frames > 1:
            raise ImageReadError(f"{n_frames} frames in one file; expected one")
        if image.format == "PNG":
            # Decoding stops at the last pixel; only this looks at the checksums and the end.
            Image.open(io.BytesIO(data), formats=_FORMATS).verify()
        coding = str(image.tile[0].args) if image.tile else ""
        image.load()
        lost = [note for note in notes if image.format == "TIFF" and _LOST_TAGS.search(note)]
        if lost:
            raise ImageReadError(f"its TIFF tags are damaged: {lost[0]}")
        _note_other_looks(image)
        # Alpha is dropped, which Pillow would warn of with palettes.
        image.info.pop("transparency", None)
        picture = _tiff(image) if image.format == "TIFF" else grey_or_rgb(_proportioned(image))
        _check_high_bytes(picture, coding)
        return picture
    except ImageReadError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageReadError(f"unreasonably large: {error}") from None
    except UnidentifiedImageError:
        raise ImageReadError(_why_unknown(data)) from None
    except Exception as error:  # whatever a foreign file makes the decoders raise
        raise ImageReadError(f"cannot be decoded: {why_undecodable(error)}") from None


def _note_other_looks(image: Image.Image) -> None:
    """Warn of a picture that a viewer turns, or shows a background through."""
    turned = 1
    with suppress(Exception):  # EXIF that no viewer can read either
        turned = image.getexif().get(_ORIENTATION, 1)
    if turned in range(2, 9):
        warnings.warn(f"EXIF orientation {turned} is ignored; viewers turn it", stacklevel=1)
    may_hide = image.has_transparency_data and not image.mode.startswith("I")
    if may_hide and np.asarray(image.convert("RGBA").getchannel("A")).min() < 255:
        warnings.warn("transparent pixels are read as if they were opaque", stacklevel=1)


def _why_unknown(data: bytes) -> str:
    for beginning, kind in _BEGINNINGS.items():
        if data.startswith(beginning):
            return f"cannot be decoded: a {kind} that is damaged, or of a kind that is not known"
    return "not an image" if data else "an empty file, expected an image"


def _proportioned(image: Image.Image) -> Image.Image:
    if max(image.size) > _LONGEST * min(image.size):
        raise ImageReadError(f"{image.width} x {image.height} pixels, hardly a picture")
    return image


def _tiff(image: Any) -> Image.Image:
    """Return a TIFF as its tags say; Pillow follows them where pixels have 8 bits."""
    tags = image.tag_v2
    bits = int(tags.get(_BITS, (1,))[0])
    if tags.get(_SAMPLE_FORMAT, (1,))[0] == _SIGNED and bits < 32:
        raise ImageReadError(f"signed {bits}-bit pixels; expected unsigned ones or floats")
    if not (image.mode.startswith("I") or image.mode == "F"):
        return grey_or_rgb(_proportioned(image))
    pixels = np.asarray(_proportioned(image))
    shown = from_float(pixels) if image.mode == "F" else from_integers(pixels, min(bits, 16))
    check_not_flattened(pixels, shown)
    return Image.fromarray(255 - shown if tags.get(_PHOTOMETRIC) == _MIN_IS_WHITE else shown)


def _check_high_bytes(picture: Image.Image, coding: str) -> None:
    """Refuse colours of 16 bits that are nearly black: Pillow drops the lower 8 of them."""
    if _DEEP_COLOURS.search(coding) and int(np.asarray(picture).max()) < 16:
        raise ImageReadError(
            "16-bit pixels that would be shown nearly black; save the picture with 8 bits"
        )


def picture_size(path: str) -> tuple[int, int]:
    """Return width and height from a file's header; (0, 0) where it has none that can be read."""
    try:
        with (
            decoder_warnings(),
            open_regular(path) as stream,
            Image.open(stream, formats=_FORMATS) as image,
        ):
            return image.size
    except (OSError, Image.DecompressionBombError):
        return 0, 0


def grey_or_rgb(image: Image.Image) -> Image.Image:
    """Return a picture as 8-bit 'L' where its channels are equal, else as 'RGB'.

    Raises
    ------
    ImageReadError
        Pixels in an unusual range, NaN, or differences that would not be shown.
    """
    if image.mode == "L":
        return image
    if image.mode in {"1", "LA", "La"}:
        return image.convert("L")
    if image.mode.startswith("I") or image.mode == "F":
        pixels = np.asarray(image)
        shown = from_float(pixels) if image.mode == "F" else from_integers(pixels)
        check_not_flattened(pixels, shown)
        return Image.fromarray(shown)
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    red, green, blue = (np.asarray(rgb.getchannel(name)) for name in "RGB")
    if image.mode == "P":
        check_not_flattened(np.asarray(image), np.asarray(rgb))
    if np.array_equal(red, green) and np.array_equal(red, blue):
        return Image.fromarray(red)
    return rgb
