"""The verbs from Python, on small cohorts and without torch."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from embedcache.verbs.probing import ProbeOptions
from safetensors import safe_open

import embedcache
from embedcache.data.manifest import write_manifest
from embedcache.encoders import registry
from embedcache.errors import (
    CatalogError,
    LeakageError,
    ManifestError,
    MissingEmbeddingsError,
    RunError,
    StoreMismatchError,
    StoreWriteError,
    UnknownEncoderError,
)
from embedcache.runs import files as run_files
from embedcache.store import care, layout
from embedcache.store.embedding_store import EmbeddingStore
from embedcache.testing import write_cohort
from embedcache.verbs import state


def tally(report, number: int = 0):
    one = report.tallies[number]
    return one.n_images, one.n_cached, one.n_written, one.n_failed


def rewrite_manifest(project, edit) -> None:
    lines = project.workspace.manifest.read_text().splitlines(keepends=True)
    project.workspace.manifest.write_text("".join([lines[0], *edit(lines[1:])]))


def test_the_whole_path(project):
    n = len(project.images())
    assert tally(project.extract("pixels")) == (n, 0, n, 0)
    rows = project.embeddings("pixels", where="cohort = 'home' AND label = 'brain'")
    assert rows.X.shape == (len(rows), 256)
    assert set(rows.label) == {"brain"}
    (outcome,) = project.probe("pixels")
    scores = {
        (e.cohort, e.scoring): e.value
        for e in outcome.estimates
        if (e.metric, e.level) == ("macro_f1", "image")
    }
    assert scores["home", "all"] > 0.8
    assert ("abroad", "masked") in scores
    predictions = project.sql("SELECT role, count(*) AS n FROM predictions GROUP BY role")
    assert dict(zip(*predictions.to_pydict().values(), strict=True)) == {
        "in-domain": 72,
        "external": 60,
    }


def test_probabilities_sum_to_one_and_agree_with_what_was_predicted(probed):
    rows = probed.sql("SELECT * FROM predictions").to_pylist()
    for row in rows:
        p = dict(row["p"])
        assert sum(p.values()) == pytest.approx(1)
        assert p[row["predicted"]] == max(p.values()) == row["probability"]
        assert row["correct"] == (row["predicted"] == row["label"])
        assert (row["fold"] is None) == (row["role"] == "external")
        if row["cohort"] == "abroad":
            assert row["predicted_masked"] in {"abdomen", "brain"}


def test_a_run_is_found_again_and_a_changed_label_makes_another(probed):
    (again,) = probed.probe("pixels")
    assert again.was_cached
    (fresh,) = probed.probe("pixels", seed=1)
    assert not fresh.was_cached
    rewrite_manifest(probed, lambda lines: [lines[0].replace(",abdomen,", ",brain,"), *lines[1:]])
    (other,) = probed.probe("pixels")
    assert not other.was_cached
    assert len({again.run.run_id, fresh.run.run_id, other.run.run_id}) == 3


def test_a_run_repeats_bit_for_bit(probed):
    folder = run_files.run_folders(probed.workspace.runs)[0]
    before = {name: (folder / f"{name}.parquet").read_bytes() for name in run_files.TABLES}
    shutil.rmtree(folder)
    (outcome,) = probed.probe("pixels")
    assert outcome.folder == folder
    assert {n: (folder / f"{n}.parquet").read_bytes() for n in run_files.TABLES} == before


def test_a_run_record_says_all_that_decided_it(probed):
    run = run_files.read_run(run_files.run_folders(probed.workspace.runs)[0])
    settings = run["settings"]
    assert settings["train_cohort"] == "home"
    assert settings["external"] == ["abroad"]
    assert len(settings["values"]) == 12
    assert (settings["n_folds"], settings["seed"], settings["n_resamples"]) == (5, 0, 10_000)
    assert settings["protocol"] == "nested-patient-cv-2"
    assert len(run["results"]["C"]) == 5
    assert run["data"]["folds_id"]
    assert settings["tol"] == {"choice": 1e-4, "fit": 1e-6}
    assert settings["classes"] is None
    assert run["versions"]["scikit-learn"]
    assert run["versions"]["embedcache-fm"] == embedcache.__version__


def test_cohorts_are_chosen_by_size_or_by_name(project):
    project.extract("pixels")
    rewrite_manifest(project, lambda lines: [line for line in lines if "home-01" not in line])
    (outcome,) = project.probe("pixels")
    assert outcome.run.settings["train_cohort"] == "abroad"  # now the larger one
    (named,) = project.probe("pixels", train_cohort="home", external=())
    assert named.run.settings["external"] == []
    for name in ("train_cohort", "external"):
        value = "mars" if name == "train_cohort" else ("mars",)
        with pytest.raises(
            ManifestError, match="no cohort 'mars' in the manifest; it has abroad, h"
        ):
            project.probe("pixels", **{name: value})


def test_what_is_left_out_is_said(project, tmp_path):
    project.extract("pixels")
    said = []
    rewrite_manifest(project, lambda lines: [lines[0].replace(",abdomen,", ",,"), *lines[1:]])
    project.probe("pixels", on_message=said.append)
    assert "1 images without a class left out" in said
    said.clear()
    project.probe("pixels", train_cohort="abroad", on_message=said.append)
    assert any("of 'home' left out: femur is no class of 'abroad'" in one for one in said)
    said.clear()
    (tmp_path / "map.csv").write_text("label,class\nabdomen,a\nbrain,b\n")
    (outcome,) = project.probe(
        "pixels", class_map=str(tmp_path / "map.csv"), on_message=said.append
    )
    assert {e.label for e in outcome.estimates if e.metric == "f1"} == {"a", "b"}
    assert outcome.run.settings["classes"] == {"abdomen": "a", "brain": "b"}
    (tmp_path / "map.csv").write_text("label,class\nabdomen,a\nbrain,b\nheart,a\n")
    (other,) = project.probe("pixels", class_map=str(tmp_path / "map.csv"))
    assert other.run.run_id != outcome.run.run_id


def test_images_of_equal_bytes_on_both_sides_are_counted(project):
    images = project.images().to_pylist()
    paths = {row["image_id"]: project.workspace.data_root / row["path"] for row in images}
    for twin in ("home-001_brain_0", "abroad-000_brain_0"):
        paths[twin].write_bytes(paths["home-000_brain_0"].read_bytes())
    project.extract("pixels")
    said = []
    (outcome,) = project.probe("pixels", on_message=said.append)
    assert said[0].startswith("2 training images are byte-identical to one of another patient's;")
    assert said[1].startswith("1 images of 'abroad' are byte-identical to a training image; `embed")
    assert outcome.run.results["notes"][:2] == said[:2]


def test_a_cohort_without_a_common_class_is_skipped_unless_it_was_named(project):
    project.extract("pixels")
    where = "cohort = 'home' AND label <> 'brain' OR cohort = 'abroad' AND label = 'brain'"
    said = []
    (outcome,) = project.probe("pixels", where=where, on_message=said.append)
    assert outcome.run.settings["external"] == []
    assert any("of 'abroad' left out: brain is no class of 'home'" in note for note in said)
    with pytest.raises(RunError, match="no image of cohort 'abroad' has a class of 'home'"):
        project.probe("pixels", where=where, external=("abroad",))


def test_another_column_can_be_the_label(project):
    project.extract("pixels")
    (outcome,) = project.probe("pixels", label="device", external=())
    assert {e.label for e in outcome.estimates if e.metric == "f1"} == {"device-0", "device-1"}
    with pytest.raises(ManifestError, match="no column 'machine' in the manifest; it has image_id"):
        project.probe("pixels", label="machine")


def test_a_question_without_an_answer_is_refused(project):
    with pytest.raises(
        MissingEmbeddingsError, match="no embeddings of 'pixels'.*extract --model pix"
    ):
        project.probe("pixels")
    with pytest.raises(RunError, match="holds no embeddings; run `embedcache extract"):
        project.probe("all")
    project.extract("pixels")
    with pytest.raises(RunError, match="no image with a 'label' is left"):
        project.probe("pixels", where="label = 'heart'")
    with pytest.raises(CatalogError, match="--where"):
        project.probe("pixels", where="lable = 'x'")
    with pytest.raises(RunError, match="no image of cohort 'abroad' has a class of 'home'"):
        project.probe("pixels", where="cohort = 'home' AND label <> 'brain' OR label = 'brain' AND "
                      "cohort = 'abroad'", external=("abroad",), train_cohort="home")  # fmt: skip


def test_new_images_must_be_extracted_before_they_are_probed(project, tmp_path):
    project.extract("pixels")
    write_cohort(tmp_path, cohorts=("home", "abroad", "mars"), seed=0)
    with pytest.raises(
        MissingEmbeddingsError,
        match=r"60 of 60 images have no 'pixels' embedding, first 'mars-000_abdomen_0'; run "
        "`embedcache extract --model pixels`",
    ):
        project.probe("pixels")
    assert tally(project.extract("pixels"))[2] == 60


def test_images_that_cannot_be_read_are_skipped_and_counted(project):
    bad = project.workspace.data_root / project.images()["path"][0].as_py()
    bad.write_bytes(b"broken")
    gone = project.workspace.data_root / project.images()["path"][1].as_py()
    gone.unlink()
    report = project.extract("pixels")
    assert tally(report) == (132, 0, 130, 2)
    (outcome,) = project.probe("pixels", train_cohort="abroad")
    assert outcome.n_skipped == 2
    assert any("2 images without an embedding left out" in n for n in outcome.run.results["notes"])
    reasons = project.sql("SELECT image_id, reason FROM failures ORDER BY image_id").to_pylist()
    assert [row["reason"] for row in reasons] == ["not an image", "its file is not here"]


def test_a_patient_in_two_cohorts_is_leakage(project):
    project.extract("pixels")
    rewrite_manifest(
        project, lambda lines: [line.replace(",abroad-003,", ",home-003,") for line in lines]
    )
    with pytest.raises(
        LeakageError, match="patient 'home-003' is in the training cohort and in ext"
    ):
        project.probe("pixels", train_cohort="home")


def test_folds_are_assigned_once_and_shared(project):
    table, sizes = project.folds()
    files = list(Path(project.workspace.folds).iterdir())
    assert project.folds()[0].patients == table.patients
    assert list(Path(project.workspace.folds).iterdir()) == files
    assert sum(size.n_images for size in sizes) == 72
    project.extract("pixels")
    (outcome,) = project.probe("pixels")
    assert outcome.run.data["folds_id"] == table.folds_id
    stored = project.sql("SELECT patient_id, fold FROM folds").to_pylist()
    assert {row["patient_id"]: row["fold"] for row in stored} == table.patients


def test_a_stored_fold_table_is_used_even_if_it_would_be_made_otherwise_today(project, monkeypatch):
    project.extract("pixels")
    table, _ = project.folds()
    from embedcache.verbs import probing

    monkeypatch.setattr(probing, "assign_folds", lambda *_, **__: pytest.fail("assigned again"))
    assert project.folds()[0] == table


def test_folds_from_a_file(project, tmp_path):
    project.extract("pixels")
    lines = [f"home-{number:03d},{number % 3}" for number in range(12)]
    (tmp_path / "folds.csv").write_text("\n".join(["patient_id,fold", *lines]))
    (outcome,) = project.probe("pixels", folds=tmp_path / "folds.csv")
    assert outcome.run.settings["n_folds"] == 3
    rows = project.sql("SELECT DISTINCT patient_id, fold FROM predictions WHERE fold IS NOT NULL")
    assert {f"{r['patient_id']},{r['fold']}" for r in rows.to_pylist()} == set(lines)


def other_fingerprint(monkeypatch) -> None:
    """Make 'pixels' another encoder under the same name, as a new checkpoint does."""
    spec = registry.BUILTIN["pixels"]
    changed = replace(spec, preprocess=replace(spec.preprocess, resample="bicubic"))
    monkeypatch.setattr(registry, "BUILTIN", {**registry.BUILTIN, "pixels": changed})


def test_a_changed_encoder_is_another_store_and_a_bare_name_then_is_ambiguous(project, monkeypatch):
    project.extract("pixels")
    first = project.embeddings("pixels")
    other_fingerprint(monkeypatch)
    assert tally(project.extract("pixels")) == (132, 0, 132, 0)
    with pytest.raises(
        StoreMismatchError, match="'pixels' has several fingerprints; name one of pi"
    ):
        project.embeddings("pixels")
    prints = [store.fingerprint for store in state.open_stores(project.workspace)]
    assert len(set(prints)) == 2
    again = project.embeddings(f"pixels@{first.fingerprint[:12]}")
    assert np.array_equal(again.X, first.X)
    assert len(project.probe("all")) == 2
    kinds = project.sql("SELECT count(DISTINCT fingerprint) AS n FROM embeddings")
    assert kinds["n"].to_pylist() == [2]


def test_without_the_images_a_laptop_probes_what_was_copied(project, tmp_path):
    project.extract("pixels")
    expected = project.embeddings("pixels").X
    shutil.rmtree(tmp_path / "images")
    with_manifest = embedcache.open(tmp_path)
    assert np.array_equal(with_manifest.embeddings("pixels").X, expected)
    (tmp_path / "data_manifest.csv").unlink()
    bare = embedcache.open(tmp_path)
    assert np.array_equal(bare.embeddings("pixels").X, expected)
    assert not bare.probe("pixels")[0].was_cached
    assert bare.status().n_images == 132


def test_status_counts_what_is_wanted_held_failed_and_missing(project):
    project.extract("pixels", shard=(1, 2))
    (one,) = project.status().encoders
    assert (one.n_wanted, one.n_held, one.n_missing, one.n_failed) == (132, 66, 66, 0)
    project.extract("pixels", shard=(2, 2))
    (one,) = project.status().encoders
    assert (one.n_held, one.n_missing) == (132, 0)
    assert one.size_bytes > 132 * 256 * 4


def test_a_plan_says_what_would_be_done_and_does_nothing(project):
    (before,) = project.plan(["pixels"])
    assert (before.n_hits, before.n_misses, before.size_bytes) == (0, 132, 132 * 1024)
    assert before.estimate_s is None
    assert not Path(project.workspace.store).exists()
    project.extract("pixels", shard=(1, 2))
    (half,) = project.plan(["pixels"])
    assert (half.n_hits, half.n_misses) == (66, 66)
    assert half.estimate_s is not None


def test_all_models_are_those_whose_weights_are_here(project, monkeypatch):
    only = {name: registry.BUILTIN[name] for name in ("pixels", "sononet16")}
    monkeypatch.setattr(registry, "BUILTIN", only)
    report = project.extract("all")
    assert [one.encoder for one in report.tallies] == ["pixels"]


def test_weights_are_for_one_model(project, tmp_path):
    with pytest.raises(
        RunError, match="--weights is for one model, 2 were named: pixels, sononet16"
    ):
        project.extract(["pixels", "sononet16"], weights=tmp_path / "w")
    with pytest.raises(RunError, match="no model named"):
        project.extract([])


@pytest.mark.parametrize("kind", ["parquet", "npy", "safetensors"])
def test_exports_hold_rows_and_names(project, tmp_path, kind):
    project.extract("pixels")
    rows = project.embeddings("pixels", where="cohort = 'home'")
    files = project.export("pixels", tmp_path / f"out.{kind}", where="cohort = 'home'")
    if kind == "parquet":
        table = pq.read_table(files[0])
        X = np.stack(table["embedding"].to_pylist())
        names = table["image_id"].to_pylist()
        assert table.schema.metadata[b"fingerprint"].decode() == rows.fingerprint
    elif kind == "npy":
        X = np.load(files[0])
        names = [line.split(",")[0] for line in files[1].read_text().splitlines()[1:]]
    else:
        with safe_open(files[0], "numpy") as held:
            X = held.get_tensor("embedding")
            names = json.loads(held.metadata()["image_id"])
    assert np.array_equal(X.astype(np.float32), rows.X)
    assert tuple(names) == rows.image_id


def test_an_unknown_export_format_is_refused(project, tmp_path):
    project.extract("pixels")
    with pytest.raises(RunError, match=r"out\.xls: no format 'xls'; expected parquet, npy, safet"):
        project.export("pixels", tmp_path / "out.xls")


def test_gc_drops_what_the_manifest_no_longer_wants_and_nothing_else(project):
    project.extract("pixels")
    kept = project.embeddings("pixels", where="cohort = 'home'")
    rewrite_manifest(project, lambda lines: [line for line in lines if ",home," in line])
    assert project.gc(dry_run=True).n_rows == 60
    assert project.status().encoders[0].n_spare == 60
    report = project.gc(grace_s=-1)
    assert report.n_rows == 60
    assert report.freed_bytes > 60 * 1024
    assert project.status().encoders[0].n_spare == 0
    assert np.array_equal(project.embeddings("pixels").X, kept.X)
    assert project.verify().findings == ()


def test_gc_keeps_what_another_manifest_of_the_same_store_wants(project, tmp_path):
    project.extract("pixels")
    lines = project.workspace.manifest.read_text().splitlines(keepends=True)
    (tmp_path / "small.csv").write_text("".join(lines[:5]))
    small = embedcache.open(tmp_path, manifest=tmp_path / "small.csv")
    small.extract("pixels")
    assert small.gc(grace_s=-1).n_rows == 0
    assert project.status().encoders[0].n_held == 132


def truth_files(project) -> list[Path]:
    """Every file of the store but what is derived and the lock."""
    skipped = {"LOCK", "catalog.duckdb", "digests.tsv"}
    files = (path for path in Path(project.workspace.store).rglob("*") if path.is_file())
    return sorted(path for path in files if path.name not in skipped)


def flip(path: os.PathLike) -> None:
    path = Path(path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.slow
@pytest.mark.parametrize("harm", [flip, cut, Path.unlink])
def test_harm_to_any_file_is_found_named_and_mended(project, tmp_path, harm):
    project.extract("pixels")
    project.probe("pixels", n_resamples=100)
    (store,) = state.open_stores(project.workspace)
    care.sweep(store.folder, grace_s=-1)
    expected = project.embeddings("pixels").X
    pristine = tmp_path / "pristine"
    shutil.copytree(project.workspace.store, pristine)
    files = [path.relative_to(Path(project.workspace.store)) for path in truth_files(project)]
    assert len(files) == 10, files
    for name in files:
        shutil.rmtree(project.workspace.store)
        shutil.copytree(pristine, project.workspace.store)
        harm(Path(project.workspace.store) / name)
        report = project.verify()
        named = " ".join(str(f.path) for f in report.findings)
        stem = (
            name.name.split(".")[0]
            if name.suffix == ".parquet" and harm is Path.unlink
            else name.name
        )
        known = stem in named or str(name.parent) in named
        assert report.findings, name
        assert known, (name, report.findings)
        mended = project.verify(repair=True)
        assert mended.repaired
        if name.parts[0] == "runs":
            project.probe("pixels", n_resamples=100)
        assert project.verify().findings == (), name
        assert np.array_equal(project.embeddings("pixels").X, expected)


def test_repair_encodes_only_what_was_lost(project, monkeypatch):
    project.extract("pixels", shard=(1, 2))
    (store,) = state.open_stores(project.workspace)
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
    (store,) = state.open_stores(project.workspace)
    flip(layout.segment_folder(store.folder, store.records[0].id) / "c" / "0" / "0")
    other_fingerprint(monkeypatch)
    mended = project.verify(repair=True)
    assert mended.passes == ()
    assert "lost rows are not encoded again yet: the weights here are not those" in mended.notes[0]
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


def test_a_store_of_another_format_version_is_refused(project):
    project.extract("pixels")
    from embedcache.files.documents import seal

    document = {"format": "embedcache", "version": 99, "created": "x"}
    project.workspace.format_file.replace(seal(document))
    with pytest.raises(
        StoreMismatchError, match="format version 99, this release reads versions 1, 2"
    ):
        project.extract("pixels")
    with pytest.raises(StoreMismatchError, match="format version 99"):
        project.status()


def test_the_manifest_may_be_named_itself_and_the_store_be_elsewhere(project, tmp_path):
    file = project.workspace.manifest.rename(tmp_path / "mine.csv")
    elsewhere = embedcache.open(file, store=tmp_path / "store")
    elsewhere.extract("pixels")
    assert (tmp_path / "store" / "encoders").is_dir()
    with pytest.raises(
        ManifestError, match=r"data_manifest\.csv: no such manifest; write one with"
    ):
        embedcache.open(tmp_path)


def test_options_reach_the_bootstrap(project):
    project.extract("pixels")
    (few,) = project.probe("pixels", probe_options=ProbeOptions(n_resamples=100))
    assert few.run.settings["n_resamples"] == 100


def test_an_edited_manifest_is_no_damage(probed):
    manifest = probed.workspace.manifest
    manifest.write_text(manifest.read_text().replace(",abdomen,", ",brain,", 1))
    assert probed.verify().findings == ()
    probed.gc()
    assert probed.verify().findings == ()


def test_two_names_of_one_encoder_are_one_pass(project):
    report = project.extract(["pixels", "pixels"])
    assert len(report.tallies) == 1
    names = ["random:resnet50", "random:timm:resnet50.a1_in1k"]
    assert [plan.encoder for plan in project.plan(names)] == [names[0]]


def test_a_control_of_what_has_no_weights_is_refused(project):
    with pytest.raises(UnknownEncoderError, match="'pixels' has no trained weights"):
        project.extract("random:pixels")


def test_stores_are_locked_in_one_order_whatever_the_order_of_the_models(project, monkeypatch):
    locked = []
    lock = EmbeddingStore.lock

    def noted(store, on_wait):
        locked.append(store.folder.name)
        return lock(store, on_wait)

    monkeypatch.setattr(EmbeddingStore, "lock", noted)
    for models in (["pixels", "random:sononet16"], ["random:sononet16", "pixels"]):
        project.extract(models)
    assert locked[:2] == locked[2:] == sorted(locked[:2])


def test_the_store_is_beside_the_manifest_whatever_the_current_folder(
    project, monkeypatch, tmp_path_factory
):
    project.extract("pixels")
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    other = embedcache.open(manifest=project.workspace.manifest)
    assert other.workspace.store == project.workspace.store
    with pytest.raises(ManifestError, match="typo: no such folder or manifest"):
        embedcache.open(project.workspace.manifest.parent / "typo")


def test_gc_spares_what_another_project_of_the_same_store_wants(project, tmp_path_factory):
    project.extract("pixels")
    write_cohort(tmp_path_factory.mktemp("other"), n_patients=6, seed=1)
    folder = tmp_path_factory.getbasetemp() / "other0"
    other = embedcache.open(folder, store=project.workspace.store)
    other.extract("pixels")
    assert other.gc(dry_run=True).n_rows == 0
    assert project.gc(dry_run=True).n_rows == 0


def test_an_image_that_is_not_the_stated_one_is_left_out_of_a_probe_too(project):
    project.extract("pixels")
    rows = project.images().to_pylist()
    write_manifest(project.workspace.manifest, rows)  # now with the sha256 of each
    first, second = (project.workspace.data_root / rows[n]["path"] for n in (0, 1))
    kept = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(kept)
    assert project.extract("pixels").n_failed == 2
    assert project.embeddings("pixels").n_failed == 2
    second.unlink()  # and one that is gone for good is counted, not an error without a way out
    assert project.embeddings("pixels").n_failed == 1
    stated = project.workspace.manifest.read_text().replace(rows[1]["sha256"], "ab" * 32)
    project.workspace.manifest.write_text(stated)
    assert project.embeddings("pixels").n_failed == 2


def test_nothing_stored_is_nothing_damaged(project):
    assert project.verify().findings == ()


def test_a_store_that_cannot_remember_digests_can_be_asked(project, monkeypatch):
    project.extract("pixels")
    refused = []

    def refuse(path, data):
        refused.append(path)
        raise StoreWriteError(f"{path}: Read-only file system")

    monkeypatch.setattr("embedcache.files.digests.RACY_WINDOW_NS", 0)
    monkeypatch.setattr("embedcache.files.digests.replace", refuse)
    assert project.sql("SELECT count(*) AS n FROM embeddings")["n"].to_pylist() == [
        len(project.images())
    ]
    assert refused


def test_a_file_is_no_store(project, tmp_path):
    (tmp_path / "afile").touch()
    with pytest.raises(StoreMismatchError, match="afile: a file, not a store's folder"):
        embedcache.open(tmp_path, store=tmp_path / "afile")
