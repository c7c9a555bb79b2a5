"""`probe` of one class an image: cohorts, folds, what is left out, and what is kept."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from edits import rewrite_manifest, tally

import embedcache
from embedcache.errors import (
    CatalogError,
    LeakageError,
    ManifestError,
    MissingEmbeddingsError,
    RunError,
)
from embedcache.runs.files import RunFiles
from embedcache.runs.methods import ProbeMethod
from embedcache.testing import write_cohort
from embedcache.verbs.probe_run import protocol_constants


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
    assert len({again.run_id, fresh.run_id, other.run_id}) == 3


def test_a_run_repeats_bit_for_bit(probed):
    (run_id,) = RunFiles(probed.workspace).ids()
    folder = Path(probed.workspace.runs / run_id)
    before = {file.name: file.read_bytes() for file in folder.glob("*.parquet")}
    assert len(before) == 3
    shutil.rmtree(folder)
    (outcome,) = probed.probe("pixels")
    assert Path(outcome.folder) == folder
    assert {file.name: file.read_bytes() for file in folder.glob("*.parquet")} == before


def test_a_run_record_says_all_that_decided_it(probed):
    runs = RunFiles(probed.workspace)
    document = runs.record(runs.ids()[0]).document()
    question, constants = document["question"], document["constants"]
    assert question["train_cohort"] == "home"
    assert question["external"] == ["abroad"]
    assert (question["n_folds"], question["seed"], document["n_resamples"]) == (5, 0, 10_000)
    assert question["classes"] is None
    assert len(constants["values"]) == 12
    assert constants["protocol"] == "nested-patient-cv-3"
    assert constants["tol"] == {"fit": 1e-6}
    assert constants["choice"] == {
        "tol": [1e-4, 1e-6, 1e-8],
        "close": [5, 2],
        "tie": 0.001,
        "past": 2,
        "chance": 5,
    }
    assert len(document["results"]["C"]) == 5
    assert document["data"]["folds_id"]
    assert document["versions"]["scikit-learn"]
    assert document["versions"]["embedcache-fm"] == embedcache.__version__


def test_a_record_has_the_numbers_that_its_own_protocol_chooses_by():
    others, exact = ProbeMethod(protocol="dinov2"), ProbeMethod("ridge")
    assert protocol_constants(others)["choice"] == {"tol": [1e-4]}
    assert protocol_constants(others)["tol"] == {"fit": 1e-6}
    assert protocol_constants(exact)["choice"] == {"tie": 0.001}
    assert protocol_constants(exact)["tol"] == {}


def test_cohorts_are_chosen_by_size_or_by_name(project):
    project.extract("pixels")
    rewrite_manifest(project, lambda lines: [line for line in lines if "home-01" not in line])
    (outcome,) = project.probe("pixels")
    assert outcome.record.train_cohort == "abroad"  # now the larger one
    (named,) = project.probe("pixels", train_cohort="home", external=())
    assert named.record.request.question.external == ()
    for name in ("train_cohort", "external"):
        with pytest.raises(
            ManifestError, match="no cohort 'mars' in the manifest; it has abroad, h"
        ):
            project.probe("pixels", **{name: "mars"})


def test_what_is_left_out_is_said(project, tmp_path):
    project.extract("pixels")
    messages = []
    rewrite_manifest(project, lambda lines: [lines[0].replace(",abdomen,", ",,"), *lines[1:]])
    project.probe("pixels", on_message=messages.append)
    assert "1 images without a class left out" in messages
    messages.clear()
    project.probe("pixels", train_cohort="abroad", on_message=messages.append)
    assert any("of 'home' left out: femur is no class of 'abroad'" in one for one in messages)
    messages.clear()
    (tmp_path / "map.csv").write_text("label,class\nabdomen,a\nbrain,b\n")
    (outcome,) = project.probe(
        "pixels", class_map=str(tmp_path / "map.csv"), on_message=messages.append
    )
    assert {e.label for e in outcome.estimates if e.metric == "f1"} == {"a", "b"}
    assert outcome.record.request.question.classes == {"abdomen": "a", "brain": "b"}
    (tmp_path / "map.csv").write_text("label,class\nabdomen,a\nbrain,b\nheart,a\n")
    (other,) = project.probe("pixels", class_map=str(tmp_path / "map.csv"))
    assert other.run_id != outcome.run_id


def test_images_of_equal_bytes_on_both_sides_are_counted(project):
    images = project.images().to_pylist()
    paths = {row["image_id"]: project.workspace.data_root / row["path"] for row in images}
    for twin in ("home-001_brain_0", "abroad-000_brain_0"):
        paths[twin].write_bytes(paths["home-000_brain_0"].read_bytes())
    project.extract("pixels")
    messages = []
    (outcome,) = project.probe("pixels", on_message=messages.append)
    assert messages[0].startswith(
        "1 test images are byte-identical to a training image, first 'abroad-000_brain_0' like"
    )
    assert messages[1].startswith(
        "2 training images are byte-identical to one of another patient, first"
    )
    assert outcome.record.notes[:2] == tuple(messages[:2])
    report = project.probe("pixels")
    assert report.leaks
    assert report.document()["audit"]["verdict"] == "leaks"


def test_a_cohort_without_a_common_class_is_skipped_unless_it_was_named(project):
    project.extract("pixels")
    where = "cohort = 'home' AND label <> 'brain' OR cohort = 'abroad' AND label = 'brain'"
    messages = []
    (outcome,) = project.probe("pixels", where=where, on_message=messages.append)
    assert outcome.record.request.question.external == ()
    assert any("of 'abroad' left out: brain is no class of 'home'" in note for note in messages)
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
    assert any("2 images left out: they could not be read" in n for n in outcome.record.notes)
    reasons = project.sql("SELECT image_id, reason FROM failures ORDER BY image_id").to_pylist()
    assert [row["reason"] for row in reasons] == ["not an image", "its file is not here"]


def test_a_patient_in_two_cohorts_is_leakage(project):
    project.extract("pixels")
    rewrite_manifest(
        project, lambda lines: [line.replace(",abroad-003,", ",home-003,") for line in lines]
    )
    with pytest.raises(LeakageError, match="1 patients are in the training cohort and in ext"):
        project.probe("pixels", train_cohort="home")


def test_folds_from_a_file(project, tmp_path):
    project.extract("pixels")
    lines = [f"home-{number:03d},{number % 3}" for number in range(12)]
    (tmp_path / "folds.csv").write_text("\n".join(["patient_id,fold", *lines]))
    (outcome,) = project.probe("pixels", folds=tmp_path / "folds.csv")
    assert outcome.record.request.question.n_folds == 3
    rows = project.sql("SELECT DISTINCT patient_id, fold FROM predictions WHERE fold IS NOT NULL")
    assert {f"{r['patient_id']},{r['fold']}" for r in rows.to_pylist()} == set(lines)


def test_options_reach_the_bootstrap(project):
    project.extract("pixels")
    (few,) = project.probe("pixels", n_resamples=100)
    assert few.record.request.n_resamples == 100
