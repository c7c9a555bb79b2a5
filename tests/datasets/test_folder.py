"""Tests of what is taken from a folder of images, and of what is left out and named."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from unittest import mock

import pytest
from PIL import Image

from embedcache.data.images import split_frame
from embedcache.datasets.folder import FolderRows, folder_rows
from embedcache.errors import ManifestError


def images(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4)).save(root / name)


def test_a_folder_of_classes_with_patients_in_the_names(tmp_path):
    images(tmp_path, "brain/P1_a.png", "brain/deep/P2_b.jpg", "femur/P1_c.bmp")
    (tmp_path / "brain" / "._P1_a.png").write_bytes(b"")
    (tmp_path / "brain" / "notes.txt").write_text("no image")
    rows = folder_rows(tmp_path, patient=r"(P\d+)_", cohort="mine", prefix="X-").rows
    assert [(r["image_id"], r["label"], r["patient_id"], r["cohort"]) for r in rows] == [
        ("brain/P1_a.png", "brain", "X-P1", "mine"),
        ("brain/deep/P2_b.jpg", "brain", "X-P2", "mine"),
        ("femur/P1_c.bmp", "femur", "X-P1", "mine"),
    ]
    named = folder_rows(tmp_path, patient=r"P(?P<patient>\d+)_").rows
    assert {row["patient_id"] for row in named} == {"1", "2"}
    assert {row["cohort"] for row in named} == {tmp_path.name}
    assert folder_rows(tmp_path, patient="P[0-9]").rows[0]["patient_id"] == "P1"


@pytest.mark.parametrize(
    ("names", "patient", "message"),
    [
        (["P1.png"], "P1", "image 'P1.png' lies in no class folder; expected"),
        (["a/P1.png", "a/Q.png"], r"P\d", "'P.d' finds no patient in 'a/Q.png'; it must find one"),
        (["a/P1_.png", "a/Q_.png"], r"(P\d)?_", "finds no patient in 'a/Q_.png'"),
        (["a/P1_.png", "a/Q_.png"], r"(?P<patient>P\d)?_", "finds no patient in 'a/Q_.png'"),
        (["a/P1.png", "a/Q.png"], r"\d*", "finds no patient in 'a/P1.png'"),
        (["a/P1.png"], "(", "is no regular expression"),
        ([], "P", "no images"),
    ],
)
def test_a_folder_that_cannot_be_read_says_why(tmp_path, names, patient, message):
    images(tmp_path, *names)
    with pytest.raises(ManifestError, match=message):
        folder_rows(tmp_path, patient=patient)
    with pytest.raises(ManifestError, match="no such folder"):
        folder_rows(tmp_path / "nowhere", patient="x")


def left_out(rows: FolderRows) -> dict[str, list[str]]:
    kinds: dict[str, list[str]] = {}
    for item in rows.left_out:
        kinds.setdefault(item.kind, []).append(item.path)
    return kinds


def paths(rows: FolderRows) -> list[str]:
    return [row["path"] for row in rows.rows]


def test_files_of_servers_and_systems_are_left_out_and_named(tmp_path):
    hidden = ["a/.AppleDouble/P1.png", "a/@eaDir/P1.png", "__MACOSX/a/P1.png", ".t/P1.png"]
    images(tmp_path, "a/P1.png", "b/P2.png", "$RECYCLE.BIN/P3.png", "P4.png", *hidden)
    (tmp_path / "a" / "._P1.png").write_bytes(b"")
    (tmp_path / "a" / "Thumbs.db").write_bytes(b"")
    rows = folder_rows(tmp_path, patient=r"P\d")
    assert paths(rows) == ["a/P1.png", "b/P2.png"]
    assert left_out(rows) == {
        "no class": ["P4.png"],
        "hidden": [
            *("$RECYCLE.BIN/", ".t/", "__MACOSX/", "a/.AppleDouble/"),
            *("a/._P1.png", "a/@eaDir/"),
        ],
        "no image": ["a/Thumbs.db"],
    }


@pytest.mark.parametrize(
    "mask",
    [
        *("a/P1 (1)_mask.png", "a/P1 (1)_mask_1.png", "a/P1 (1)-Seg.tif", "a/P1 (1)_label.bmp"),
        *("a/mask_P1 (1).png", "a/masks/P1 (1).png", "a_masks/P1 (1).png", "masks/a/P1 (1).png"),
        *("a/P1 (1)_annotation.png", "a/gt/P1 (1)_gt.png", "a/P1 (1) (mask).png"),
        *("a/P1 (1)_msk.png", "a/P1 (1)_lbl.png", "a/P1 (1)_bin.png", "a/labelsTr/P1 (1).png"),
    ],
)
def test_a_mask_beside_its_image_is_left_out_with_the_name_of_the_image(tmp_path, mask):
    images(tmp_path, "a/P1 (1).png", "b/P2.png", mask)
    rows = folder_rows(tmp_path, patient=r"P\d")
    assert paths(rows) == ["a/P1 (1).png", "b/P2.png"]
    assert [(i.kind, i.path, i.reason) for i in rows.left_out] == [
        ("mask", mask, "belongs to 'a/P1 (1).png'")
    ]


def test_what_is_only_named_like_a_mask_stays_and_is_noted(tmp_path):
    images(tmp_path, "a/P1_roi.png", "a/P1_roi_mask.png", "label 1/P2.png", "label 2/P2.png")
    rows = folder_rows(tmp_path, patient=r"P\d")
    assert paths(rows) == ["a/P1_roi.png", "label 1/P2.png", "label 2/P2.png"]
    assert any("1 images are named like masks, but no image lies" in note for note in rows.notes)


def test_an_unreadable_file_costs_itself_alone(tmp_path):
    images(tmp_path, "a/P1.png", "b/P2.png", "a/P3_folder.png/P3.png", "a/P6 .png")
    folder = tmp_path / "a"
    (folder / "P4.png").write_bytes(b"")
    (folder / "P5.dcm").write_bytes(b"no DICOM")
    os.mkfifo(folder / "P7.png")
    (folder / "P8.png").symlink_to("nowhere")
    (tmp_path / "b" / "again").symlink_to(folder)
    shutil.copy(folder / "P1.png", folder / "P9\\.png")
    shutil.copy(folder / "P1.png", os.fsencode(folder) + b"/P\xff.png")
    (folder / "P1.png").rename(folder / "P1.jfif")
    shutil.copy(folder / "P1.jfif", folder / "P0_IM_0001")
    rows = folder_rows(tmp_path, patient=r"P\d")
    assert paths(rows) == [
        *("a/P0_IM_0001", "a/P1.jfif", "a/P3_folder.png/P3.png", "a/P6 .png", "b/P2.png"),
    ]
    assert {item.path: item.reason for item in rows.left_out} == {
        "a/P4.png": "an empty file, expected an image",
        "a/P5.dcm": mock.ANY,  # in pydicom's words
        "a/P7.png": "a named pipe, not a file",
        "a/P8.png": "No such file or directory",
        "a/P9\\.png": "a backslash in its path; rename it",
        "a/P\udcff.png": "its name is not UTF-8; rename it",
        "b/again/": "a link to a folder, which is not followed",
    }
    assert {item.kind for item in rows.left_out} == {"unreadable"}


def test_globs_leave_out_paths_names_and_folders(tmp_path):
    images(tmp_path, "a/P1.png", "a/P1_x.png", "b/P2.png", "b/old/P3.png", "c/P4.png")
    rows = folder_rows(tmp_path, patient=r"P\d", exclude=["*_x.png", "old", "c/*", "*.gif"])
    assert paths(rows) == ["a/P1.png", "b/P2.png"]
    assert left_out(rows) == {"excluded": ["a/P1_x.png", "b/old/P3.png", "c/P4.png"]}
    assert rows.notes[0] == "--exclude '*.gif' matches nothing"


@pytest.mark.parametrize(
    ("names", "patient", "note"),
    [
        (
            ["BIRADS2/P1.png", "BIRADS2/P2.png", "BIRADS4/P3.png"],
            r"\d",
            "of 3 images in the name of the class folder, so that each class has one patient of",
        ),
        (
            ["normal/P1.png", "normal/P2.png", "COVID19/P3.png"],
            r"\d+",
            "finds the patient of 1 images in the name of the class folder, first '19'",
        ),
        (["a/P1_1.png", "a/P1_2.png", "b/P2_1.png"], r"P\d", "each class has one patient"),
        (["images/P1.png", "images/P2.png"], r"P\d", "'images' is the only label"),
        (
            ["train/a/P1.png", "train/b/P2.png", "test/a/P3.png", "test/b/P4.png"],
            r"P\d",
            "each of the class folders 'test', 'train' holds 'a', 'b'",
        ),
        (["a/P1.png", "a/P1.tif", "b/P2.png"], r"P\d", "2 images have the name of another but"),
        (["a/P1.png", "a/P01.png", "b/P2.png"], r"P\d+", "2 values of patient_id differ in spell"),
        (["a b/P1.png", "A_b/P2.png", "a b/P3.png"], r"P\d+", "2 values of label differ in spell"),
    ],
)
def test_what_looks_wrong_is_noted(tmp_path, names, patient, note):
    images(tmp_path, *names)
    assert any(note in line for line in folder_rows(tmp_path, patient=patient).notes)


def test_folders_of_patients_below_the_classes_are_nothing_odd(tmp_path):
    images(tmp_path, "a/P1/1.png", "b/P1/1.png", "a/P2/1.png", "b/P2/1.png")
    assert folder_rows(tmp_path, patient=r"P\d").notes == ()


@pytest.mark.parametrize(
    ("path", "file", "frame"),
    [
        ("a/x.dcm#1", "a/x.dcm", 1),
        ("a.b/IM_0001#12", "a.b/IM_0001", 12),
        ("a/1.2.840.113619.2#0", "a/1.2.840.113619.2", 0),
        ("a/P00 #1.png", "a/P00 #1.png", None),
        ("a/P00.png#1", "a/P00.png#1", None),
        ("a#1/P00.png", "a#1/P00.png", None),
    ],
)
def test_frames_have_names_behind_dicom_files_with_and_without_a_suffix(path, file, frame):
    assert split_frame(path) == (file, frame)
