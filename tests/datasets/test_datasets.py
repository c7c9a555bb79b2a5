from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, real
from PIL import Image

from embedcache.data.class_maps import BUILTIN, read_class_map
from embedcache.data.manifest import read_manifest
from embedcache.datasets import phantom
from embedcache.datasets.african_planes import african_planes_rows
from embedcache.datasets.fetal_planes import fetal_planes_rows
from embedcache.datasets.folder import folder_rows
from embedcache.errors import ManifestError
from embedcache.verbs.manifest import write_rows

SPAIN = (
    "Image_name;Patient_num;Plane;Brain_plane;Operator;US_Machine;Train \n"
    "Patient00001_Plane1_1_of_2;1;Other;Not A Brain;Other;Aloka;1 \n"
    "Patient00001_Plane3_1_of_1;1;Fetal brain;Trans-thalamic;Op. 1;Voluson E6;0 \n"
)
AFRICA = (
    "Patient_num,Plane,Train,Center,Filename\n"
    "1,Fetal abdomen,0,Algeria,patient001_DZA_plane0\n"
    "1,Fetal femur,1,Malawi,patient001_MWI_plane2\n"
)


def spain(tmp_path: Path, text: str = SPAIN) -> Path:
    (tmp_path / "FETAL_PLANES_DB_data.csv").write_text(text)
    return tmp_path


def africa(tmp_path: Path, text: str = AFRICA) -> Path:
    (tmp_path / "African_planes_database.csv").write_text(text)
    return tmp_path


def test_spain_is_read_with_its_spaces_stripped_and_its_images_named(tmp_path):
    rows = fetal_planes_rows(spain(tmp_path))
    assert rows[1] == {
        "image_id": "Patient00001_Plane3_1_of_1",
        "path": "Images/Patient00001_Plane3_1_of_1.png",
        "patient_id": "ES-00001",
        "label": "Fetal brain",
        "cohort": "spain",
        "center": "Spain",
        "split": "test",
        "device": "Voluson E6",
        "operator": "Op. 1",
        "brain_plane": "Trans-thalamic",
    }


def test_african_patients_of_one_number_and_two_countries_are_strangers(tmp_path):
    first, second = african_planes_rows(africa(tmp_path))
    assert (first["patient_id"], second["patient_id"]) == ("DZA-001", "MWI-001")
    assert first["path"] == "Algeria/patient001_DZA_plane0.png"
    assert first["cohort"] == "africa"
    assert "split" not in first  # its Train column means nothing
    assert (first["source_train"], second["source_train"]) == ("0", "1")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("Train ", "Split", "1: no column 'Train'; found Image_name"),
        (
            "Patient00001_Plane3",
            "Patient00002_Plane3",
            ":3: Image_name .* and Patient_num '1' do not",
        ),
        (
            "Fetal brain",
            "Fetal femur",
            ":3: Plane 'Fetal femur' of .*, its name says 'Fetal brain'",
        ),
        ("E6;0 ", "E6;2 ", ":3: Train '2', expected 0 or 1"),
        (";Voluson E6", "", ":3: 6 cells, the header has 7"),
    ],
)
def test_a_changed_spanish_table_is_refused_with_its_line(tmp_path, old, new, message):
    with pytest.raises(ManifestError, match=message):
        fetal_planes_rows(spain(tmp_path, SPAIN.replace(old, new)))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("Malawi", "Mali", ":3: Center 'Mali', expected one of Algeria, Egypt"),
        ("_MWI_", "_DZA_", ":3: Filename .*, Center 'Malawi' and Patient_num '1' do not agree"),
        ("Fetal femur", "fetal femur", ":3: Plane 'fetal femur', expected one of Fetal abdomen"),
        ("Center", "Centre", "1: no column 'Center'"),
    ],
)
def test_a_changed_african_table_is_refused_with_its_line(tmp_path, old, new, message):
    with pytest.raises(ManifestError, match=message):
        african_planes_rows(africa(tmp_path, AFRICA.replace(old, new)))


