"""Any bytes give an 8-bit picture or one plain line; nothing else comes out of the decoders."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from embedcache.data.dicom import count_frames
from embedcache.data.images import decode_image
from embedcache.errors import ImageReadError

pydicom = pytest.importorskip("pydicom")

GREY = np.random.default_rng(0).integers(0, 256, (16, 24), dtype=np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 256, (16, 24, 3), dtype=np.uint8)


def saved(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def dicom(*, syntax: str = pydicom.uid.ExplicitVRLittleEndian, **values) -> bytes:
    file = pydicom.dataset.FileDataset(
        None, {}, file_meta=pydicom.dataset.FileMetaDataset(), preamble=b"\0" * 128
    )
    file.file_meta.TransferSyntaxUID = syntax
    file.file_meta.MediaStorageSOPClassUID = pydicom.uid.UltrasoundImageStorage
    file.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    facts = {
        "SOPClassUID": pydicom.uid.UltrasoundImageStorage,
        "SOPInstanceUID": "1.2.3",
        "PhotometricInterpretation": "MONOCHROME2",
        "SamplesPerPixel": 1,
        "Rows": 16,
        "Columns": 24,
        "BitsAllocated": 8,
        "BitsStored": 8,
        "HighBit": 7,
        "PixelRepresentation": 0,
        "PixelData": GREY.tobytes(),
    }
    for name, value in {**facts, **values}.items():
        setattr(file, name, value)
    if syntax.is_encapsulated:
        file["PixelData"].is_undefined_length = True
    stream = io.BytesIO()
    file.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def lut(name: str, entries: np.ndarray) -> dict:
    item = pydicom.Dataset()
    item.LUTDescriptor, item.LUTData = [len(entries), 0, 16], entries.astype("<u2").tobytes()
    item["LUTData"].VR = "OW"
    return {name: pydicom.Sequence([item])}


def sample_files() -> dict[str, bytes]:
    grey, colour = Image.fromarray(GREY), Image.fromarray(COLOUR)
    palette = {
        f"{name}PaletteColorLookupTable{part}": value
        for name in ("Red", "Green", "Blue")
        for part, value in (("Descriptor", [256, 0, 8]), ("Data", bytes(range(256))))
    }
    twelve = {"BitsAllocated": 16, "BitsStored": 12, "HighBit": 11}
    twelve["PixelData"] = (GREY.astype("<u2") * 16).tobytes()
    encoded = {"JPEG": pydicom.uid.JPEGBaseline8Bit, "JPEG2000": pydicom.uid.JPEG2000Lossless}
    return {
        **{kind: saved(grey, kind) for kind in ("PNG", "TIFF", "BMP", "GIF", "PPM")},
        **{f"{kind} colour": saved(colour, kind) for kind in ("JPEG", "WEBP", "JPEG2000", "TIFF")},
        "PNG palette": saved(colour.quantize(16), "PNG", transparency=b"\1\2"),
        "PNG 16": saved(Image.fromarray(GREY.astype(np.uint16) * 257), "PNG"),
        "TIFF float": saved(Image.fromarray((GREY / 255).astype(np.float32)), "TIFF"),
        "TIFF lzw": saved(colour, "TIFF", compression="tiff_lzw"),
        "JPEG CMYK": saved(colour.convert("CMYK"), "JPEG"),
        "DICOM": dicom(WindowCenter=["", "100"], WindowWidth=["", "200"]),
        "DICOM 12": dicom(**twelve, **lut("VOILUTSequence", np.arange(4096) * 16)),
        "DICOM LUT": dicom(**lut("ModalityLUTSequence", np.arange(256) * 257)),
        "DICOM palette": dicom(PhotometricInterpretation="PALETTE COLOR", **palette),
        "DICOM signed": dicom(PixelRepresentation=1, RescaleSlope="2", RescaleIntercept="-1"),
        **{
            f"DICOM {kind}": dicom(
                syntax=syntax, PixelData=pydicom.encaps.encapsulate([saved(grey, kind)])
            )
            for kind, syntax in encoded.items()
        },
    }


FILES = sample_files()


def decoded(data: bytes) -> np.ndarray | str:
    """Return the picture, or the line that says why there is none."""
    try:
        picture = decode_image(data, on_note=check_line)
    except ImageReadError as error:
        check_line(str(error))
        return str(error)
    assert picture.mode in {"L", "RGB"}
    return np.asarray(picture)


def check_line(text: str) -> None:
    assert text
    assert text.isprintable()
    for word in ("NoneType", "object has no", "operand", "'<'", "not subscriptable"):
        assert word not in text


@pytest.mark.parametrize("name", FILES)
def test_the_files_that_are_damaged_below_are_whole(name):
    assert not isinstance(decoded(FILES[name]), str)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_any_bytes_give_a_picture_or_one_plain_line(data):
    whole = FILES[data.draw(st.sampled_from(sorted(FILES)))]
    damaged = bytearray(
        whole[: data.draw(st.integers(0, len(whole)))] if data.draw(st.booleans()) else whole
    )
    for place, value in data.draw(
        st.lists(st.tuples(st.integers(0, len(whole)), st.integers(0, 255)), max_size=4)
    ):
        if place < len(damaged):
            damaged[place] = value
    decoded(bytes(damaged))
    try:
        assert count_frames(bytes(damaged)) > 0
    except ImageReadError as error:
        check_line(str(error))


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([data[:8] for data in FILES.values()]), st.binary(max_size=300))
def test_random_bytes_behind_any_beginning_give_a_picture_or_one_plain_line(beginning, rest):
    decoded(beginning + rest)
    decoded(b"\0" * 128 + b"DICM" + rest)


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_refused_or_loses_nothing(name):
    whole = FILES[name]
    picture = decoded(whole)
    for cut in np.linspace(0, len(whole) - 1, 24).astype(int):
        part = decoded(whole[:cut])
        assert isinstance(part, str) or np.array_equal(part, picture), cut
