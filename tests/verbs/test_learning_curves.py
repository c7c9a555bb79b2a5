"""`probe --patients`: learning curves as runs of a project."""

from __future__ import annotations

from embedcache.protocol import choice


def test_curves_are_no_contenders(project, command):
    project.extract("pixels")
    project.probe("pixels")
    (curve,) = project.learning_curves("pixels", sizes=[2], n_draws=1)
    assert command("compare").code == 0
    result = command("compare", curve.run_id)
    assert "is a learning curve; expected a probe or zeroshot" in result.err


def test_the_command_prints_a_learning_curve(project, command):
    project.extract("pixels")
    result = command("probe", "-m", "pixels", "--patients", "2,4", "--draws", "2")
    assert result.code == 0, result.err
    assert result.out.startswith("macro F1, mean [least, most] over draws of training patients\n")
    rows = project.sql(
        "SELECT label, value FROM metrics WHERE metric = 'macro_f1_by_patients'"
    ).to_pylist()
    assert [row["label"] for row in rows][:2] == ["2", "4"]
    assert command("probe", "-m", "pixels", "--patients", "0").code == 2
    assert command("probe", "-m", "pixels", "--patients", "2", "--probe", "knn").code == 2
    refused = command("probe", "-m", "pixels", "--patients", "2", "--external", "abroad")
    assert refused.code == 2
    assert "--patients tests on the training cohort; leave out --external" in refused.err


def test_a_curve_is_found_again_with_its_points(project):
    project.extract("pixels")
    (first,) = project.learning_curves("pixels", sizes=(2, 4), n_draws=2)
    (again,) = project.learning_curves("pixels", sizes=(2, 4), n_draws=2)
    assert (first.was_cached, again.was_cached) == (False, True)
    assert again.record.curve == first.record.curve
    assert [n_patients for n_patients, _ in again.record.curve][:2] == [2, 4]
    assert all(len(scores) <= 2 for _, scores in again.record.curve)
    assert [one.label for one in again.headlines][:2] == ["2", "4"]
    assert again.answers == ()


def test_another_protocol_makes_another_curve(project, monkeypatch):
    project.extract("pixels")
    (first,) = project.learning_curves("pixels", sizes=[2], n_draws=1)
    assert first.record.request.constants["protocol"] == "nested-patient-cv-3"
    monkeypatch.setattr(choice, "_CHANCE", 4)
    (other,) = project.learning_curves("pixels", sizes=[2], n_draws=1)
    assert not other.was_cached


def test_curves_of_no_encoder_are_refused_in_one_line(project, command):
    refused = command("probe", "-m", "all", "--patients", "2")
    assert refused.code == 1
    assert "holds no embeddings; run `embedcache extract" in refused.err
    project.extract("pixels")
    for chunk in project.workspace.store.local_path.glob("encoders/*/seg/*.zarr/c/0/0"):
        chunk.write_bytes(bytes(64) + chunk.read_bytes()[64:])
    refused = command("probe", "-m", "all", "--patients", "2")
    assert refused.code == 4
    assert "what is stored of all 1 encoders is damaged; run `embedcache verify" in refused.err
    refused = command("audit")
    assert refused.code == 0
    assert "note: 'pixels' is left out: " in refused.err
