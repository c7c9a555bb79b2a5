"""`verify` and `verify --repair`: damage is found, named, and mended."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from edits import cut, flip, other_fingerprint, tally

import embedcache
from embedcache.errors import StoreMismatchError
from embedcache.store import care, layout
from embedcache.store.sweep import sweep
from embedcache.verbs.session import Session


def truth_files(project) -> list[Path]:
    """Every file of the store but what is derived and the locks."""
    skipped = ("LOCK", ".lock-", "catalog.duckdb", "digests.tsv")
    files = (path for path in Path(project.workspace.store).rglob("*") if path.is_file())
    return sorted(path for path in files if not path.name.startswith(skipped))


@pytest.mark.parametrize("harm", [flip, cut, Path.unlink])
def test_harm_to_any_file_is_found_named_and_mended(probed, tmp_path, harm):
    (store,) = Session(probed.workspace).stores()
    sweep(store.folder, grace_s=-1)
    expected = probed.embeddings("pixels").X
    pristine = tmp_path / "pristine"
    shutil.copytree(probed.workspace.store, pristine)
    files = [path.relative_to(Path(probed.workspace.store)) for path in truth_files(probed)]
    assert len(files) == 11, files
    for name in files:
        shutil.rmtree(probed.workspace.store)
        shutil.copytree(pristine, probed.workspace.store)
        harm(Path(probed.workspace.store) / name)
        report = probed.verify()
        named = " ".join(str(f.path) for f in report.findings)
        stem = (
            name.name.split(".")[0]
            if name.suffix == ".parquet" and harm is Path.unlink
            else name.name
        )
        known = stem in named or str(name.parent) in named
        assert report.findings, name
        assert repr(report).split()[:2] == ["path", "problem"], name
        assert known, (name, report.findings)
        mended = probed.verify(repair=True)
        assert mended.repaired
        if name.parts[0] == "runs":
            probed.probe("pixels")
        assert probed.verify().findings == (), name
        assert np.array_equal(probed.embeddings("pixels").X, expected)


def test_repair_encodes_only_what_was_lost(project, monkeypatch):
    project.extract("pixels", shard=(1, 2))
    (store,) = Session(project.workspace).stores()
    chunk = layout.segment_folder(store.folder, store.records[0].id) / "c" / "0" / "0"
    flip(chunk)
    report = project.verify()
    assert len(report.findings[0].images) == 1
    mended = project.verify(repair=True)
    assert [tally(one) for one in mended.passes] == [(1, 0, 1, 0)]
    (one,) = project.status().encoders
    assert (one.n_held, one.n_missing) == (66, 66)  # the other half is not extracted by a repair


def test_repair_without_the_weights_keeps_the_rest_and_says_so(project, monkeypatch):
    project.extract("pixels")
    (store,) = Session(project.workspace).stores()
    flip(layout.segment_folder(store.folder, store.records[0].id) / "c" / "0" / "0")
    other_fingerprint(monkeypatch)
    mended = project.verify(repair=True)
    assert mended.passes == ()
    assert "lost rows are not encoded again yet: the weights here are not those" in mended.notes[-1]
    assert project.status().encoders[0].n_held == 131


def test_damaged_derived_files_are_named_and_harmless(probed, monkeypatch):
    monkeypatch.setattr("embedcache.files.digests.RACY_WINDOW_NS", 0)  # as if the images were old
    flip(probed.workspace.catalog)
    report = probed.verify()
    assert [finding.path.name for finding in report.findings] == ["catalog.duckdb"]
    probed.verify(repair=True)
    assert probed.verify().findings == ()
    probed.workspace.digests.write_text("0\nx")
    assert [f.path.name for f in probed.verify().findings] == ["digests.tsv"]
    assert tally(probed.extract("pixels")) == (132, 132, 0, 0)


def test_an_edited_manifest_is_no_damage(probed):
    manifest = probed.workspace.manifest
    manifest.write_text(manifest.read_text().replace(",abdomen,", ",brain,", 1))
    assert probed.verify().findings == ()
    probed.gc()
    assert probed.verify().findings == ()


def test_nothing_stored_is_nothing_damaged(project):
    assert project.verify().findings == ()


def test_a_sound_store_prints_as_sound(probed):
    assert repr(probed.verify()) == "132 rows of 1 encoders checked: sound"


def test_a_folder_that_is_no_store_is_refused_and_left_alone(project, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "a.txt").write_text("mine")
    other = embedcache.open(project.workspace.manifest, store=folder)
    for repair in (False, True):
        with pytest.raises(StoreMismatchError, match="pictures: no store: it holds none of"):
            other.verify(repair=repair)
    assert [path.name for path in folder.iterdir()] == ["a.txt"]


def test_a_store_that_lost_its_format_file_is_a_store(probed):
    Path(probed.workspace.format_file).unlink()
    assert [finding.kind for finding in probed.verify().findings] == ["format"]
    assert probed.verify(repair=True).is_whole
    assert probed.verify().findings == ()


def test_what_cannot_be_mended_is_noted_and_the_rest_is_mended(probed, command):
    (store,) = Session(probed.workspace).stores()
    document = Path(store.folder) / "encoder.json"
    document.unlink()
    for record in document.parent.glob("commit/*"):
        cut(record)
    (folds,) = Path(probed.workspace.folds).iterdir()
    expected = folds.read_bytes()
    flip(folds)
    report = probed.verify(repair=True)
    assert not report.is_whole
    assert "is not mended: " in " ".join(report.notes)
    assert folds.read_bytes() == expected
    assert report.n_mended == 1
    result = command("verify", "--repair")
    assert result.code == 4
    n_files = len(report.findings) - 1
    assert result.out.splitlines()[-1].endswith(f"{n_files} files damaged, 0 of {n_files} mended")
    # Named and left where it is, so that a backup of the document makes all of it whole again.
    assert not document.exists()


def test_a_second_folder_of_one_fingerprint_is_named_and_left_to_the_user(probed, command):
    (folder,) = probed.workspace.encoder_folders()
    before = probed.status().encoders
    copy = Path(probed.workspace.encoders) / f"z-copy-{folder.name[-12:]}"
    shutil.copytree(folder, copy)
    assert probed.status().encoders == before
    assert len(probed.sql("FROM encoders")) == 1
    assert probed.models() == ["pixels"]
    [finding] = probed.verify().findings
    assert Path(finding.path) == copy
    assert finding.problem.startswith(f"holds the same fingerprint as {folder.name}")
    report = probed.verify(repair=True)
    assert not report.is_whole
    assert "remove one" in report.notes[-1]
    probed.gc(grace_s=-1)
    assert copy.is_dir()
    assert command("verify").code == 4
    shutil.rmtree(copy)
    assert command("verify").code == 0
