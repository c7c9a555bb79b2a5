from __future__ import annotations

import hashlib
import io
import sys

import numpy as np
import pytest
from PIL import Image

import embedcache
from embedcache.data.dicom import count_frames
from embedcache.data.images import decode_image
from embedcache.errors import ImageReadError, MissingExtraError

pydicom = pytest.importorskip("pydicom")


def dicom(pixels: np.ndarray, kind: str = "MONOCHROME2", *, n_frames: int = 1, **settings) -> bytes:
    """Return an uncompressed DICOM file; pixels are (frames, rows, columns[, 3])."""
    meta = pydicom.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID = pydicom.uid.UltrasoundMultiFrameImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    file = pydicom.dataset.FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    bits = 8 * pixels.dtype.itemsize
    facts = {
        "SOPClassUID": meta.MediaStorageSOPClassUID,
        "SOPInstanceUID": "1.2.3",
        "PhotometricInterpretation": kind,
        "SamplesPerPixel": 3 if pixels.ndim == 4 else 1,
        "Rows": pixels.shape[1],
        "Columns": pixels.shape[2],
        "BitsAllocated": bits,
        "BitsStored": bits,
        "HighBit": bits - 1,
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
        **({"PlanarConfiguration": 0} if pixels.ndim == 4 else {}),
        **({"NumberOfFrames": n_frames} if n_frames > 1 else {}),
        **settings,
    }
    for name, value in facts.items():
        setattr(file, name, value)
    file.PixelData = pixels.tobytes()
    stream = io.BytesIO()
    file.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


GREY = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)


def pixels(data: bytes, frame: int | None = None) -> np.ndarray:
    return np.asarray(decode_image(data, frame))


def test_eight_bit_grey_is_taken_as_it_is_and_monochrome1_is_inverted():
    assert np.array_equal(pixels(dicom(GREY)), GREY[0])
    assert np.array_equal(pixels(dicom(GREY, "MONOCHROME1")), 255 - GREY[0])