def test_a_missing_table_says_what_to_pass(tmp_path):
    for rows_of in (fetal_planes_rows, african_planes_rows):
        with pytest.raises(
            ManifestError,
            match="no table: No such file or directory; pass the unpacked download as --root",
        ):
            rows_of(tmp_path)


def test_the_real_spanish_table_gives_the_published_counts():
    rows = fetal_planes_rows(real("meta"))
    assert len(rows) == len({row["image_id"] for row in rows}) == 12_400
    assert len({row["patient_id"] for row in rows}) == 1_792
    assert Counter(row["label"] for row in rows) == {
        "Other": 4213,
        "Fetal brain": 3092,
        "Fetal thorax": 1718,
        "Maternal cervix": 1626,
        "Fetal femur": 1040,
        "Fetal abdomen": 711,
    }
    assert Counter(row["brain_plane"] for row in rows) == {
        "Not A Brain": 9308,
        "Trans-thalamic": 1638,
        "Trans-cerebellum": 714,
        "Trans-ventricular": 597,
        "Other": 143,
    }
    assert Counter(row["device"] for row in rows) == {
        "Voluson E6": 5862,
        "Aloka": 5114,
        "Voluson S10": 1082,
        "Other": 342,
    }
    assert Counter(row["split"] for row in rows) == {"train": 7129, "test": 5271}
    by_split = {s: {r["patient_id"] for r in rows if r["split"] == s} for s in ("train", "test")}
    assert (len(by_split["train"]), len(by_split["test"])) == (896, 896)
    assert not by_split["train"] & by_split["test"]
    devices = Counter(p for p, _ in {(row["patient_id"], row["device"]) for row in rows})
    assert sum(count > 1 for count in devices.values()) == 6


def test_the_real_african_table_gives_the_published_counts():
    rows = african_planes_rows(real("meta"))
    assert len(rows) == len({row["image_id"] for row in rows}) == 450
    assert len({row["patient_id"] for row in rows}) == 127
    assert Counter(row["label"] for row in rows) == {
        "Fetal abdomen": 125,
        "Fetal brain": 125,
        "Fetal femur": 125,
        "Fetal thorax": 75,
    }
    thorax = {row["center"] for row in rows if row["label"] == "Fetal thorax"}
    assert thorax == {"Algeria", "Egypt", "Malawi"}


def test_no_patient_of_one_data_set_is_one_of_the_other():
    spanish = {row["patient_id"] for row in fetal_planes_rows(real("meta"))}
    assert not spanish & {row["patient_id"] for row in african_planes_rows(real("meta"))}


def test_real_spanish_images_are_found_and_the_others_listed(tmp_path):
    """57 of the 12,400, under their original names, in a folder spelt `images`."""
    root = tmp_path / "db"
    shutil.copytree(real("fpdb_brain_subset", "images"), root / "images")
    (root / "images" / "._Patient00644_Plane3_1_of_3.png").write_bytes(b"a Mac's side-car")
    rows = fetal_planes_rows(root, table=real("meta", "FETAL_PLANES_DB_data.csv"))
    written = write_rows(rows, root, root / "data_manifest.csv", allow_missing=True)
    assert len(written.manifest) == 12_400
    assert len(written.missing) == 12_400 - 57
    stated = read_manifest(real("fpdb_brain_subset", "data_manifest.csv")).columns
    mine = {row["image_id"]: row for row in rows}
    for number, image_id in enumerate(stated["image_id"]):
        for name in ("patient_id", "label", "split", "device"):
            assert mine[image_id][name] == stated[name][number]


def test_label_maps_hold_what_their_number_says():
    assert {len(mapping) for mapping in BUILTIN.values()} == {6, 5, 4, 3}
    assert "Other" not in BUILTIN["fetal-planes-5"]
    assert set(BUILTIN["fetal-planes-4"]) == {
        "Fetal abdomen", "Fetal brain", "Fetal femur", "Fetal thorax",
    }  # fmt: skip
    assert "Fetal thorax" not in BUILTIN["fetal-planes-3"]


