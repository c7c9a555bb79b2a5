"""Pseudonyms: no own id of a patient or an image gets into manifest, store or export."""

import csv
import hmac
import json
import os

import pytest
from PIL import Image

import embedcache
from embedcache.data.manifest import read_manifest
from embedcache.data.pseudonyms import Pseudonyms, read_key
from embedcache.errors import ManifestError
from embedcache.verbs.manifest import write_rows


def rows_of(folder, patients=("smith", "jones")):
    """Write images whose names say nothing, and return their rows with ids that do."""
    rows = []
    for number, patient in enumerate(patients):
        name = f"{patients[0][0]}{number}.png"
        Image.new("L", (8, 8), 40 * number).save(folder / name)
        rows.append(
            {
                "image_id": f"{patient}-scan",
                "path": name,
                "patient_id": patient,
                "label": "a",
                "cohort": "home",
            }
        )
    return rows


def test_a_key_is_made_once_for_its_owner_alone_and_gives_the_same_pseudonyms(tmp_path):
    file = tmp_path / "keys" / "key"
    first = read_key(file).of("patient_id", ["7", "8", "7"])
    assert file.stat().st_mode & 0o777 == 0o600
    assert read_key(file).of("patient_id", ["7", "8", "7"]) == first
    assert first[0] == first[2] != first[1]
    assert read_key(file).of("image_id", ["7"])[0][2:] != first[0][2:]
    assert read_key(tmp_path / "other").of("patient_id", ["7"])[0] != first[0]


def test_a_pseudonym_is_hmac_sha256_of_column_and_id():
    digest = hmac.new(b"k" * 32, b"patient_id\0smith", "sha256").hexdigest()
    assert Pseudonyms(b"k" * 32).of("patient_id", ["smith"]) == (f"P-{digest[:16]}",)


def test_keys_that_protect_nothing_are_refused(tmp_path):
    (tmp_path / "short").write_text("secret")
    (tmp_path / "short").chmod(0o600)
    (tmp_path / "open").write_text("k" * 64)
    (tmp_path / "open").chmod(0o644)
    store = tmp_path / ".embedcache"
    store.mkdir()
    (store / "embedcache.json").touch()
    (tmp_path / "link").symlink_to(store / "key")
    os.mkfifo(tmp_path / "pipe", 0o600)
    for file, match in {
        "short": "a key of 6 bytes, expected 32 or more",
        "open": "others can read this key; run `chmod 600",
        ".embedcache/key": "a key inside a store goes with it",
        "link": "a key inside a store goes with it",
        "pipe": "no regular file",
    }.items():
        with pytest.raises(ManifestError, match=match):
            read_key(tmp_path / file)


def test_own_ids_are_in_no_file_of_manifest_and_store(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    manifest = folder / "data_manifest.csv"
    write_rows(rows_of(folder), folder, manifest, pseudonymise=tmp_path / "key")
    project = embedcache.open(folder)
    project.extract("pixels")
    project.sql("FROM images")
    files = [file for file in folder.rglob("*") if file.is_file() and file.suffix != ".png"]
    assert len(files) > 5
    for file in files:
        content = file.read_bytes()
        assert b"smith" not in content, file
        assert b"jones" not in content, file
    key = read_key(tmp_path / "key")
    assert read_manifest(manifest).columns["patient_id"] == key.of("patient_id", ["smith", "jones"])


def test_one_patient_is_not_there_by_id_and_by_pseudonym(tmp_path):
    manifest, key = tmp_path / "data_manifest.csv", tmp_path / "key"
    write_rows(rows_of(tmp_path), tmp_path, manifest)
    more = rows_of(tmp_path, ("jones", "miller"))
    with pytest.raises(ManifestError, match="has 1 of these patients by their own ids, and they"):
        write_rows(more, tmp_path, manifest, append=True, pseudonymise=key)
    write_rows(rows_of(tmp_path), tmp_path, manifest, overwrite=True, pseudonymise=key)
    more[0]["image_id"] = "another"
    written = write_rows(more, tmp_path, manifest, append=True, pseudonymise=key)
    assert len(set(written.manifest.columns["patient_id"])) == 3


def test_the_command_writes_pseudonyms_and_says_what_stays(command, tmp_path):
    (tmp_path / "images" / "liver").mkdir(parents=True)
    Image.new("L", (8, 8), 3).save(tmp_path / "images" / "liver" / "P1_0.png")
    written = ("manifest", "folder", "--root", "images", "--patient", "P[0-9]+")
    printed = command(*written, "--pseudonymise", "key")
    assert printed.code == 0, printed.err
    assert "paths and other columns stay as they are" in printed.err
    [row] = csv.DictReader((tmp_path / "data_manifest.csv").read_text().splitlines())
    assert row["patient_id"].startswith("P-")
    assert row["image_id"].startswith("I-")
    assert row["path"] == "images/liver/P1_0.png"


def test_an_export_has_pseudonyms_where_they_are_wanted_and_says_what_leaves(
    command, project, tmp_path
):
    project.extract("pixels")
    printed = command("export", "-m", "pixels", "-o", "x.safetensors", "--pseudonymise", "key")
    assert "embeddings of 22 patients, and their pseudonyms in image_id" in printed.err
    data = (tmp_path / "x.safetensors").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    patients = sorted(set(project.images()["patient_id"].to_pylist()))
    pseudonyms = read_key(tmp_path / "key").of("patient_id", patients)
    assert set(json.loads(header["patient_id"])) == set(pseudonyms)
    assert not any(patient.encode() in data for patient in patients)
    assert "own ids in image_id" in command("export", "-m", "pixels", "-o", "y.npy").err
    [file] = project.export("pixels", tmp_path / "z.parquet", pseudonymise=tmp_path / "key")
    assert not any(patient.encode() in file.read_bytes() for patient in patients)
