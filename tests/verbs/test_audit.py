"""`audit`: a clean cohort gives no alarm, and each planted fault is found."""

from __future__ import annotations

import numpy as np
import planted
import pytest
from conftest import real

import embedcache
from embedcache.errors import MissingEmbeddingsError, RunError
from embedcache.testing import write_cohort


def kinds(report):
    return {finding.kind: finding for finding in report.findings}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "settings",
    [{"cohorts": ("home", "abroad")}, {"n_patients": 30, "size": 24}, {"n_images": 1}],
    ids=["two cohorts", "more patients", "one image a class"],
)
def test_a_clean_cohort_gives_no_alarm(tmp_path, seed, settings):
    write_cohort(tmp_path, seed=seed, **settings)
    project = embedcache.open(tmp_path)
    project.extract("pixels")
    report = project.audit()
    assert (report.verdict, report.findings) == ("clean", ())
    assert report.n_images == project.images().num_rows
    assert project.verify().is_whole


@pytest.fixture
def rows(tmp_path):
    return planted.write(tmp_path)


def test_the_drawn_cohort_is_clean(tmp_path, rows):
    report = planted.rewrite(tmp_path, rows).audit()
    assert report.findings == ()
    # Facts of images, the label by each of them, and each of them by the encoder.
    scores = {(score.target, score.source, score.split) for score in report.scores}
    assert scores == {
        ("label", "pixels", "patients"),
        ("label", "pixels", "images"),
        ("label", "device", "patients"),
        ("label", "metadata", "patients"),
        ("device", "pixels", "patients"),
    }


@pytest.mark.parametrize("cohort", ["home", "abroad"])
@pytest.mark.parametrize("change", planted.CHANGES)
def test_a_near_duplicate_under_another_patient_is_found(tmp_path, rows, change, cohort):
    copy = planted.copy_of(
        tmp_path, rows[4], planted.CHANGES[change], patient_id="P99", cohort=cohort
    )
    report = planted.rewrite(tmp_path, [*rows, copy]).audit()
    assert report.verdict == "leaks"
    [finding] = report.findings
    assert (finding.kind, set(finding.images)) == ("near-duplicate", {"copy", rows[4]["image_id"]})
    assert any("near-duplicates by 'pixels': similarity from 0." in note for note in report.notes)


def test_a_threshold_may_be_given(tmp_path, rows):
    copy = planted.copy_of(tmp_path, rows[4], planted.jpeg, patient_id="P99")
    project = planted.rewrite(tmp_path, [*rows, copy])
    assert project.audit(threshold=1.0).findings == ()
    report = project.audit(threshold=0.99)
    assert "near-duplicate" in kinds(report)
    assert report.notes[-1] == "near-duplicates by 'pixels': similarity from 0.9900, as given"
    with pytest.raises(RunError, match=r"threshold is 1\.5; expected a similarity"):
        project.audit(threshold=1.5)


def test_equal_pixels_in_another_file_are_found(tmp_path, rows):
    copy = planted.copy_of(tmp_path, rows[4], np.asarray, patient_id="P99", cohort="abroad")
    from PIL import Image

    Image.open(tmp_path / "copy.png").save(tmp_path / "copy.bmp")
    report = planted.rewrite(tmp_path, [*rows, {**copy, "path": "copy.bmp"}]).audit()
    [finding] = report.findings
    assert (finding.kind, finding.images) == ("pixels-in-two-cohorts", ("copy",))
    assert report.verdict == "leaks"


def test_a_device_that_is_the_class_is_found(tmp_path, rows):
    changed = [{**row, "device": f"device of {row['label']}"} for row in rows]
    report = planted.rewrite(tmp_path, changed).audit()
    assert report.verdict == "warnings"
    assert "'device' alone tells 'label' with macro F1 1.000" in report.findings[0].message
    assert next(s for s in report.scores if s.target == "device").value > 0.9


def test_marks_in_the_pictures_of_one_class_are_found(tmp_path, rows):
    from PIL import Image

    for row in rows:
        if row["label"] == "brain":
            pixels = np.asarray(Image.open(tmp_path / row["path"])).copy()
            pixels[1:4, 4:40] = 0
            pixels[2:4, 4:40:3] = 255
            Image.fromarray(pixels).save(tmp_path / row["path"])
    report = planted.rewrite(tmp_path, rows).audit()
    assert any("'burnt-in marks' alone tells" in f.message for f in report.findings)


def test_flipped_labels_are_listed(tmp_path, rows):
    flipped = [rows[number] for number in (3, 20)]
    for row in flipped:
        row["label"] = planted.CLASSES[1 - planted.CLASSES.index(row["label"])]
    report = planted.rewrite(tmp_path, rows).audit()
    finding = kinds(report)["label-error"]
    assert {row["image_id"] for row in flipped} <= set(finding.images)
    assert report.verdict == "clean"


def test_labels_of_a_class_of_one_patient_are_not_judged(tmp_path, rows):
    for row in rows[:2]:
        row["label"] = "solo"
    findings = kinds(planted.rewrite(tmp_path, rows).audit())
    assert "rare-class" in findings
    assert "label-error" not in findings


