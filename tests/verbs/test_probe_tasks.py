"""`probe` of other labels than one class an image, and on the official split."""

from __future__ import annotations

import pytest
from edits import add_column

import embedcache
from embedcache.errors import LeakageError, ManifestError
from embedcache.testing import write_cohort


@pytest.fixture
def tasks(tmp_path):
    """A project whose images have an age and several findings as well."""
    write_cohort(tmp_path, cohorts=("home", "abroad"))
    add_column(
        tmp_path,
        "age",
        lambda lines: [10 + 3 * ("brain" in x) + n % 2 for n, x in enumerate(lines)],
    )
    add_column(tmp_path, "findings", lambda lines: ["a|b" if "brain" in x else "b" for x in lines])
    project = embedcache.open(tmp_path)
    project.extract("pixels")
    return project


def split_by(folder, is_train):
    """Give each image a part of the official split by its patient's number and its own."""
    file = folder / "data_manifest.csv"
    column = file.read_text().splitlines()[0].split(",").index("patient_id")
    add_column(
        folder,
        "split",
        lambda lines: [
            "train" if is_train(int(line.split(",")[column][-3:]), number) else "test"
            for number, line in enumerate(lines)
        ],
    )


def test_the_command_predicts_numbers_and_labels(tasks, command):
    result = command("probe", "-m", "pixels", "--task", "regression", "--label", "age")
    assert result.code == 0, result.err
    assert result.out.startswith("R2 [95 % interval over patients]\n")
    assert "alpha" in result.out
    result = command("probe", "-m", "pixels", "--task", "multilabel", "--label", "findings")
    assert result.code == 0, result.err
    assert result.out.startswith("macro F1 [95 % interval over patients]\n")
    rows = tasks.sql("SELECT label, predicted, value, correct FROM predictions").to_pylist()
    assert {row["label"] for row in rows if row["value"] is None} >= {"a|b", "b"}
    assert any(row["value"] is not None and row["correct"] is None for row in rows)
    metrics = tasks.sql("SELECT DISTINCT metric FROM metrics")["metric"].to_pylist()
    assert {"mae", "rmse", "r2", "pearson", "mean_average_precision"} <= set(metrics)


def test_settings_of_the_protocol_hold_for_every_task(tasks):
    labels = {"multilabel": "findings", "regression": "age"}
    for task, label in labels.items():
        (usual,) = tasks.probe("pixels", task=task, label=label, n_resamples=100)
        (other,) = tasks.probe(
            "pixels",
            task=task,
            label=label,
            rule="one-se",
            external_by="folds",
            grid=(0.1, 10),
            n_resamples=100,
        )
        assert not other.was_cached
        assert other.run_id != usual.run_id
        assert other.record.method.external_by == "folds"
        assert set(other.record.request.constants["values"]) == {0.1, 10}
    (knn,) = tasks.probe(
        "pixels", task="multilabel", label="findings", probe="knn", n_resamples=100
    )
    assert knn.record.final_settings.keys() == {"k"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--task", "multilabel", "--label", "findings", "--protocol", "clip"],
            "protocol 'clip' is about one class an image, not multilabel; pass --protocol default",
        ),
        (
            ["--task", "regression", "--label", "age", "--probe", "knn"],
            "regression is by ridge; leave out --probe knn",
        ),
        (["--protocol", "clip", "--rule", "one-se"], "leave out --rule one-se"),
    ],
)
def test_what_a_task_does_not_have_is_refused(tasks, command, arguments, message):
    result = command("probe", "-m", "pixels", *arguments)
    assert result.code == 1
    assert message in result.err
    assert result.err.count("\n") == 1


def test_the_official_split_trains_on_train_and_tests_on_test(project, command, tmp_path):
    project.extract("pixels")
    split_by(tmp_path, lambda patient, _: patient % 4 > 0)
    result = command("probe", "-m", "pixels", "--protocol", "fetalclip", "--external", "abroad")
    assert result.code == 0, result.err
    assert "home, test split" in result.out
    runs = project.sql(
        "SELECT run_id, protocol FROM runs WHERE json_extract_string(settings, '$.protocol') = "
        "'fetalclip-like-1' AND kind = 'probe'"
    ).to_pylist()
    assert [run["protocol"] for run in runs] == ["fetalclip"]
    rows = project.sql(
        f"SELECT split, p.cohort, role FROM predictions p JOIN images USING (image_id) "
        f"WHERE run_id = '{runs[0]['run_id']}'"
    ).to_pylist()
    assert {(r["split"], r["role"]) for r in rows if r["cohort"] == "home"} == {
        ("train", "in-domain")
    }
    assert {r["split"] for r in rows if r["cohort"] == "home, test split"} == {"test"}


def test_a_split_that_is_none_is_named(project, tmp_path):
    project.extract("pixels")
    with pytest.raises(ManifestError, match="no column 'split'"):
        project.probe("pixels", protocol="fetalclip")
    add_column(tmp_path, "split", lambda lines: ["training"] * len(lines))
    with pytest.raises(ManifestError, match="holds 'training'; this protocol needs 'train'"):
        project.probe("pixels", protocol="fetalclip")


def test_a_patient_on_both_sides_of_the_official_split_is_leakage(project, tmp_path):
    project.extract("pixels")
    split_by(tmp_path, lambda _, number: number % 2)
    with pytest.raises(LeakageError, match="are in the training cohort and in external cohort"):
        project.probe("pixels", protocol="fetalclip")