def test_colour_is_rgb_and_grey_colour_is_grey():
    colour = np.stack([GREY, 255 - GREY, GREY // 2], axis=-1)
    assert np.array_equal(pixels(dicom(colour, "RGB")), colour[0])
    assert np.array_equal(pixels(dicom(np.stack([GREY] * 3, axis=-1), "RGB")), GREY[0])


def test_stored_bits_are_the_range_unless_a_window_says_otherwise():
    stored = (GREY.astype(np.uint16) * 16)[:, :, :]  # twelve bits
    twelve = {"BitsStored": 12, "HighBit": 11}
    assert np.abs(pixels(dicom(stored, **twelve)).astype(int) - GREY[0]).max() <= 1
    window = {"WindowCenter": 1024, "WindowWidth": 2048}
    seen = pixels(dicom(stored, **twelve, **window)).astype(int)
    assert np.abs(seen - np.clip(GREY[0].astype(int) * 2, 0, 255)).max() <= 2


def test_rescale_comes_before_the_window():
    stored = (GREY.astype(np.int16) - 128) * 8
    settings = {"BitsStored": 12, "HighBit": 11, "RescaleSlope": 2, "RescaleIntercept": 100}
    plain = pixels(dicom(stored, **settings)).astype(int)
    # Without a window the range is rescaled as the values are, so nothing is to be seen of it.
    assert np.array_equal(plain, pixels(dicom(stored, BitsStored=12, HighBit=11)))
    window = {"WindowCenter": 100, "WindowWidth": 1000}  # rescaled -400 to 600: stored -250 to 250
    seen = pixels(dicom(stored, **settings, **window))[0]
    assert np.array_equal(seen == 0, stored[0, 0] <= -250)


def test_each_frame_is_a_picture_of_its_own():
    film = np.stack([GREY[0], 255 - GREY[0], GREY[0] // 2])
    data = dicom(film, n_frames=3)
    assert count_frames(data) == 3
    for number, frame in enumerate(film):
        assert np.array_equal(pixels(data, number), frame)
    with pytest.raises(ImageReadError, match="3 frames in one file; name one, as in FILE.dcm#0"):
        decode_image(data)
    with pytest.raises(ImageReadError, match="no frame 3; the file has 3, counted from 0"):
        decode_image(data, 3)


def test_a_damaged_file_and_a_missing_package_say_so(monkeypatch):
    data = dicom(GREY)
    with pytest.raises(ImageReadError, match="cannot be decoded"):
        decode_image(data[:-100])
    with pytest.raises(ImageReadError, match="cannot be read as DICOM"):
        count_frames(b"\0" * 300)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(
        MissingExtraError, match="needs the extra 'dicom'; run `pip install pydicom`"
    ):
        decode_image(data)


WIDE = np.arange(256, dtype=np.uint16).reshape(1, 16, 16) * 16  # 12 bits
TWELVE = {"BitsStored": 12, "HighBit": 11}


def lut(entries: np.ndarray, *, first: int = 0, bits: int = 16) -> pydicom.Sequence:
    item = pydicom.Dataset()
    item.LUTDescriptor = [len(entries) % 65536, first, bits]
    item.add_new("LUTData", "OW", entries.astype("<u2").tobytes())
    return pydicom.Sequence([item])


def palette(entries: np.ndarray, bits: int) -> dict:
    """Return a palette: red as given, green its half, blue nothing."""
    tables = {"Red": entries, "Green": entries // 2, "Blue": entries * 0}
    return {
        f"{name}PaletteColorLookupTable{part}": value
        for name, table in tables.items()
        for part, value in (("Descriptor", [len(table), 0, bits]), ("Data", table.tobytes()))
    }


@pytest.mark.parametrize(
    "empty",
    [
        {"WindowCenter": None, "WindowWidth": None},
        {"WindowCenter": "", "WindowWidth": ["", ""], "VOILUTFunction": ""},
        {"WindowCenter": "40", "WindowWidth": None},
        {"RescaleSlope": None, "RescaleIntercept": None},
        {"RescaleSlope": "2", "RescaleIntercept": ""},
        {"VOILUTSequence": [], "ModalityLUTSequence": []},
        {"NumberOfFrames": None},
        {"NumberOfFrames": "0"},
    ],
)
@pytest.mark.filterwarnings("ignore:A value of")
def test_what_is_present_but_empty_is_as_if_it_were_absent(empty):
    assert np.array_equal(pixels(dicom(GREY, **empty)), GREY[0])


def test_the_first_window_that_is_complete_is_the_one():
    both = {"WindowCenter": ["", "100", "9"], "WindowWidth": ["", "100", "9"]}
    one = {"WindowCenter": "100", "WindowWidth": "100"}
    assert np.array_equal(pixels(dicom(GREY, **both)), pixels(dicom(GREY, **one)))


def test_a_window_function_is_applied():
    window = {"WindowCenter": "128", "WindowWidth": "128"}
    seen = pixels(dicom(GREY, **window, VOILUTFunction="LINEAR_EXACT"))[0]
    assert np.array_equal(seen == 0, GREY[0, 0] <= 64)
    seen = pixels(dicom(GREY, **window, VOILUTFunction="SIGMOID")).astype(float)
    expected = 255 / (1 + np.exp(-4 * (GREY[0] - 128.0) / 128))
    assert np.abs(seen - expected).max() <= 0.5


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"WindowCenter": "40", "WindowWidth": "0"}, "its window has the width 0"),
        ({"WindowCenter": "40", "WindowWidth": "-5"}, "its window has the width -5"),
        ({"WindowCenter": "9999", "WindowWidth": "2"}, "but would be shown alike"),
        (
            {"WindowCenter": "4", "WindowWidth": "5", "VOILUTFunction": "CUBIC"},
            "VOI LUT function CUBIC; expected LINEAR",
        ),
        (
            {"RescaleSlope": "0", "RescaleIntercept": "0"},
            "its RescaleSlope is 0, which shows nothing",
        ),
        ({"RescaleSlope": ["1", "2"], "RescaleIntercept": "0"}, "its RescaleSlope is"),
        ({"PresentationLUTShape": "INVERSE"}, "contradict each other"),
        ({"PixelPresentation": "COLOR"}, "supplemental palette"),
        ({"PhotometricInterpretation": "YBR_PARTIAL_422"}, "photometric interpretation YBR_PART"),
        ({"PhotometricInterpretation": "RGB"}, "RGB with 1 samples a pixel"),
        ({"HighBit": 3}, "8 stored bits of 8 with high bit 3"),
        ({"Rows": 8}, "pixels of 2 frames, but its Number of Frames says 1"),
        ({"NumberOfFrames": "-1"}, "Number of Frames is no number"),
        ({"BitsStored": None}, "header has no BitsStored"),
        ({"VOILUTSequence": lut(np.arange(9), bits=7)}, "with 7 bits an entry"),
        ({"VOILUTSequence": lut(np.arange(99) * 9, bits=8)}, "has the entry 882; expected 8 bits"),
    ],
)
def test_what_shows_nothing_or_contradicts_itself_is_refused_in_one_line(values, reason):
    with pytest.raises(ImageReadError, match=reason) as caught:
        decode_image(dicom(GREY, **values))
    assert str(caught.value).isprintable()
    assert "NoneType" not in str(caught.value)


def test_a_negative_slope_turns_the_picture_round_and_its_window_too():
    slope = {"RescaleSlope": "-1", "RescaleIntercept": "255"}
    assert np.array_equal(pixels(dicom(GREY, **slope)), 255 - GREY[0])
    window = {"WindowCenter": "128", "WindowWidth": "256"}
    assert np.array_equal(pixels(dicom(GREY, **slope, **window)), 255 - GREY[0])


@pytest.mark.parametrize("kind", ["ModalityLUTSequence", "VOILUTSequence"])
def test_a_table_is_applied(kind):
    falling = lut((255 - np.arange(256)) * 257)
    assert np.array_equal(pixels(dicom(GREY, **{kind: falling})), 255 - GREY[0])
    middle = lut(np.arange(0, 256, 2), first=64, bits=8)  # 64 to 191; beyond are its ends
    expected = np.clip((GREY[0].astype(int) - 64) * 2, 0, 254)
    seen = pixels(dicom(GREY, **{kind: middle}))
    whole = 254 if kind == "ModalityLUTSequence" else 255
    assert np.array_equal(seen, np.rint(expected / whole * 255))


def test_a_window_goes_before_a_voi_table_which_needs_values_of_its_whole_range():
    window = {"WindowCenter": "128", "WindowWidth": "256"}
    table = lut((255 - np.arange(256)) * 257)
    assert np.array_equal(pixels(dicom(GREY, **window, VOILUTSequence=table)), GREY[0])
    with pytest.raises(ImageReadError, match="values from 0 to 255 of 0 to 65535 would be shown"):
        decode_image(dicom(GREY, VOILUTSequence=lut(np.arange(256))))


def test_enhanced_files_state_how_each_frame_is_shown():
    group = pydicom.Dataset()
    window = pydicom.Dataset()
    window.WindowCenter, window.WindowWidth = "128", "128"
    group.FrameVOILUTSequence = [window]
    film = np.stack([GREY[0], GREY[0]])
    groups = {"PerFrameFunctionalGroupsSequence": [pydicom.Dataset(), group]}
    data = dicom(film, n_frames=2, **groups)
    alone = pixels(dicom(GREY, WindowCenter="128", WindowWidth="128"))
    assert np.array_equal(pixels(data, 0), GREY[0])
    assert np.array_equal(pixels(data, 1), alone)


@pytest.mark.parametrize(
    ("entries", "bits"),
    [
        (np.arange(256, dtype="u1"), 8),
        (np.arange(256, dtype="<u2"), 8),  # 8 bits in words
        (np.arange(256, dtype="<u2"), 16),  # whatever the descriptor says
        (np.arange(256, dtype="<u2") * 257, 16),
    ],
)
def test_palettes_become_colours(entries, bits):
    data = dicom(GREY, "PALETTE COLOR", **palette(entries, bits))
    picture = np.stack([GREY[0], GREY[0] // 2, GREY[0] * 0], axis=-1)
    assert np.abs(pixels(data).astype(int) - picture).max() <= (bits == 16)


def test_segmented_palettes_are_read_and_a_missing_one_is_not_made_up():
    line = bytes([0, 1, 0, 1, 255, 255])  # one entry 0, then a line to 255 over 255 entries
    segments = {
        f"{prefix}{name}PaletteColorLookupTable{part}": value
        for name in ("Red", "Green", "Blue")
        for prefix, part, value in (("", "Descriptor", [256, 0, 8]), ("Segmented", "Data", line))
    }
    assert np.array_equal(pixels(dicom(GREY, "PALETTE COLOR", **segments)), GREY[0])
    with pytest.raises(ImageReadError, match="the colour palette has no descriptor"):
        decode_image(dicom(GREY, "PALETTE COLOR"))


def test_colours_of_sixteen_bits_are_scaled_not_cut():
    colour = np.stack([GREY, 255 - GREY, GREY // 2], axis=-1)
    assert np.array_equal(pixels(dicom(colour.astype(np.uint16) * 257, "RGB")), colour[0])


def test_values_beyond_the_stored_bits_are_refused_but_for_an_overlay_in_them():
    with pytest.raises(ImageReadError, match="values from 0 to 4080 in 8 stored bits; correct"):
        decode_image(dicom(WIDE, BitsStored=8, HighBit=7))
    data = dicom(WIDE | 0x8000, **TWELVE)
    with pytest.raises(ImageReadError, match="in 12 stored bits"):
        decode_image(data)
    marked = pydicom.dcmread(io.BytesIO(data))
    marked.add_new((0x6000, 0x0102), "US", 15)
    stream = io.BytesIO()
    marked.save_as(stream)
    assert np.array_equal(pixels(stream.getvalue()), pixels(dicom(WIDE, **TWELVE)))


def test_few_of_the_stored_bits_without_a_window_are_refused_and_padding_does_not_count():
    message = "values from 0 to 255 of 0 to 65535 would be shown nearly black .* write a window"
    dark = GREY.astype(np.uint16)
    with pytest.raises(ImageReadError, match=message):
        decode_image(dicom(dark))
    padded = np.where(dark == 7, 65535, dark)
    with pytest.raises(ImageReadError, match="nearly black"):
        decode_image(dicom(padded, PixelPaddingValue=65535))
    window = {"WindowCenter": "128", "WindowWidth": "256"}
    assert np.array_equal(pixels(dicom(dark, **window)), GREY[0])


def test_a_picture_that_is_shown_with_few_levels_is_noted():
    notes: list[str] = []
    decode_image(dicom(GREY // 64), on_note=notes.append)  # stored so
    assert not notes
    flat = {"WindowCenter": "32768", "WindowWidth": "65536"}
    decode_image(dicom(GREY.astype(np.uint16) * 4, **flat), on_note=notes.append)
    assert notes == ["shown with grey levels from 0 to 4 only"]
    with pytest.warns(UserWarning, match="shown with grey levels from 0 to 4 only"):
        decode_image(dicom(GREY.astype(np.uint16) * 4, **flat))


def test_float_pixels_are_read_as_those_of_other_files():
    values = (GREY / 255).astype(np.float32)

    def saved(kind: str, **more) -> bytes:
        file = pydicom.dcmread(io.BytesIO(dicom(GREY, kind, **more)))
        del file.PixelData, file.BitsStored, file.HighBit, file.PixelRepresentation
        file.BitsAllocated, file.FloatPixelData = 32, values.tobytes()
        stream = io.BytesIO()
        file.save_as(stream)
        return stream.getvalue()

    assert np.array_equal(pixels(saved("MONOCHROME2")), GREY[0])
    assert np.array_equal(pixels(saved("MONOCHROME1")), 255 - GREY[0])
    with pytest.raises(ImageReadError, match="float pixels with a rescale, window or table"):
        decode_image(saved("MONOCHROME2", WindowCenter="1", WindowWidth="2"))


@pytest.mark.parametrize(
    ("syntax", "packages"),
    [
        ("JPEGLosslessSV1", "pylibjpeg pylibjpeg-libjpeg"),
        ("JPEGLSLossless", "pyjpegls"),
        ("HTJ2KLossless", "pylibjpeg pylibjpeg-openjpeg"),
        ("MPEG4HP41", None),
    ],
)
def test_a_missing_decoder_is_named_with_what_to_install(syntax, packages):
    file = pydicom.dcmread(io.BytesIO(dicom(GREY)))
    file.file_meta.TransferSyntaxUID = getattr(pydicom.uid, syntax)
    file.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8\xff\xd9"])
    file["PixelData"].is_undefined_length = True
    stream = io.BytesIO()
    file.save_as(stream)
    wanted = f"`pip install {packages}`, then" if packages else "export its frames as pictures"
    with pytest.raises(ImageReadError, match=wanted):
        decode_image(stream.getvalue())


def test_undeclared_frames_of_an_encoded_film_are_refused():
    def jpeg(picture: np.ndarray) -> bytes:
        stream = io.BytesIO()
        Image.fromarray(picture).save(stream, "JPEG", quality=95)
        return stream.getvalue()

    file = pydicom.dcmread(io.BytesIO(dicom(GREY)))
    file.file_meta.TransferSyntaxUID = pydicom.uid.JPEGBaseline8Bit
    file.PixelData = pydicom.encaps.encapsulate([jpeg(GREY[0]), jpeg(255 - GREY[0])])
    file["PixelData"].is_undefined_length = True
    stream = io.BytesIO()
    file.save_as(stream)
    with pytest.raises(ImageReadError, match="pixels of 2 frames, but its Number of Frames says 1"):
        decode_image(stream.getvalue())


def test_dicom_files_without_a_picture_or_a_preamble_are_refused_as_such():
    data = dicom(GREY)
    for bare in (data[132:], data[data.index(b"\x08\0\x16\0") :]):
        for read in (decode_image, count_frames):
            with pytest.raises(ImageReadError, match="'DICM' is not at byte 128"):
                read(bare)
    report = pydicom.dcmread(io.BytesIO(data))
    report.SOPClassUID = pydicom.uid.BasicTextSRStorage
    del report.PixelData, report.Rows
    stream = io.BytesIO()
    report.save_as(stream)
    for read in (decode_image, count_frames):
        with pytest.raises(ImageReadError, match=r"without a picture \(Basic Text SR Storage\)"):
            read(stream.getvalue())


def test_what_is_cited_of_a_header_is_one_line():
    data = dicom(GREY, NumberOfFrames="1").replace(b"MONOCHROME2", b"MONO\nHROME2")
    with pytest.raises(ImageReadError, match=r"photometric interpretation MONO\\nHROME2; expected"):
        decode_image(data)


def test_frames_are_rows_of_a_manifest_encoded_once_and_checked(tmp_path, command):
    film = np.stack([GREY[0], 255 - GREY[0], GREY[0] // 2])
    (tmp_path / "img" / "heart").mkdir(parents=True)
    (tmp_path / "img" / "brain").mkdir()
    (tmp_path / "img" / "heart" / "P1.dcm").write_bytes(dicom(film, n_frames=3))
    (tmp_path / "img" / "brain" / "P2.dcm").write_bytes(dicom(GREY))
    Image.fromarray(GREY[0]).save(tmp_path / "img" / "brain" / "P3.png")
    answer = command("manifest", "folder", "--root", "img", "--patient", "(P[0-9])")
    assert answer.code == 0, answer.err
    assert command("manifest", "check").code == 0
    assert ": 5 images = 0 cached + 5 encoded + 0 failed" in command("extract", "-m", "pixels").out
    assert ": 5 images = 5 cached + 0 encoded + 0 failed" in command("extract", "-m", "pixels").out
    project = embedcache.open(tmp_path)
    rows = project.embeddings("pixels", where="label = 'heart'")
    assert rows.image_id == ("heart/P1.dcm#0", "heart/P1.dcm#1", "heart/P1.dcm#2")
    assert np.allclose(rows.X[0] + rows.X[1], 1.0, atol=1 / 255)
    keys = project.images().to_pydict()["sha256"]
    digest = hashlib.sha256((tmp_path / "img" / "brain" / "P2.dcm").read_bytes()).hexdigest()
    assert len(set(keys)) == 5
    assert digest in keys
    (tmp_path / "img" / "brain" / "P4.dcm").write_bytes(b"no DICOM")
    answer = command("manifest", "folder", "--root", "img", "--patient", "(P[0-9])", "-o", "b.csv")
    assert (answer.code, "P4.dcm (cannot be read as DICOM" in answer.err) == (3, True)
    assert (tmp_path / "b.csv").read_bytes() == (tmp_path / "data_manifest.csv").read_bytes()
