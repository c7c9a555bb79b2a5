"""The nested loop: who is tested by whom, and what is chosen where."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from made_cohorts import TASKS, embeddings, folds_of, folds_with_a_gap, of_task, predicted

from embedcache.data.embeddings import LabelledEmbeddings
from embedcache.data.folds import assign_folds
from embedcache.errors import LeakageError, RunError
from embedcache.probes.families import PROBES
from embedcache.probes.logistic import fit_sweep
from embedcache.protocol.learning_curve import learning_curve
from embedcache.protocol.nested import fit_probe
from embedcache.runs.methods import ProbeMethod


def test_every_training_image_is_predicted_by_a_probe_that_never_saw_its_patient():
    train = embeddings()
    folds = assign_folds(train.patient_id, train.label)
    result = fit_probe(train, folds)
    (inside,) = result.answers
    fold = folds.of(train.patient_id)
    assert (inside.fold == fold).all()
    for number, C in enumerate(result.choices["C"]):
        others = np.flatnonzero(fold != number)
        assert not {train.patient_id[i] for i in others} & {
            train.patient_id[i] for i in np.flatnonzero(fold == number)
        }
        y = np.array([inside.classes.index(name) for name in train.label])
        (path,) = fit_sweep(train.X, y, 3, [(others, [C])], tol=1e-8)
        (alone,) = path.probability(train.X[fold == number])
        assert np.allclose(alone, inside.probability[fold == number], atol=1e-3)


def test_folds_of_a_patient_moved_by_force_change_its_prediction():
    """The test above would not notice a probe that ignores its folds."""
    train = embeddings()
    folds = assign_folds(train.patient_id, train.label)
    moved = {**folds.patients}
    first = train.patient_id[0]
    moved[first] = (moved[first] + 1) % 5
    other = type(folds)("x", 5, 0, moved)
    a, b = (fit_probe(train, table).answers[0].probability for table in (folds, other))
    assert not np.allclose(a[0], b[0])


def test_an_external_cohort_has_no_part_in_any_choice():
    train = embeddings()
    folds = assign_folds(train.patient_id, train.label)
    near, far = embeddings(8, seed=5, cohort="away"), embeddings(8, seed=6, cohort="away", spread=9)
    a, b = (fit_probe(train, folds, [one]) for one in (near, far))
    assert a.choices == b.choices
    assert np.array_equal(a.answers[0].probability, b.answers[0].probability)
    assert a.answers[1].role == "external"
    assert (a.answers[1].fold == -1).all()
    y = np.array(["abc".index(name) for name in train.label])
    (path,) = fit_sweep(train.X, y, 3, [(np.arange(len(y)), [a.choices["final_C"]])], tol=1e-8)
    assert np.allclose(path.probability(near.X)[0], a.answers[1].probability, atol=1e-3)


def test_row_order_changes_no_prediction():
    train = embeddings()
    order = np.random.default_rng(1).permutation(len(train))
    mixed = train.take(order)
    folds = assign_folds(train.patient_id, train.label)
    a = fit_probe(train, folds).answers[0].probability[order]
    b = fit_probe(mixed, folds).answers[0].probability
    assert np.allclose(a, b, atol=1e-4)


def test_twice_is_the_same_to_the_bit():
    train = embeddings()
    folds = assign_folds(train.patient_id, train.label)
    a, b = (fit_probe(train, folds) for _ in "ab")
    assert np.array_equal(a.answers[0].probability, b.answers[0].probability)
    assert a.choices == b.choices


def test_a_tie_goes_to_the_smoother_probe_and_an_edge_is_noted():
    train = embeddings(spread=0.01)
    train = LabelledEmbeddings(
        "e", "f", train.X * 0 + np.eye(6, dtype=np.float32)[["abc".index(n) for n in train.label]],
        train.image_id, train.patient_id, train.cohort, train.label,
    )  # fmt: skip
    folds = assign_folds(train.patient_id, train.label)
    result = fit_probe(train, folds, method=ProbeMethod(grid=(0.1, 1.0, 10.0)))
    assert result.choices["C"] == [0.1] * 5
    assert result.choices["notes"] == [
        "C chosen at the edge of its grid in 5 of 5 folds",
        "6 of 6 temperatures rest on the smoothing of targets: every held-out image was right",
    ]


def test_folds_that_disagree_by_far_on_their_strength_are_noted():
    train = embeddings(n_patients=12, spread=3.0)
    folds = assign_folds(train.patient_id, train.label)
    far, near = (
        fit_probe(train, folds, method=ProbeMethod(grid=(C, 10.0))).choices for C in (0.05, 0.5)
    )
    assert set(far["C"]) == {0.05, 10.0}
    assert far["notes"][1:] == ["C chosen from 0.05 to 10, by fold: the choice is unstable"]
    assert len(set(near["C"])) == 2
    assert not near["notes"][1:]


def test_a_patient_in_training_and_external_cohort_is_leakage():
    train = embeddings()
    folds = assign_folds(train.patient_id, train.label)
    with pytest.raises(LeakageError, match="1 patients are in the training cohort and in"):
        fit_probe(train, folds, [train.take([0, 1])])


def test_what_cannot_be_fitted_is_refused():
    train = embeddings()
    folds = assign_folds(train.patient_id, train.label, n_folds=2)
    with pytest.raises(RunError, match="2 folds leave none to choose C on; pass --folds 3"):
        fit_probe(train, folds)
    with pytest.raises(RunError, match="2 folds leave none to choose C on; pass --folds 3"):
        learning_curve(train, folds, [1])
    away = embeddings(4, classes="abcd", seed=3, cohort="away")
    with pytest.raises(RunError, match="external label 'd' is none of a, b, c"):
        fit_probe(train, assign_folds(train.patient_id, train.label), [away])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_embedding_that_is_not_finite_names_encoder_and_image(bad):
    train = embeddings()
    X = train.X.copy()
    X[3, 2] = bad
    with pytest.raises(
        RunError, match="embedding of image 'home0003' by 'e' holds NaN or infinity"
    ):
        LabelledEmbeddings("e", "f", X, train.image_id, train.patient_id, train.cohort, train.label)


@pytest.mark.parametrize("name", ["knn", "prototype", "ridge", "lda", "svm"])
def test_every_probe_goes_through_the_protocol(name):
    train, away = embeddings(), embeddings(8, seed=5, cohort="away")
    result = fit_probe(train, folds_of(train), [away], method=ProbeMethod(probe=name))
    inside, outside = result.answers
    assert (inside.predicted() == inside.codes()).mean() > 0.8
    assert np.allclose(outside.probability.sum(axis=1), 1)
    assert len(result.choices[PROBES[name].setting]) == 5
    assert result.choices["gap"] == []


@pytest.mark.parametrize("task", TASKS)
def test_the_mean_of_the_folds_predicts_otherwise_than_a_refit(task):
    train, folds, away = of_task(task, spread=2.0)
    refit, mean = (
        fit_probe(train, folds, [away], task=task, method=ProbeMethod(external_by=by))
        for by in ("refit", "folds")
    )
    assert np.array_equal(predicted(refit.answers[0]), predicted(mean.answers[0]))
    assert not np.allclose(predicted(refit.answers[1]), predicted(mean.answers[1]))


@pytest.mark.parametrize("task", TASKS)
def test_the_mean_of_the_fold_answers_is_what_the_folds_predict_together(task):
    train, folds, away = of_task(task, spread=2.0)
    refit, mean = (
        fit_probe(train, folds, [away], task=task, method=ProbeMethod(external_by=by))
        for by in ("refit", "folds")
    )
    for result in (refit, mean):
        (of_folds,) = result.fold_answers
        assert of_folds.image_id == away.image_id * 5
        assert of_folds.patient_id == away.patient_id * 5
        assert (of_folds.role, type(of_folds)) == ("external", type(result.answers[1]))
        assert of_folds.fold.tolist() == np.repeat(np.arange(5), len(away)).tolist()
        parts = predicted(of_folds).reshape(5, len(away), -1)
        assert np.array_equal(parts.mean(axis=0), predicted(mean.answers[1]))
        assert len({part.tobytes() for part in parts}) == 5


@pytest.mark.parametrize("task", TASKS)
def test_each_part_of_the_fold_answers_is_the_probe_that_tested_its_fold(task):
    train, folds, _ = of_task(task)
    fold = folds.of(train.patient_id)
    doubles = replace(
        train,
        patient_id=tuple(f"copy of {name}" for name in train.patient_id),
        cohort=("away",) * len(train),
    )
    result = fit_probe(train, folds, [doubles], task=task)
    inside, (of_folds,) = result.answers[0], result.fold_answers
    for number in range(5):
        copies = predicted(of_folds)[of_folds.fold == number][fold == number]
        assert np.allclose(copies, predicted(inside)[fold == number], rtol=1e-9, atol=1e-12)


def test_fold_answers_have_the_number_and_the_temperature_of_their_fold():
    train, away = embeddings(), embeddings(8, seed=5, cohort="away")
    result = fit_probe(train, folds_with_a_gap(train), [away])
    (of_folds,) = result.fold_answers
    assert sorted(set(of_folds.fold.tolist())) == [0, 1, 3, 4, 5]
    expected = np.repeat(result.choices["temperature"], len(away))
    assert np.array_equal(of_folds.temperature, expected)


def test_each_image_has_the_temperature_of_its_fold():
    train, away = embeddings(spread=2.0), embeddings(8, seed=5, cohort="away")
    table = folds_of(train)
    result = fit_probe(train, table, [away])
    inside, outside = result.answers
    fitted = np.array(result.choices["temperature"])
    assert np.array_equal(inside.temperature, fitted[table.of(train.patient_id)])
    assert len(set(fitted)) == 5
    assert set(outside.temperature) == {result.choices["external_temperature"]}


def test_a_fold_without_images_is_noted_and_changes_nothing():
    train, away = embeddings(), embeddings(8, seed=5, cohort="away")
    plain, gap = (
        fit_probe(train, table, [away]) for table in (folds_of(train), folds_with_a_gap(train))
    )
    for one, other in zip(plain.answers, gap.answers, strict=True):
        assert np.array_equal(one.probability, other.probability)
    assert set(gap.answers[0].fold) == {0, 1, 3, 4, 5}
    assert "1 of 6 folds hold none of the images; 5 are used" in gap.choices["notes"]
    points = [learning_curve(train, table, [4], n_draws=1) for table in
              (folds_of(train), folds_with_a_gap(train))]  # fmt: skip
    assert points[0] == points[1]
    numbers = replace(train, label=tuple(str(float(row[0])) for row in train.X))
    (one,), (other,) = (
        fit_probe(numbers, table, task="regression").answers
        for table in (folds_of(train), folds_with_a_gap(train))
    )
    assert np.array_equal(one.value, other.value)


@pytest.mark.parametrize("task", TASKS)
def test_the_official_test_is_predicted_by_the_mean_of_the_folds(task):
    train, folds, away = of_task(task)
    official = fit_probe(train, folds, [away], task=task, method=ProbeMethod(protocol="fetalclip"))
    final = next(value for name, value in official.choices.items() if name.startswith("final_"))
    method = ProbeMethod(external_by="folds", grid=(final,))
    mean = fit_probe(train, folds, [away], task=task, method=method)
    assert np.allclose(predicted(official.answers[1]), predicted(mean.answers[1]), atol=1e-6)
    assert any("they are optimistic" in note for note in official.choices["notes"])
    if task == "classification":
        assert official.answers[0].temperature is None


@pytest.mark.parametrize("task", TASKS)
def test_what_is_recorded_of_the_choices_has_the_same_names_for_every_task(task):
    train, folds, away = of_task(task)
    choices = fit_probe(train, folds, [away], task=task).choices
    setting = "alpha" if task == "regression" else "C"
    names = [setting, f"final_{setting}", "inner_score", f"skipped_{setting}", "gap", "notes"]
    if task == "classification":
        names[3:3] = ["temperature", "external_temperature"]
    assert list(choices) == names
    assert len(choices[setting]) == len(choices["inner_score"]) == 5
    assert bool(choices["gap"]) == (task != "regression")
