"""`verify` and `verify --repair`: damage is found, named, and mended."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from edits import cut, flip, other_fingerprint, tally

import embedcache
from embedcache.errors import EncoderWeightsError, StoreMismatchError
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
    copy = Path(probed.workspace.encoders) / f"a-copy-{folder.name[-12:]}"
    shutil.copytree(folder, copy)
    assert probed.status().encoders == before
    assert len(probed.sql("FROM encoders")) == 1
    assert probed.models() == ["pixels"]
    for repair in (False, True):
        report = probed.verify(repair=repair)
        assert (report.findings, report.is_whole) == ((), True)
        assert report.notes == (f"{copy} is a copy of {folder.name}, and is not read: left alone",)
    probed.gc(grace_s=-1)
    assert copy.is_dir()
    result = command("verify")
    assert (result.code, "left alone" in result.out) == (0, True)


def test_what_is_not_ours_is_named_and_left_alone(probed):
    store = Path(probed.workspace.store)
    [encoder] = (store / "encoders").iterdir()
    [record] = (encoder / "commit").glob("*.parquet")
    run = next(path for path in (store / "runs").iterdir() if path.name.startswith("probe"))
    strangers = [
        encoder.with_name(f"{encoder.name}.bak"),
        encoder.with_name(f"{encoder.name} (copy)"),
        store / "runs" / "paper-backup",
        store / "manifests" / "backup",
    ]
    for folder in strangers:
        shutil.copytree(run, folder / run.name)
    shutil.copytree(encoder, strangers[0], dirs_exist_ok=True)
    files = [store / "folds" / "thesis.csv", store / "encoders" / "thesis.txt"]
    for file in files:
        file.write_text("mine")
    copied = record.with_name(f"20000101T000000000000-000000000000.{record.name[-16:]}")
    shutil.copy(record, copied)
    tables = store / "runs" / "tables"
    tables.mkdir()
    for table in run.glob("*.parquet"):
        shutil.copy(table, tables)
    before = {path: path.read_bytes() for path in store.rglob("*.parquet")}
    report = probed.verify(repair=True)
    assert report.findings == ()
    named = {line.split(" is ")[0] for line in report.notes}
    assert named == {str(path) for path in (*strangers, *files, copied, tables)}
    probed.gc(grace_s=-1)
    assert {path: path.read_bytes() for path in store.rglob("*.parquet")} == before
    assert all(file.read_text() == "mine" for file in files)
    assert probed.status().encoders[0].n_held == 132


def lose_a_row(project) -> str:
    """Damage one row of a project that is encoded; return the SHA-256 of its image."""
    (store,) = Session(project.workspace).stores()
    flip(layout.segment_folder(store.folder, store.records[0].id) / "c" / "0" / "0")
    [damage] = care.check_store(store.folder)
    return damage.keys[0]


@pytest.mark.parametrize("end", ["killed", "failed"])
def test_a_repair_that_does_not_end_never_forgets_what_was_lost(project, monkeypatch, command, end):
    project.extract("pixels")
    key = lose_a_row(project)
    name = Session(project.workspace).images.keys.index(key)
    image = project.images()["image_id"][name].as_py()

    def ends(*_, **__):
        raise KeyboardInterrupt if end == "killed" else EncoderWeightsError("no weights")

    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr("embedcache.verbs.verify.encode_images", ends)
            if end == "killed":
                with pytest.raises(KeyboardInterrupt):
                    project.verify(repair=True)
            else:
                report = project.verify(repair=True)
                assert not report.is_whole
                assert report.n_mended == 0
                assert any("no weights" in note for note in report.notes)
        [finding] = project.verify().findings
        assert finding.problem == "has lost 1 rows that are not encoded again yet"
        assert finding.images == (image,)
        assert command("verify").code == 4
        assert project.status().encoders[0].n_missing == 1
    report = project.verify(repair=True)
    assert (report.is_whole, report.n_mended) == (True, 1)
    assert [tally(one) for one in report.passes] == [(1, 0, 1, 0)]
    assert project.verify().findings == ()


def test_what_was_lost_of_another_manifest_is_remembered_until_it_is_there(project, tmp_path):
    project.extract("pixels")
    key = lose_a_row(project)
    number = Session(project.workspace).images.keys.index(key)
    lines = project.workspace.manifest.read_text().splitlines(keepends=True)
    del lines[number + 1]
    (tmp_path / "other.csv").write_text("".join(lines))
    other = embedcache.open(tmp_path, manifest=tmp_path / "other.csv")
    report = other.verify(repair=True)
    assert not report.is_whole
    assert "use the manifest that has them" in report.notes[-1]
    other.extract("pixels")  # which writes all rows anew, and remembers what is lost
    assert len(other.verify().findings) == 1
    assert tally(project.extract("pixels")) == (132, 131, 1, 0)
    assert other.verify().findings == ()


def test_a_repair_ends_as_the_verify_after_it(project, command):
    bad = project.workspace.data_root / "images" / "bad.png"
    bad.write_text("x")
    with project.workspace.manifest.open("a") as manifest:
        manifest.write("bad,images/bad.png,home-000,brain,home,device-0,0\n")
    project.extract("pixels")
    [folder] = project.workspace.encoder_folders()
    for record in Path(folder).glob("commit/*.parquet"):
        record.unlink()
    assert command("verify", "--repair").code == command("verify").code == 0
    status = project.status().encoders[0]
    assert (status.n_held, status.n_failed) == (132, 1)


def test_rows_of_another_encoder_in_a_folder_are_found_and_never_read(project, command):
    project.extract("pixels")
    project.extract("pixels", preprocess="crop")
    expected = project.embeddings(project.models()[0]).X
    first, second = map(Path, project.workspace.encoder_folders())
    for name in ("commit", "seg"):
        shutil.rmtree(first / name)
        shutil.copytree(second / name, first / name)
    assert command("verify").code == 4
    result = command("export", "-m", f"pixels@{first.name[-12:]}", "-o", "x.npy")
    assert result.code == 4
    assert f"holds rows of another encoder, pixels@{second.name[-12:]}" in result.err
    assert project.verify(repair=True).is_whole
    assert np.array_equal(project.embeddings(f"pixels@{first.name[-12:]}").X, expected)
    project.gc(grace_s=-1)
    assert len(list((first / "commit").glob("*.parquet"))) == 2  # ours, and the strange one


def test_a_folder_with_another_encoders_name_is_found_and_never_read(project, command):
    project.extract("pixels")
    project.extract("pixels", preprocess="crop")
    first, second = map(Path, project.workspace.encoder_folders())
    shutil.rmtree(first)
    shutil.copytree(second, first)
    finding, *_ = project.verify().findings
    assert finding.problem == f"is that of another encoder, pixels@{second.name[-12:]}"
    assert command("export", "-m", f"pixels@{first.name[-12:]}", "-o", "x.npy").code != 0
    assert len(project.sql("FROM encoders")) == 1
    assert not project.verify(repair=True).is_whole
    assert (first / "encoder.json").exists()