def test_a_class_map_is_read_from_a_file(tmp_path):
    file = tmp_path / "map.csv"
    file.write_text("label,class\nFetal brain,head\nOther,\nFetal thorax,body\n")
    assert read_class_map(str(file)) == {"Fetal brain": "head", "Fetal thorax": "body"}
    file.write_text("label,class\na,x\na,y\n")
    with pytest.raises(ManifestError, match=":3: label 'a' maps to 'x' and to 'y'"):
        read_class_map(str(file))
    file.write_text("from,to\na,x\n")
    with pytest.raises(ManifestError, match="expected CSV with the columns 'label' and 'class'"):
        read_class_map(str(file))
    with pytest.raises(ManifestError, match="no class map: .*; expected .* fetal-planes-6"):
        read_class_map("nonsense")


def images(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4)).save(root / name)


def test_paths_are_written_relative_to_the_manifest_or_the_data_root(tmp_path):
    root = tmp_path / "data" / "set"
    images(root, "a/P1.png")
    rows = folder_rows(root, patient="P1").rows
    beside = write_rows(rows, root, tmp_path / "data" / "m.csv")
    assert beside.manifest.column("path") == ("set/a/P1.png",)
    elsewhere = tmp_path / "project" / "m.csv"
    with pytest.raises(
        ManifestError, match="are outside .*/project; write the manifest there with -o"
    ):
        write_rows(rows, root, elsewhere)
    rooted = write_rows(rows, root, elsewhere, data_root=tmp_path / "data")
    assert rooted.manifest.column("path") == ("set/a/P1.png",)


def test_a_manifest_that_holds_something_else_is_replaced_only_where_asked(tmp_path):
    images(tmp_path, "a/P1.png", "a/P2.png")
    rows, file = folder_rows(tmp_path, patient=r"P\d").rows, tmp_path / "m.csv"
    write_rows(rows, tmp_path, file)
    write_rows(rows, tmp_path, file)  # the same content is in nobody's way
    with pytest.raises(ManifestError, match=r"m\.csv is there already.*--overwrite"):
        write_rows(rows[:1], tmp_path, file)
    assert len(read_manifest(file)) == 2
    write_rows(rows[:1], tmp_path, file, overwrite=True)
    assert len(read_manifest(file)) == 1
    write_rows(rows[1:], tmp_path, file, append=True)
    assert len(read_manifest(file)) == 2


def test_tables_that_are_not_utf8_name_their_line(tmp_path):
    text = SPAIN.replace("Aloka", "Größe").encode("latin-1")
    (tmp_path / "FETAL_PLANES_DB_data.csv").write_bytes(text)
    with pytest.raises(ManifestError, match=r"_data\.csv:2: byte 0xf6 is not UTF-8; save the file"):
        fetal_planes_rows(tmp_path)
    file = tmp_path / "map.csv"
    file.write_bytes("label,class\nä,a\n".encode("latin-1"))
    with pytest.raises(ManifestError, match=r"map\.csv:2: byte 0xe4 is not UTF-8"):
        read_class_map(str(file))


def test_missing_images_stop_the_writing_unless_allowed(tmp_path):
    rows = fetal_planes_rows(spain(tmp_path))
    with pytest.raises(
        ManifestError, match="2 of 2 images are not on disk, first .*--allow-missing"
    ):
        write_rows(rows, tmp_path, tmp_path / "m.csv")
    assert not (tmp_path / "m.csv").exists()
    written = write_rows(rows, tmp_path, tmp_path / "m.csv", allow_missing=True)
    assert len(written.missing) == len(written.manifest) == 2


