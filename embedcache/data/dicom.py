"""One frame of a DICOM file to 8-bit pixels, as a viewer shows it (DICOM PS3.3 and PS3.5).

What a file leaves open, or contradicts itself in, is refused in one line: nothing is guessed.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from embedcache.data.decoders import decoder_warnings, one_line, why_undecodable
from embedcache.data.dicom_display import display_facts, float_pixels, grey_pixels, stored_range
from embedcache.data.dicom_tables import palette
from embedcache.data.pixel_ranges import Pixels, check_not_flattened, from_integers
from embedcache.errors import ImageReadError, MissingExtraError

_GREY: Final = ("MONOCHROME1", "MONOCHROME2")
_COLOUR: Final = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT")
_KINDS: Final = (*_GREY, *_COLOUR, "PALETTE COLOR")
_PIXELS: Final = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_NEEDED: Final = (
    *("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated"),
    *("BitsStored", "PixelRepresentation"),  # of integer pixels
)
# Packages that decode what pydicom and Pillow alone cannot, by a part of the encoding's name.
_PACKAGES: Final = {
    "JPEG-LS": "pyjpegls",
    "JPEG 2000": "pylibjpeg pylibjpeg-openjpeg",
    "JPEG": "pylibjpeg pylibjpeg-libjpeg",
}
_BOX: Final = b"\0\0\0\x0cjP"
_FRAME_STARTS: Final = (b"\xff\xd8", b"\xff\x4f", _BOX[:2])  # of JPEG, JPEG 2000, and that boxed
# A header without the 128 bytes and 'DICM' before it: its group 0002 or 0008, of any byte order,
# with the type of its first element or without.
_BARE: Final = re.compile(
    rb"([\x02\x08]\0.\0|\0[\x02\x08]\0.)(UL|OB|UI|CS|SH|LO|DA)|[\x02\x08]\0.\0.\0\0\0", re.DOTALL
)


def is_dicom(data: bytes) -> bool:
    """Tell whether bytes are those of a DICOM file, also of one without its first 132 bytes."""
    return data[128:132] == b"DICM" or _BARE.match(data) is not None


def count_frames(data: bytes) -> int:
    """Return how many frames a DICOM file holds.

    Raises
    ------
    ImageReadError
        No DICOM file, or one without pictures.
    """
    with decoder_warnings(), _in_one_line():  # warnings are for who decodes it
        header = _read(data, stop_before_pixels=True)
        if header.get("Rows") is None:
            raise _without_pixels(header)
        return _n_frames(header)


def decode_dicom(data: bytes, frame: int | None) -> Pixels:
    """Return a frame as a viewer shows it, shape (height, width) or (height, width, 3).

    Parameters
    ----------
    data
        All bytes of the file.
    frame
        Number of the frame, from 0; None for the only one.

    Raises
    ------
    ImageReadError
        What is stored, or how it is to be shown, cannot be told.
    MissingExtraError
        pydicom is not installed.
    """
    with _in_one_line():
        return _decode(_read(data), frame)


@contextmanager
def _in_one_line() -> Iterator[None]:
    """Make one plain line of whatever a foreign file makes the parser and the decoders raise.

    A header is parsed when it is asked for, and what is cited from it may hold anything.
    """
    try:
        yield
    except MissingExtraError:
        raise
    except ImageReadError as error:
        raise ImageReadError(one_line(str(error))) from None
    except Exception as error:
        raise ImageReadError(f"cannot be decoded: {why_undecodable(error)}") from None


def _read(data: bytes, **settings: bool) -> Any:
    try:
        import pydicom
    except ImportError:
        raise MissingExtraError(
            "a DICOM file needs the extra 'dicom'; run `pip install pydicom`"
        ) from None
    if data[128:132] != b"DICM":
        raise ImageReadError(
            "cannot be read as DICOM: 'DICM' is not at byte 128; write the file anew with its "
            "preamble and file meta information"
        )
    try:
        return pydicom.dcmread(io.BytesIO(data), **settings)
    except Exception as error:  # whatever a foreign file makes the parser raise
        raise ImageReadError(f"cannot be read as DICOM: {why_undecodable(error)}") from None


def _without_pixels(header: Any) -> ImageReadError:
    kind = header.get("SOPClassUID")
    return ImageReadError(f"a DICOM file without a picture ({kind.name if kind else 'no class'})")


def _decode(header: Any, frame: int | None) -> Pixels:
    is_float = _check_header(header)
    n_frames = _n_frames(header)
    if frame is None and n_frames > 1:
        raise ImageReadError(f"{n_frames} frames in one file; name one, as in FILE.dcm#0")
    if (frame or 0) >= n_frames:
        raise ImageReadError(f"no frame {frame}; the file has {n_frames}, counted from 0")
    kind, stored = header.PhotometricInterpretation, _stored(header, frame or 0, n_frames)
    is_little_endian = bool(header.file_meta.TransferSyntaxUID.is_little_endian)
    if kind == "PALETTE COLOR":
        shown = palette(header, is_little_endian=is_little_endian)(stored).astype(np.uint8)
    elif kind in _COLOUR:
        is_plain = header.BitsStored == 8
        shown = stored.astype(np.uint8) if is_plain else from_integers(stored, header.BitsStored)
    else:
        facts = display_facts(header, frame or 0)
        show = float_pixels if is_float else partial(grey_pixels, is_little_endian=is_little_endian)
        shown = show(facts, stored)
    check_not_flattened(stored, shown)
    return shown


def _check_header(header: Any) -> bool:
    """Refuse a header that contradicts itself or is incomplete; tell whether pixels are floats."""
    names = [name for name in _PIXELS if name in header]
    if not names:
        raise _without_pixels(header)
    is_float = names != ["PixelData"]
    for name in _NEEDED[:5] if is_float else _NEEDED:
        if header.get(name) is None:
            raise ImageReadError(f"its DICOM header has no {name}")
    kind, n_samples = header.PhotometricInterpretation, header.SamplesPerPixel
    if kind not in _KINDS:
        raise ImageReadError(f"photometric interpretation {kind}; expected {', '.join(_KINDS)}")
    if n_samples != (3 if kind in _COLOUR else 1):
        raise ImageReadError(f"{kind} with {n_samples} samples a pixel")
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and header.Rows * header.Columns > 2 * limit:  # as Pillow does
        raise ImageReadError(f"unreasonably large: {header.Columns} x {header.Rows} pixels")
    if is_float:
        return True
    bits, high = header.BitsStored, header.get("HighBit")
    if not 1 <= bits <= header.BitsAllocated or high not in {None, bits - 1}:
        raise ImageReadError(
            f"{bits} stored bits of {header.BitsAllocated} with high bit {high}; expected the "
            f"lowest bits, high bit {bits - 1}"
        )
    if kind in _COLOUR and (header.PixelRepresentation or bits not in {8, 16}):
        raise ImageReadError(f"colours of {bits} bits, expected 8 or 16, unsigned")
    return False


def _n_frames(header: Any) -> int:
    try:
        n_frames = int(header.get("NumberOfFrames") or 1)
    except (TypeError, ValueError):
        n_frames = 0
    if n_frames < 1:
        raise ImageReadError("its Number of Frames is no number from 1 upwards")
    return n_frames


def _stored(header: Any, index: int, n_frames: int) -> NDArray[Any]:
    """Return the stored values of a frame, colours as RGB, without the bits that are not used."""
    from pydicom.encaps import get_frame
    from pydicom.uid import JPEG2000TransferSyntaxes, JPEGLSTransferSyntaxes

    decoder = _decoder(header)
    syntax = header.file_meta.TransferSyntaxUID
    _check_length(header, n_frames)
    if syntax in JPEG2000TransferSyntaxes:
        _check_boxes(get_frame(header.PixelData, index, number_of_frames=n_frames))
    try:
        # Unused bits are looked at before they are put away.
        stored, facts = decoder.as_array(header, index=index, correct_unused_bits=False)
    except RuntimeError as error:  # of all its decoders
        if re.search("Pillow (does not support|cannot decode)", str(error)):
            raise _without_decoder(syntax) from None
        reason = why_undecodable(error).partition("plugins: ")
        raise ImageReadError(f"cannot be decoded: {reason[2] or reason[0]}") from None
    kind = header.PhotometricInterpretation
    if kind in _COLOUR and facts["photometric_interpretation"] != "RGB":
        raise ImageReadError(f"{kind} in the encoding {syntax.name}; expected JPEG 2000")
    stored = np.asarray(stored, stored.dtype.newbyteorder("="))
    if stored.dtype.kind == "f":
        return stored
    if syntax not in {*JPEG2000TransferSyntaxes, *JPEGLSTransferSyntaxes}:
        stored = _without_unused_bits(header, stored)
    low, high = stored_range(header)
    if stored.min() < low or stored.max() > high:
        raise _beyond(header, stored)
    return stored


def _beyond(header: Any, stored: NDArray[Any]) -> ImageReadError:
    return ImageReadError(
        f"values from {stored.min()} to {stored.max()} in {header.BitsStored} stored bits; correct "
        "BitsStored"
    )


def _without_unused_bits(header: Any, stored: NDArray[Any]) -> NDArray[Any]:
    """Return values with their sign in the bits above the stored ones, PS3.5 8.1.1."""
    shift = 8 * stored.dtype.itemsize - int(header.BitsStored)
    used = np.right_shift(np.left_shift(stored, shift), shift)
    if not np.array_equal(used, stored):
        unused = stored.view(f"u{stored.dtype.itemsize}") >> int(header.BitsStored)
        has_overlay = any(  # which old files keep in these bits
            (group, 0x0102) in header and header[group, 0x0102].value
            for group in range(0x6000, 0x6020, 2)
        )
        if unused.any() and not has_overlay:
            raise _beyond(header, stored)
    return np.asarray(used)


def _decoder(header: Any) -> Any:
    """Return pydicom's decoder of a file's encoding, if what it needs is installed."""
    from pydicom.pixels import get_decoder

    syntax = header.file_meta.get("TransferSyntaxUID")
    if not syntax:
        raise ImageReadError("its DICOM header names no transfer syntax")
    try:
        decoder = get_decoder(syntax)
    except RuntimeError:  # none is known
        raise ImageReadError(
            f"encoded as {syntax.name}, which is not decoded; export its frames as pictures"
        ) from None
    if not decoder.is_available:
        raise _without_decoder(syntax)
    return decoder


def _without_decoder(syntax: Any) -> ImageReadError:
    packages = next(
        (value for part, value in _PACKAGES.items() if part in syntax.name), "python-gdcm"
    )
    return ImageReadError(
        f"encoded as {syntax.name}, for which no decoder is installed; run `pip install "
        f"{packages}`, then `embedcache extract --retry-failed`"
    )


def _check_length(header: Any, n_frames: int) -> None:
    """Refuse pixel data of more frames than the header names, which would be left out silently."""
    (name,) = (name for name in _PIXELS if name in header)
    data = header[name].value
    n_stored = n_frames
    if header.file_meta.TransferSyntaxUID.is_encapsulated:
        n_stored = _encoded_frames(header, data) or n_frames
    else:
        size = header.Rows * header.Columns * header.SamplesPerPixel * header.BitsAllocated / 8
        if header.PhotometricInterpretation == "YBR_FULL_422":
            size *= 2 / 3
        if len(data) > math.ceil(size * n_frames) + 1:  # a byte that makes the length even
            n_stored = max(n_frames, int(len(data) / size))
    if n_stored != n_frames:
        raise ImageReadError(
            f"pixels of {n_stored} frames, but its Number of Frames says {n_frames}; correct it"
        )


def _check_boxes(frame: bytes) -> None:
    """Refuse a boxed JPEG 2000 file whose boxes lead nowhere: pydicom would look for ever."""
    place = 12 if frame.startswith(_BOX) else len(frame)
    while place < len(frame) and frame[place + 4 : place + 8] != b"jp2c":
        length = int.from_bytes(frame[place : place + 4], "big")
        if length < 8:
            raise ImageReadError("cannot be decoded: a box of its JPEG 2000 file has no length")
        place += length


def _encoded_frames(header: Any, data: bytes) -> int:
    """Return how many encoded frames there are; 0 where that cannot be told."""
    from pydicom.encaps import parse_basic_offsets, parse_fragments
    from pydicom.uid import RLELossless

    stream = io.BytesIO(data)
    parse_basic_offsets(stream)
    n_fragments, places = parse_fragments(stream)
    if header.file_meta.TransferSyntaxUID == RLELossless:
        return int(n_fragments)  # PS3.5 A.4.2: each frame is one fragment
    return sum(data[place + 8 : place + 10] in _FRAME_STARTS for place in places)
