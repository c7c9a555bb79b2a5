"""`probe` with its controls: what a probe has to beat."""

from __future__ import annotations

import json

import numpy as np
from edits import add_column

from embedcache.data.question import Question
from embedcache.verbs import controls
from embedcache.verbs.session import Session


def test_controls_say_what_a_probe_has_to_beat(project, command):
    project.extract("pixels")
    result = command("probe", "-m", "pixels", "--json", "--progress", "jsonl")
    assert result.code == 0, result.err
    document = json.loads(result.out)
    names = [one["run"]["encoder"] for one in document["controls"]]
    assert names == ["majority", "metadata", "shuffled labels (pixels)"]
    assert [one["run"]["kind"] for one in document["controls"]] == ["control"] * 3
    assert document["not_beaten"] == []
    steps = [json.loads(line) for line in result.err.splitlines() if line.startswith("{")]
    assert [step["done"] for step in steps] == [1, 2, 3, 4]
    again = json.loads(command("probe", "-m", "pixels", "--json").out)
    assert all(one["was_cached"] for one in [*again["runs"], *again["controls"]])
    alone = json.loads(command("probe", "-m", "pixels", "--json", "--no-controls").out)
    assert alone["controls"] == []


def test_a_probe_of_noise_is_said_not_to_beat_its_controls(project, command, tmp_path):
    add_column(
        tmp_path, "noise", lambda lines: np.random.default_rng(1).choice([*"ab"], len(lines))
    )
    project.extract("pixels")
    result = command("probe", "-m", "pixels", "--label", "noise", "--external", "abroad")
    assert result.code == 0, result.err
    assert "'pixels' does not clear the control 'majority': " in result.out
    assert "does not clear" not in command("probe", "-m", "pixels").out


def test_random_encoders_are_controls_and_no_contenders(project, command):
    project.extract(["pixels", "random:timm:test_resnet"])
    result = command("probe", "-m", "all")
    assert result.code == 0, result.err
    (row,) = [line for line in result.out.splitlines() if line.startswith("random:")]
    assert "best" not in row
    assert "shuffled labels (pixels)" in result.out


def test_metadata_is_device_and_size_where_every_file_is_here(project, tmp_path):
    project.extract("pixels")
    study = Session(project.workspace).study(Question())
    features = controls._metadata(study)
    devices = len(set(study.cohorts.column("device", study.cohorts.train)))
    n_images = study.cohorts.images.table.num_rows
    assert features.shape == (n_images, devices + 1 + 3)  # one size
    assert np.isfinite(features).all()
    next((tmp_path / "images").rglob("*.png")).unlink()
    study = Session(project.workspace).study(Question())
    assert controls._metadata(study).shape == (n_images, devices)


def test_two_fingerprints_of_one_name_are_told_apart(project, command):
    project.extract("pixels")
    project.extract("pixels", precision="bf16")
    result = command("probe", "-m", "all", "--no-controls")
    assert result.code == 0, result.err
    assert sum(line.startswith("pixels@") for line in result.out.splitlines()) == 2