def test_a_twin_is_found_and_named_only_if_asked(tmp_path, rows):
    rows[5]["patient_id"] = "p2"
    project = planted.rewrite(tmp_path, rows)
    finding = kinds(project.audit())["patient-spelling"]
    assert finding.severity == "leak"
    assert "P02" not in finding.message
    assert "'P02', 'p2'" in kinds(project.audit(show_patients=True))["patient-spelling"].message


@pytest.mark.slow
def test_two_encoders_must_agree_and_random_ones_are_taken_by_name(tmp_path, rows):
    project = planted.rewrite(tmp_path, rows)
    project.extract("random:efficientnet-lite0")
    assert len(project.audit().encoders) == 1
    report = project.audit(["pixels", "random:efficientnet-lite0"])
    assert [name.partition("@")[0] for name in report.encoders] == [
        "pixels",
        "random:efficientnet-lite0",
    ]
    assert len([note for note in report.notes if note.startswith("near-duplicates by")]) == 2


def test_without_embeddings_the_rest_is_looked_at(tmp_path, rows):
    rows[-1]["path"] = rows[0]["path"]
    from embedcache.data.manifest import write_manifest

    write_manifest(tmp_path / "data_manifest.csv", rows)
    messages = []
    report = embedcache.open(tmp_path).audit(on_message=messages.append)
    assert "bytes-in-two-cohorts" in kinds(report)
    assert messages[0].startswith("no embeddings: near-duplicates")
    assert report.encoders == ()


def test_an_encoder_that_lacks_images_is_left_out_or_refused_by_name(tmp_path, rows):
    planted.rewrite(tmp_path, rows[:-2])
    from embedcache.data.manifest import write_manifest

    write_manifest(tmp_path / "data_manifest.csv", rows)
    project = embedcache.open(tmp_path)
    assert any(note.startswith("'pixels' is left out: 2 of") for note in project.audit().notes)
    with pytest.raises(MissingEmbeddingsError, match="have no 'pixels' embedding"):
        project.audit("pixels")


def test_pictures_are_decoded_once_and_findings_are_in_sql(tmp_path, rows, monkeypatch):
    rows[5]["patient_id"] = "p2"
    project = planted.rewrite(tmp_path, rows)
    steps = []
    first = project.audit(on_progress=steps.append)
    assert (len(steps), steps[-1].n_done) == (len(rows), len(rows))
    again = project.audit(on_progress=steps.append)
    assert len(steps) == len(rows)
    assert [f.message for f in again.findings] == [f.message for f in first.findings]
    [row] = project.sql("FROM audits").to_pylist()
    assert (row["audit_id"], row["verdict"]) == (again.audit_id, "leaks")
    table = project.sql("SELECT kind, severity, image_id FROM audit ORDER BY image_id").to_pylist()
    assert [r["image_id"] for r in table] == sorted(again.findings[0].images)
    scores = project.sql("SELECT target, value FROM audit_scores").to_pylist()
    assert len(scores) == len(again.scores)


def test_pictures_that_are_gone_or_broken_are_left_out(tmp_path, rows):
    project = planted.rewrite(tmp_path, rows)
    (tmp_path / rows[0]["path"]).unlink()
    report = embedcache.open(tmp_path).audit()
    assert "1 pictures are not here or cannot be decoded; they are left out" in report.notes
    (tmp_path / "data_manifest.csv").unlink()
    elsewhere = embedcache.open(tmp_path).audit()
    assert elsewhere.notes[0].startswith("the images are not here")
    assert project.verify().is_whole


def test_a_picture_that_is_gone_costs_the_others_no_measure(tmp_path, rows):
    project = planted.rewrite(tmp_path, rows)
    (tmp_path / rows[0]["path"]).unlink()
    report = project.audit()
    assert "image size" in {score.source for score in report.scores}
    assert report.verdict == "clean"


def test_damaged_files_of_an_audit_are_found_and_removed(tmp_path, rows):
    project = planted.rewrite(tmp_path, rows)
    project.audit()
    folder = project.workspace.store / "audit"
    [table, findings] = sorted(tmp_path.joinpath(".embedcache/audit").iterdir(), reverse=True)
    for file in (table, findings):
        file.write_bytes(file.read_bytes()[:-9] + b"x" * 9)
    damaged = {finding.path.name for finding in project.verify().findings}
    assert damaged == {table.name, findings.name}
    assert project.verify(repair=True).is_whole
    assert folder.list() == []
    assert project.audit().verdict == "clean"


@pytest.mark.slow
def test_real_lung_ultrasound_is_confounded_and_a_split_by_frame_inflates(tmp_path):
    manifest = real("pocus_lung", "data_manifest.csv")
    project = embedcache.open(manifest=manifest, store=tmp_path)
    project.extract("pixels")
    report = project.audit(where="label <> 'viral_pneumonia'")
    message = next(f.message for f in report.findings if "'center' alone" in f.message)
    assert "of 'covid' come from combatting, denault, oliveira, volpicelli" in message
    assert "a split by image inflates" in kinds(report)["image-split-inflates"].message
    by_image = next(s for s in report.scores if s.split == "images")
    assert by_image.value > 0.9 > 0.8 > report.scores[0].value
