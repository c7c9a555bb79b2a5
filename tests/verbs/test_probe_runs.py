"""Probes, controls and learning curves as runs of a project."""

from __future__ import annotations

import json

import numpy as np
import pytest
from embedcache.verbs.cohorts import CohortOptions
from embedcache.verbs.probing import ProbeOptions, ask

import embedcache
from embedcache.errors import LeakageError, ManifestError
from embedcache.runs.methods import ProbeMethod
from embedcache.testing import write_cohort
from embedcache.verbs import controls


@pytest.fixture
def tasks(tmp_path):
    """A project whose images have an age and several findings as well."""
    write_cohort(tmp_path, cohorts=("home", "abroad"))
    file = tmp_path / "data_manifest.csv"
    header, *lines = file.read_text().splitlines()
    lines = [
        f"{line},{10 + 3 * ('brain' in line) + number % 2},{'a|b' if 'brain' in line else 'b'}"
        for number, line in enumerate(lines)
    ]
    file.write_text("\n".join([f"{header},age,findings", *lines]) + "\n")
    project = embedcache.open(tmp_path)
    project.extract("pixels")
    return project


def test_the_command_predicts_numbers_and_labels(tasks, command):
    said = command("probe", "-m", "pixels", "--task", "regression", "--label", "age")
    assert said.code == 0, said.err
    assert said.out.startswith("R2 [95 % interval over patients]\n")
    assert "alpha" in said.out
    said = command("probe", "-m", "pixels", "--task", "multilabel", "--label", "findings")
    assert said.code == 0, said.err
    assert said.out.startswith("macro F1 [95 % interval over patients]\n")
    rows = tasks.sql("SELECT label, predicted, value, correct FROM predictions").to_pylist()
    assert {row["label"] for row in rows if row["value"] is None} >= {"a|b", "b"}
    assert any(row["value"] is not None and row["correct"] is None for row in rows)
    metrics = tasks.sql("SELECT DISTINCT metric FROM metrics")["metric"].to_pylist()
    assert {"mae", "rmse", "r2", "pearson", "mean_average_precision"} <= set(metrics)
    assert command("compare").code != 0


def test_options_of_the_protocol_hold_for_every_task_that_they_make_sense_for(tasks, command):
    for task, label in (("multilabel", "findings"), ("regression", "age")):
        question = ("probe", "-m", "pixels", "--task", task, "--label", label, "--no-controls")
        for extra in (["--rule", "one-se"], ["--external-by", "folds"]):
            answer = command(*question, *extra)
            assert answer.code == 0, answer.err
        answer = command(*question, "--protocol", "clip")
        assert answer.code == 1
        assert f"protocol 'clip' is about one class an image, not {task}" in answer.err
    assert (
        "regression is by ridge; leave out --probe knn" in command(*question, "--probe", "knn").err
    )


def test_controls_say_what_a_probe_has_to_beat(project, command):
    project.extract("pixels")
    said = command("probe", "-m", "pixels", "--json", "--progress", "jsonl")
    assert said.code == 0, said.err
    document = json.loads(said.out)
    names = [one["run"]["encoder"] for one in document["controls"]]
    assert names == ["majority", "metadata", "shuffled labels (pixels)"]
    assert [one["run"]["kind"] for one in document["controls"]] == ["control"] * 3
    assert document["not_beaten"] == []
    steps = [json.loads(line) for line in said.err.splitlines() if line.startswith("{")]
    assert [step["done"] for step in steps] == [1, 2, 3, 4]
    again = json.loads(command("probe", "-m", "pixels", "--json").out)
    assert all(one["was_cached"] for one in [*again["runs"], *again["controls"]])
    alone = json.loads(command("probe", "-m", "pixels", "--json", "--no-controls").out)
    assert alone["controls"] == []


def add_column(folder, name, values):
    """Give the manifest another column, one value a row."""
    file = folder / "data_manifest.csv"
    header, *lines = file.read_text().splitlines()
    rows = [f"{line},{value}" for line, value in zip(lines, values(lines), strict=True)]
    file.write_text("\n".join([f"{header},{name}", *rows]) + "\n")


def test_a_probe_of_noise_is_said_not_to_beat_its_controls(project, command, tmp_path):
    add_column(
        tmp_path, "noise", lambda lines: np.random.default_rng(1).choice([*"ab"], len(lines))
    )
    project.extract("pixels")
    said = command("probe", "-m", "pixels", "--label", "noise", "--external", "abroad")
    assert said.code == 0, said.err
    assert "'pixels' does not clear the control 'majority': " in said.out
    assert "does not clear" not in command("probe", "-m", "pixels").out


