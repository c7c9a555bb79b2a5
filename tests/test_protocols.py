"""Choices, controls, learning curves and other tasks: what the protocol promises beyond a probe."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_probe import embeddings

import embedcache
from embedcache.errors import LeakageError, ManifestError, RunError
from embedcache.folds import assign_folds
from embedcache.learning_curve import learning_curve
from embedcache.pipeline import controls
from embedcache.pipeline.probing import ProbeOptions
from embedcache.probe import ProbeSettings, fit_probe
from embedcache.probe_tasks import fit_label_sets, fit_regression, strata
from embedcache.probes import choice
from embedcache.probes.calibration import fit_temperature
from embedcache.probes.families import PROBES
from embedcache.probes.protocols import PROTOCOLS
from embedcache.testing import write_cohort


def folds_of(train, n_folds=5):
    return assign_folds(train.patient_id, train.label, n_folds=n_folds)


def watch(monkeypatch, train):
    """Record the patients of every training set that is fitted, and of every row predicted."""
    seen = []
    real = choice.logistic.fit_sweep
    owner = {row.tobytes(): who for row, who in zip(train.X, train.patient_id, strict=True)}

    def fit(X, y, n_classes, problems, **options):
        paths = real(X, y, n_classes, problems, **options)
        return [
            Watched(path, {owner[X[row].tobytes()] for row in rows}, owner, seen)
            for path, (rows, _) in zip(paths, problems, strict=True)
        ]

    monkeypatch.setattr(choice.logistic, "fit_sweep", fit)
    return seen


class Watched:
    def __init__(self, path, trained, owner, seen):
        self.path, self.trained, self.owner, self.seen = path, trained, owner, seen

    def probability(self, X):
        self.seen.append((self.trained, {self.owner[row.tobytes()] for row in X}))
        return self.path.probability(X)


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10**6), n_patients=st.integers(9, 30), n_folds=st.integers(3, 5))
def test_no_probe_at_any_level_predicts_a_patient_that_it_was_fitted_on(seed, n_patients, n_folds):
    with pytest.MonkeyPatch.context() as patch:
        train = embeddings(n_patients, seed=seed)
        seen = watch(patch, train)
        table = folds_of(train, n_folds)
        fit_probe(train, table, settings=ProbeSettings(grid=(0.01, 1.0)))
        n_probe = len(seen)
        learning_curve(train, table, [2, 5], n_draws=2)
    assert n_probe >= n_folds * (n_folds - 1) + n_folds
    assert len(seen) > n_probe
    for trained, predicted in seen:
        assert trained
        assert predicted
        assert not trained & predicted


@settings(max_examples=60, deadline=None)
@given(
    images=st.lists(st.tuples(st.integers(0, 12), st.sampled_from("abc")), min_size=8, max_size=60),
    n_folds=st.integers(3, 6),
    seed=st.integers(0, 99),
)
def test_no_split_of_any_manifest_has_a_patient_on_both_sides(images, n_folds, seed):
    """What every task goes through: outer folds, inner folds, and who predicts whom."""
    patient = [f"P{number}" for number, _ in images]
    label = [name for _, name in images]
    try:
        table = assign_folds(patient, label, n_folds=n_folds, seed=seed)
    except RunError:
        return  # too few patients or classes
    fold, who = table.of(patient), np.array(patient)

    def predict(trained, rows):
        assert not set(who[trained]) & set(who[rows])
        return np.zeros((1, len(rows), 1))

    trained_on = []

    def fit(problems):
        trained_on.extend(rows for rows, _ in problems)
        return [rows for rows, _ in problems]

    for outer, (rows, _) in zip(
        np.unique(fold), choice.held_out(fit, predict, fold, [1.0]), strict=True
    ):
        assert sorted(rows) == np.flatnonzero(fold != outer).tolist()
        assert not set(who[rows]) & set(who[fold == outer])
    for rows in trained_on:
        assert len(set(fold[rows])) == len(set(fold)) - 2


@pytest.mark.parametrize("groups", ["abcdefgh", "aabbccdd"])
def test_the_estimator_holds_out_whole_groups(monkeypatch, groups):
    from embedcache.probes import estimators

    train = embeddings(24)
    own = np.array([groups[i % 8] for i in range(len(train))])
    seen = []
    real = estimators.fit_sweep

    def fit(X, y, n_classes, problems, **options):
        seen.extend(rows for rows, _ in problems)
        return real(X, y, n_classes, problems, **options)

    monkeypatch.setattr(estimators, "fit_sweep", fit)
    estimators.LinearProbeCV(Cs=[0.01, 1.0]).fit(train.X, np.array(train.label), groups=own)
    inner = [rows for rows in seen if len(rows) < len(train)]
    assert inner
    for rows in inner:
        assert not set(own[rows]) & set(np.delete(own, rows))


def test_the_watch_of_the_test_above_sees_a_leak(monkeypatch):
    train = embeddings(12)
    seen = watch(monkeypatch, train)
    settings = ProbeSettings(protocol="dinov2", grid=(0.01, 1.0))
    fit_probe(train, folds_of(train), settings=settings)
    assert any(trained & predicted for trained, predicted in seen)


@pytest.mark.parametrize("name", ["knn", "prototype", "ridge", "lda", "svm"])
def test_every_probe_goes_through_the_protocol(name):
    train, away = embeddings(), embeddings(8, seed=5, cohort="away")
    result = fit_probe(train, folds_of(train), [away], ProbeSettings(probe=name))
    inside, outside = result.predictions
    assert (inside.predicted() == inside.codes()).mean() > 0.8
    assert np.allclose(outside.probability.sum(axis=1), 1)
    assert len(result.choices[PROBES[name].setting]) == 5
    assert result.choices["gap"] == []


def test_a_probe_or_protocol_that_is_not_there_is_named():
    with pytest.raises(RunError, match="no probe 'forest'; it may be logistic, knn"):
        ProbeSettings(probe="forest")
    with pytest.raises(RunError, match="no protocol 'mine'; it may be default, dinov2"):
        ProbeSettings(protocol="mine")
    with pytest.raises(RunError, match="protocol 'clip' is about logistic regression"):
        ProbeSettings(probe="knn", protocol="clip")


def test_one_standard_error_never_chooses_a_larger_c():
    train = embeddings(spread=3.0)
    tie, rule = (
        fit_probe(train, folds_of(train), settings=ProbeSettings(rule=rule)).choices["C"]
        for rule in ("tie", "one-se")
    )
    assert all(one <= other for one, other in zip(rule, tie, strict=True))
    assert rule != tie


def test_the_mean_of_the_folds_predicts_otherwise_than_a_refit():
    train, away = embeddings(spread=2.0), embeddings(8, seed=5, cohort="away")
    refit, mean = (
        fit_probe(train, folds_of(train), [away], ProbeSettings(external=external))
        for external in ("refit", "folds")
    )
    assert np.array_equal(refit.predictions[0].probability, mean.predictions[0].probability)
    assert not np.allclose(refit.predictions[1].probability, mean.predictions[1].probability)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dinov2", "clip"])
def test_others_choose_on_a_tenth_of_the_images_from_their_own_grid(name):
    train = embeddings(40)
    result = fit_probe(train, folds_of(train), settings=ProbeSettings(protocol=name))
    assert set(result.choices["C"]) <= set(PROTOCOLS[name].grid)
    assert result.choices["temperature"] == [None] * 5
    assert result.predictions[0].temperature is None


def test_the_search_by_halving_finds_the_peak_of_the_whole_grid(monkeypatch):
    grid = PROTOCOLS["clip"].grid
    tried = []

    class Path:
        def __init__(self, values):
            self.values = values

        def probability(self, X):
            # Accuracy falls with the distance from C = 1, which lies in the middle.
            n_right = [int(len(X) * np.exp(-abs(np.log10(C) / 6))) for C in self.values]
            return np.stack(
                [np.column_stack([np.arange(len(X)) < n, np.arange(len(X)) >= n]) for n in n_right]
            ).astype(float)

    def fit(X, y, n_classes, problems):
        tried.extend(problems[0][1])
        return [Path(problems[0][1])]

    X, y = np.zeros((4000, 1), np.float32), np.zeros(4000, np.int64)
    chosen = choice.choose_as_others(PROTOCOLS["clip"], fit, X, y, 2, np.arange(4000), grid, seed=0)
    assert chosen.value == pytest.approx(1.0)
    assert len(tried) == len(set(tried)) < 20


def test_a_temperature_undoes_what_made_probabilities_too_sure():
    chance = np.random.default_rng(0)
    logits = chance.normal(0, 2, (4000, 3))
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    y = np.array([chance.choice(3, p=row) for row in p])
    sure = p**3 / (p**3).sum(axis=1, keepdims=True)
    assert fit_temperature(p, y) == pytest.approx(1, abs=0.07)
    assert fit_temperature(sure, y) == pytest.approx(3, abs=0.2)
    nothing = np.array([[1.0, 0.0], [1.0, 0.0]])
    assert fit_temperature(nothing, np.array([1, 1])) == 1.0


def test_each_image_has_the_temperature_of_its_fold():
    train, away = embeddings(spread=2.0), embeddings(8, seed=5, cohort="away")
    table = folds_of(train)
    result = fit_probe(train, table, [away])
    inside, outside = result.predictions
    fitted = np.array(result.choices["temperature"])
    assert np.array_equal(inside.temperature, fitted[table.of(train.patient_id)])
    assert len(set(fitted)) == 5
    assert set(outside.temperature) == {result.choices["external_temperature"]}


# Learning curves


def test_a_curve_rises_and_ends_at_all_patients():
    train = embeddings(40, spread=2.0)
    points = learning_curve(train, folds_of(train), n_draws=3)
    assert [point.n_patients for point in points] == [1, 2, 4, 8, 16, 32]
    assert [len(point.macro_f1) for point in points] == [3, 3, 3, 3, 3, 1]
    assert points[0].macro_f1[0] < points[-1].macro_f1[0]
    assert all(fewer.n_images < more.n_images for fewer, more in pairwise(points))


def test_a_curve_is_the_same_for_the_same_seed_and_patients_are_nested(monkeypatch):
    train = embeddings(24)
    seen = watch(monkeypatch, train)
    first = learning_curve(train, folds_of(train), [2, 4], n_draws=2, seed=3)
    sets = [trained for trained, _ in seen]
    again = learning_curve(train, folds_of(train), [2, 4], n_draws=2, seed=3)
    assert first == again
    assert first != learning_curve(train, folds_of(train), [2, 4], n_draws=2, seed=4)
    assert {len(one) for one in sets} >= {2, 4}
    small, large = ([one for one in sets if len(one) == size] for size in (2, 4))
    assert all(any(one <= other for other in large) for one in small)


def test_a_curve_needs_a_patient_and_a_draw():
    train = embeddings(12)
    for sizes, n_draws in (([0], 1), ([1], 0)):
        with pytest.raises(RunError, match="one draw and one patient at least"):
            learning_curve(train, folds_of(train), sizes, n_draws=n_draws)


# Other tasks


def test_a_number_is_predicted_in_its_unit():
    train, away = embeddings(), embeddings(8, seed=5, cohort="away")
    weight = np.random.default_rng(2).normal(size=6)
    train, away = (
        replace(one, label=tuple(f"{value:.3f}" for value in 20 + one.X @ weight))
        for one in (train, away)
    )
    table = assign_folds(train.patient_id, strata("regression", train.label))
    result = fit_regression(train, table, [away])
    inside, outside = result.predictions
    assert np.abs(inside.value - inside.truth).mean() < 0.1 * inside.truth.std()
    assert np.abs(outside.value - outside.truth).mean() < 0.1 * outside.truth.std()
    assert (inside.fold == table.of(train.patient_id)).all()
    assert len(result.choices["alpha"]) == 5


def test_several_labels_are_predicted_each_for_itself():
    train = embeddings()
    letters = {"a": "x|y", "b": "y", "c": "-"}
    train = replace(train, label=tuple(letters[name] for name in train.label))
    table = assign_folds(train.patient_id, strata("multilabel", train.label))
    (inside,) = fit_label_sets(train, table).predictions
    assert inside.names == ("x", "y")
    assert (inside.called() == inside.truth).mean() > 0.85


def test_labels_that_are_none_of_the_task_are_named():
    train = embeddings()
    with pytest.raises(RunError, match="is no number; leave it out with --where"):
        strata("regression", train.label)
    with pytest.raises(RunError, match="every cell is '-'"):
        fit_label_sets(replace(train, label=("-",) * len(train)), folds_of(train))


def test_strata_are_fifths_of_a_number_and_the_rarest_of_labels():
    assert strata("regression", ["5", "1", "3", "2", "4"]) == [
        f"fifth {n}" for n in (5, 1, 3, 2, 4)
    ]
    assert strata("multilabel", ["a|b", "a", "-", "a"]) == ["b", "a", "-", "a"]


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


# Controls


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


def test_shuffled_labels_keep_counts_and_leave_their_images():
    train = embeddings(30)
    label = controls._shuffled(train, np.random.default_rng(0))
    assert sorted(label) == sorted(train.label)
    assert label != train.label
    # All of a patient's labels stay together, in order, on neighbours.
    assert "".join(train.label[:3]) in "".join(label)


def test_metadata_is_device_and_size_where_every_file_is_here(project, tmp_path):
    project.extract("pixels")
    from embedcache.pipeline.cohorts import CohortOptions
    from embedcache.pipeline.probing import ask

    question = ask(project.workspace, CohortOptions(), ProbeOptions())
    features = controls._metadata(question)
    devices = len(set(question.cohorts.column("device", question.cohorts.train)))
    n_images = question.cohorts.images.table.num_rows
    assert features.shape == (n_images, devices + 1 + 3)  # one size
    assert np.isfinite(features).all()
    next((tmp_path / "images").rglob("*.png")).unlink()
    question = ask(project.workspace, CohortOptions(), ProbeOptions())
    assert controls._metadata(question).shape == (n_images, devices)


def folds_with_a_gap(train):
    table = folds_of(train)
    return replace(
        table, n_folds=6, patients={who: f + (f > 1) for who, f in table.patients.items()}
    )


def test_a_fold_without_images_is_noted_and_changes_nothing():
    train, away = embeddings(), embeddings(8, seed=5, cohort="away")
    plain, gap = (
        fit_probe(train, table, [away]) for table in (folds_of(train), folds_with_a_gap(train))
    )
    for one, other in zip(plain.predictions, gap.predictions, strict=True):
        assert np.array_equal(one.probability, other.probability)
    assert set(gap.predictions[0].fold) == {0, 1, 3, 4, 5}
    assert "1 of 6 folds hold none of the images; 5 are used" in gap.choices["notes"]
    points = [learning_curve(train, table, [4], n_draws=1) for table in
              (folds_of(train), folds_with_a_gap(train))]  # fmt: skip
    assert points[0] == points[1]
    numbers = replace(train, label=tuple(str(float(row[0])) for row in train.X))
    (one,), (other,) = (
        fit_regression(numbers, table).predictions
        for table in (folds_of(train), folds_with_a_gap(train))
    )
    assert np.array_equal(one.value, other.value)


@pytest.mark.parametrize("name", ["dinov2", "clip"])
def test_no_row_order_moves_what_others_choose(name):
    train = embeddings(16)
    order = np.random.default_rng(1).permutation(len(train))
    settings = ProbeSettings(protocol=name, grid=PROTOCOLS[name].grid[20:70:8])
    table = folds_of(train)
    a = fit_probe(train, table, settings=settings)
    b = fit_probe(train.take(order), table, settings=settings)
    assert a.choices["C"] == b.choices["C"]
    assert np.allclose(a.predictions[0].probability[order], b.predictions[0].probability, atol=1e-3)


def test_equal_numbers_share_a_stratum():
    values = [str(value) for value in np.random.default_rng(0).integers(4, size=60)]
    order = np.random.default_rng(1).permutation(60)
    one = strata("regression", values)
    other = strata("regression", [values[i] for i in order])
    assert [one[i] for i in order] == other


def test_options_that_a_task_does_not_have_are_refused(tasks, command):
    for extra in (["--protocol", "clip"], ["--rule", "one-se"], ["--external-by", "folds"]):
        said = command(
            "probe", "-m", "pixels", "--task", "multilabel", "--label", "findings", *extra
        )
        assert said.code == 1
        assert "--task multilabel has the default protocol, rule and refit" in said.err
    said = command("probe", "-m", "pixels", "--task", "regression", "--label", "age",
                   "--probe", "knn")  # fmt: skip
    assert "and ridge for a probe" in said.err


def test_a_number_that_never_varies_is_refused():
    train = embeddings()
    with pytest.raises(RunError, match="every training label is 3; there is nothing to learn"):
        fit_regression(replace(train, label=("3",) * len(train)), folds_of(train))


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


# The official split


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


def test_the_official_test_is_predicted_by_the_mean_of_the_folds():
    train, away = embeddings(), embeddings(8, seed=5, cohort="away")
    official = fit_probe(train, folds_of(train), [away], ProbeSettings(protocol="fetalclip"))
    mean = fit_probe(
        train,
        folds_of(train),
        [away],
        ProbeSettings(external="folds", grid=(official.choices["final_C"],)),
    )
    assert np.allclose(
        official.predictions[1].probability, mean.predictions[1].probability, atol=1e-6
    )
    assert official.predictions[0].temperature is None
    assert any("they are optimistic" in note for note in official.choices["notes"])


def test_a_split_that_is_none_is_named(project, tmp_path):
    project.extract("pixels")
    options = ProbeOptions(settings=ProbeSettings(protocol="fetalclip"))
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
    options = ProbeOptions(settings=ProbeSettings(protocol="fetalclip"))
    with pytest.raises(LeakageError, match="is in the training cohort and in external cohort"):
        project.probe("pixels", probe_options=options)


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