def test_two_data_sets_go_into_one_manifest_with_all_their_columns(tmp_path):
    first = fetal_planes_rows(spain(tmp_path))
    second = african_planes_rows(africa(tmp_path))
    file = tmp_path / "m.csv"
    write_rows(first, tmp_path, file, allow_missing=True)
    both = write_rows(second, tmp_path, file, append=True, allow_missing=True).manifest
    assert len(both) == 4
    assert both.column("brain_plane") == ("Not A Brain", "Trans-thalamic", "", "")
    assert both.column("source_train") == ("", "", "0", "1")
    with pytest.raises(ManifestError, match="image_id .* again"):
        write_rows(second, tmp_path, file, append=True, allow_missing=True)


def test_the_manifest_at_the_top_is_the_generators():
    held = read_manifest(ROOT / "data_manifest.csv").columns
    rows = phantom.phantom_rows()
    assert list(held) == list(rows[0])
    for name, cells in held.items():
        assert list(cells) == [row[name] for row in rows]


def test_the_same_seed_gives_the_same_pixels_and_another_does_not():
    row = phantom.phantom_rows()[40]
    assert np.array_equal(phantom.render(row), phantom.render(row))
    assert not np.array_equal(phantom.render(row), phantom.render(row, seed=1))


# Means of 4 x 4 blocks; another CPU may round a pixel otherwise, so within a tenth of a grey level.
PIXELS = {
    "NO-001_abdomen_1": [
        0.0,
        116.34,
        128.11,
        0.0,
        45.32,
        183.27,
        196.42,
        53.92,
        124.75,
        157.48,
        170.05,
        158.2,
        81.33,
        136.37,
        168.05,
        98.57,
    ],
    "NO-002_brain_1": [
        0.0,
        115.47,
        128.05,
        0.0,
        31.91,
        178.27,
        188.77,
        54.4,
        114.79,
        150.26,
        154.09,
        136.7,
        59.34,
        131.2,
        143.98,
        66.77,
    ],
    "SO-002_femur_1": [
        0.0,
        69.21,
        63.77,
        0.0,
        0.0,
        123.53,
        107.02,
        0.04,
        27.32,
        123.44,
        77.67,
        28.86,
        31.6,
        83.18,
        33.72,
        44.07,
    ],
}


def test_the_pixels_are_those_of_the_release():
    rows = phantom.phantom_rows()
    for image_id, expected in PIXELS.items():
        row = next(row for row in rows if row["image_id"] == image_id)
        blocks = phantom.render(row).reshape(4, 56, 4, 72).mean(axis=(1, 3)).ravel()
        assert np.allclose(blocks, expected, atol=0.1), (image_id, blocks.round(2).tolist())


def test_pictures_look_like_ultrasound_and_differ_between_patients_classes_and_scanners():
    rows = phantom.phantom_rows()
    pictures = {row["image_id"]: phantom.render(row) for row in rows[::25]}
    for picture in pictures.values():
        assert picture.shape == (phantom.HEIGHT, phantom.WIDTH)
        assert picture[0, 0] == picture[-1, 0] == 0  # outside the fan
        assert 40 < picture[60:180, 120:170].mean() < 220
    flat = np.stack([picture.ravel() for picture in pictures.values()])
    assert len(np.unique(flat, axis=0)) == len(flat)


def test_the_cohorts_have_the_shape_of_spain_and_africa():
    rows = phantom.phantom_rows()
    classes = {c: {r["label"] for r in rows if r["cohort"] == c} for c in ("north", "south")}
    assert len(classes["north"]) == 5
    assert classes["south"] < classes["north"]
    per_patient = Counter(row["patient_id"] for row in rows)
    assert min(per_patient.values()) >= 2
    devices = {(row["cohort"], row["device"]) for row in rows}
    assert len(devices) == 2


def test_pictures_that_are_there_are_not_written_again(tmp_path):
    rows = phantom.phantom_rows()[:2]
    first = [path.stat().st_mtime_ns for path in phantom.write_images(rows, tmp_path)]
    assert [path.stat().st_mtime_ns for path in phantom.write_images(rows, tmp_path)] == first
    assert [p.suffix for p in (tmp_path / "phantom").rglob("*") if p.is_file()] == [".png"] * 2
