from __future__ import annotations

import hashlib
import io
import sys

import numpy as np
import pytest
from PIL import Image

import embedcache
from embedcache.data.images import count_frames, decode_image
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