def test_random_encoders_are_controls_and_no_contenders(project, command):
    project.extract(["pixels", "random:timm:test_resnet"])
    said = command("probe", "-m", "all")
    assert said.code == 0, said.err
    (row,) = [line for line in said.out.splitlines() if line.startswith("random:")]
    assert "best" not in row
    assert "shuffled labels (pixels)" in said.out


def test_metadata_is_device_and_size_where_every_file_is_here(project, tmp_path):
    project.extract("pixels")

    question = ask(project.workspace, CohortOptions(), ProbeOptions())
    features = controls._metadata(question)
    devices = len(set(question.cohorts.column("device", question.cohorts.train)))
    n_images = question.cohorts.images.table.num_rows
    assert features.shape == (n_images, devices + 1 + 3)  # one size
    assert np.isfinite(features).all()
    next((tmp_path / "images").rglob("*.png")).unlink()
    question = ask(project.workspace, CohortOptions(), ProbeOptions())
    assert controls._metadata(question).shape == (n_images, devices)


def test_two_fingerprints_of_one_name_are_told_apart(project, command):
    project.extract("pixels")
    project.extract("pixels", precision="bf16")
    said = command("probe", "-m", "all", "--no-controls")
    assert said.code == 0, said.err
    assert sum(line.startswith("pixels@") for line in said.out.splitlines()) == 2


def test_curves_are_no_contenders(project, command):
    project.extract("pixels")
    project.probe("pixels")
    (curve,) = project.learning_curves("pixels", sizes=[2], n_draws=1)
    assert command("compare").code == 0
    said = command("compare", curve.run.run_id)
    assert "is a learning curve; expected a probe or zeroshot" in said.err


def test_the_command_prints_a_learning_curve(project, command):
    project.extract("pixels")
    said = command("probe", "-m", "pixels", "--patients", "2,4", "--draws", "2")
    assert said.code == 0, said.err
    assert said.out.startswith("macro F1, mean [least, most] over draws of training patients\n")
    rows = project.sql(
        "SELECT label, value FROM metrics WHERE metric = 'macro_f1_by_patients'"
    ).to_pylist()
    assert [row["label"] for row in rows][:2] == ["2", "4"]
    assert command("probe", "-m", "pixels", "--patients", "0").code == 2
    assert command("probe", "-m", "pixels", "--patients", "2", "--probe", "knn").code == 2


def test_the_official_split_trains_on_train_and_tests_on_test(project, command, tmp_path):
    project.extract("pixels")
    file = tmp_path / "data_manifest.csv"
    header, *lines = file.read_text().splitlines()
    column = header.split(",").index("patient_id")
    split = ["train" if int(line.split(",")[column][-3:]) % 4 else "test" for line in lines]
    rows = [f"{line},{part}" for line, part in zip(lines, split, strict=True)]
    file.write_text("\n".join([f"{header},split", *rows]) + "\n")
    said = command("probe", "-m", "pixels", "--protocol", "fetalclip", "--external", "abroad")
    assert said.code == 0, said.err
    assert "home, test split" in said.out
    run = project.sql(
        "SELECT run_id FROM runs WHERE json_extract_string(settings, '$.protocol') = "
        "'fetalclip-like-1' AND kind = 'probe'"
    )["run_id"][0].as_py()
    rows = project.sql(
        f"SELECT split, p.cohort, role FROM predictions p JOIN images USING (image_id) "
        f"WHERE run_id = '{run}'"
    ).to_pylist()
    assert {(r["split"], r["role"]) for r in rows if r["cohort"] == "home"} == {
        ("train", "in-domain")
    }
    assert {r["split"] for r in rows if r["cohort"] == "home, test split"} == {"test"}


def test_a_split_that_is_none_is_named(project, tmp_path):
    project.extract("pixels")
    options = ProbeOptions(settings=ProbeMethod(protocol="fetalclip"))
    with pytest.raises(ManifestError, match="no column 'split'"):
        project.probe("pixels", probe_options=options)
    file = tmp_path / "data_manifest.csv"
    header, *lines = file.read_text().splitlines()
    file.write_text("\n".join([f"{header},split", *(f"{line},training" for line in lines)]) + "\n")
    with pytest.raises(ManifestError, match="holds 'training'; this protocol needs 'train'"):
        project.probe("pixels", probe_options=options)


def test_a_patient_on_both_sides_of_the_official_split_is_leakage(project, tmp_path):
    project.extract("pixels")
    file = tmp_path / "data_manifest.csv"
    header, *lines = file.read_text().splitlines()
    rows = [f"{line},{'train' if number % 2 else 'test'}" for number, line in enumerate(lines)]
    file.write_text("\n".join([f"{header},split", *rows]) + "\n")
    options = ProbeOptions(settings=ProbeMethod(protocol="fetalclip"))
    with pytest.raises(LeakageError, match="is in the training cohort and in external cohort"):
        project.probe("pixels", probe_options=options)
