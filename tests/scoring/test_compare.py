"""Models against each other: the statistics on arrays, then the verb on stored runs."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

from embedcache.data.predictions import Predictions
from embedcache.errors import RunError
from embedcache.runs import files as run_files
from embedcache.runs.record import Run
from embedcache.scoring.compare import (
    alike,
    compare,
    drop,
    holm,
    permutation_p,
    reliability,
    spread,
)
from embedcache.scoring.evaluate import evaluate
from embedcache.scoring.scores import interval, resample_weights, units_of
from embedcache.verbs.compare import CompareReport


def said(sharp, *, n_patients=20, classes="abc", labels="abc", seed=0, own=0, cohort="home"):
    """Predictions on the same images for any `sharp` and `own`, which is the model's own chance."""
    chance, model = np.random.default_rng(seed), np.random.default_rng([seed, own])
    patient = np.repeat(np.arange(n_patients), chance.integers(2, 7, n_patients))
    truth = chance.integers(len(labels), size=len(patient))
    shared = chance.normal(size=(len(patient), len(classes)))
    logits = shared + model.normal(size=shared.shape) + model.normal(size=(n_patients, 1))[patient]
    places = [classes.index(name) for name in labels]
    logits[np.arange(len(truth)), np.array(places)[truth]] += sharp
    odds = np.exp(logits)
    n = len(truth)
    return Predictions(
        role="in-domain",
        classes=tuple(classes),
        image_id=tuple(f"{cohort}{i}" for i in range(n)),
        patient_id=tuple(f"{cohort}-{i}" for i in patient),
        cohort=(cohort,) * n,
        label=tuple(labels[i] for i in truth),
        fold=patient % 3,
        probability=odds / odds.sum(axis=1, keepdims=True),
    )


def units(*arguments, **settings):
    return units_of(said(*arguments, **settings))


# Statistics


def test_scores_and_differences_are_those_of_scikit_learn():
    models = {"good": said(2.0, own=1), "bad": said(0.5, own=2)}
    found = compare({name: units_of(one) for name, one in models.items()}, "macro_f1")
    values = {
        name: f1_score(one.label, [one.classes[i] for i in one.predicted()], average="macro")
        for name, one in models.items()
    }
    assert {one.name: one.value for one in found.standings} == pytest.approx(values)
    (pair,) = found.pairs
    assert (pair.better, pair.worse) == ("good", "bad")
    assert pair.difference == pytest.approx(values["good"] - values["bad"])
    assert found.behind_best("bad") == pair
    assert found.behind_best("good") is None


def test_intervals_of_differences_resample_the_same_patients_for_both():
    first, second = said(1.5, own=1), said(1.0, own=2)
    (pair,) = compare({"x": units_of(first), "y": units_of(second)}, "accuracy").pairs
    names, patient = np.unique(first.patient_id, return_inverse=True)
    weights = resample_weights(len(names), 10_000, 0)[:, patient]
    leads = [
        weights @ (one.predicted() == one.codes()) / weights.sum(axis=1) for one in (first, second)
    ]
    ends = interval(np.subtract(*leads), len(names))
    assert pair.better == "x"
    assert (pair.low, pair.high) == pytest.approx(ends, abs=1e-6)


def test_the_permutation_swaps_patients_and_counts_as_written_out():
    """All 2^6 swaps of six patients, each scored by scikit-learn on swapped predictions."""
    first, second = (said(1.0, n_patients=6, own=own) for own in (1, 2))
    patient = np.unique(first.patient_id, return_inverse=True)[1]
    truth, a, b = first.codes(), first.predicted(), second.predicted()
    swaps = np.array(list(itertools.product([0, 1], repeat=6)), np.float32)

    def lead(swap):
        moved = swap[patient] == 1
        ours, theirs = np.where(moved, b, a), np.where(moved, a, b)
        return np.subtract(*(f1_score(truth, one, average="macro") for one in (ours, theirs)))

    leads = np.abs([lead(swap) for swap in swaps])
    expected = (1 + (leads >= leads[0] - 1e-9).sum()) / (1 + len(swaps))
    assert permutation_p(units_of(first), units_of(second), "macro_f1", swaps) == expected
    assert expected < 1


def test_p_is_uniform_where_the_models_differ_by_chance_only():
    swaps = np.random.default_rng(0).integers(2, size=(400, 20)).astype(np.float32)
    p = [
        permutation_p(units(1.0, own=2 * i + 1), units(1.0, own=2 * i + 2), "macro_f1", swaps)
        for i in range(200)
    ]
    below = [np.mean(np.array(p) <= level) for level in (0.05, 0.25, 0.5, 0.75)]
    assert below == pytest.approx([0.05, 0.25, 0.5, 0.75], abs=0.09)


def test_p_is_small_where_one_model_is_better_and_never_0():
    (pair,) = compare(
        {"x": units(4.0, n_patients=40, own=1), "y": units(0.0, n_patients=40, own=2)},
        "balanced_accuracy",
        n_resamples=999,
    ).pairs
    assert pair.p == pair.p_corrected == 1 / 1000


def test_a_model_against_itself_is_a_tie():
    one = units(1.0)
    found = compare({"x": one, "y": one}, "macro_f1", n_resamples=200)
    assert [(s.rank, s.p_best, s.groups) for s in found.standings] == [(1.5, 0.5, (1,))] * 2
    assert (found.pairs[0].difference, found.pairs[0].p) == (0, 1)


@pytest.mark.parametrize(
    "metric", ["macro_f1", "balanced_accuracy", "accuracy", "f1:b", "recall:b", "auroc", "auroc:b"]
)
def test_neither_the_order_of_rows_nor_that_of_models_matters(metric):
    models = {name: said(1.0, own=own) for own, name in enumerate("xyz", 1)}
    order = np.random.default_rng(1).permutation(len(models["x"].label))
    found = compare({n: units_of(one) for n, one in models.items()}, metric, n_resamples=300)
    again = compare(
        {name: units_of(models[name].take(order)) for name in "zxy"}, metric, n_resamples=300
    )
    assert found == again


def test_holm_is_as_worked_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


def test_groups_hold_models_that_do_not_differ_and_no_larger_group_does():
    assert alike("abc", []) == [{"a", "b", "c"}]
    assert alike("abc", [("a", "c")]) == [{"a", "b"}, {"b", "c"}]
    assert alike("abcd", [("a", "c"), ("a", "d"), ("b", "d")]) == [
        {"a", "b"},
        {"b", "c"},
        {"c", "d"},
    ]
    assert alike("abc", [("a", "b"), ("a", "c"), ("b", "c")]) == [{"a"}, {"b"}, {"c"}]


def test_ranks_are_means_over_resamples_and_add_up():
    models = {name: units(sharp, own=own) for own, (name, sharp) in
              enumerate({"x": 2.0, "y": 1.6, "z": 0.0}.items(), 1)}  # fmt: skip
    found = compare(models, "macro_f1", n_resamples=500)
    assert sum(one.rank for one in found.standings) == pytest.approx(6)
    assert sum(one.p_best for one in found.standings) == pytest.approx(1)
    assert found.standings[-1].name == "z"
    assert found.standings[-1].rank > 2.9


def test_auroc_has_a_bootstrap_p_and_says_so():
    models = {"x": units(3.0, own=1), "y": units(0.0, own=2)}
    found = compare(models, "auroc", n_resamples=499)
    assert found.test == "bootstrap of patients"
    assert found.pairs[0].p == 2 / 500
    assert compare(models, "accuracy", n_resamples=100).test == "permutation of patients"


def test_one_patient_has_scores_but_no_interval_and_nothing_to_swap():
    models = {"x": units(2.0, n_patients=1, own=1), "y": units(0.0, n_patients=1, own=2)}
    found = compare(models, "accuracy", n_resamples=100)
    assert np.isnan([found.pairs[0].low, found.standings[0].high]).all()
    assert found.pairs[0].p == 1


@pytest.mark.parametrize(
    ("metric", "match"),
    [("f2", "no metric 'f2'"), ("f1:z", "no class 'z' for f1; there are a, b, c"), ("f1", "'f1'")],
)
def test_an_unknown_metric_or_class_is_an_error(metric, match):
    with pytest.raises(RunError, match=match):
        compare({"x": units(1.0)}, metric, n_resamples=100)


def test_one_class_has_no_auroc_but_an_accuracy():
    one = {"x": units(1.0, labels="a"), "y": units(0.0, labels="a", own=2)}
    assert compare(one, "accuracy", n_resamples=100).standings[0].name == "x"
    with pytest.raises(RunError, match="auroc needs two classes; there is only a"):
        compare(one, "auroc", n_resamples=100)


def test_the_drop_resamples_two_cohorts_independently():
    """Even from one cohort to itself, where one seed would draw the same patients for both."""
    one = units(2.0, n_patients=40)
    score, lost = spread("accuracy", one), drop("accuracy", one, one)
    assert lost.value == 0
    assert lost.high - lost.low == pytest.approx(2**0.5 * (score.high - score.low), rel=0.06)


def test_the_bins_of_reliability_add_up_to_the_ece():
    one = said(1.0)
    bins, n = reliability(units_of(one)), len(one.label)
    assert sum(part.n for part in bins) == n
    assert max(part.n for part in bins) <= n / 15 + 2
    ece = sum(part.n * abs(part.confidence - part.accuracy) for part in bins) / n
    (estimate,) = [
        e for e in evaluate([one], n_resamples=100) if (e.metric, e.level) == ("ece", "image")
    ]
    assert estimate.value == pytest.approx(ece)
    right = [one.classes[i] for i in one.predicted()]
    assert sum(part.n * part.accuracy for part in bins) / n == pytest.approx(
        accuracy_score(one.label, right)
    )


# Stored runs


def external(one, cohort="abroad"):
    return replace(one, role="external", fold=np.full(len(one.label), -1))


@pytest.fixture
def store(project):
    """Write a run of some predictions into a project's store."""
    project.workspace.create_store()

    def write(run_id, encoder, *predictions, created="2025-01-01", kind="probe", **settings):
        if kind == "probe":
            settings["train_cohort"] = "home"
        run = Run(run_id, kind, encoder, f"f00d-{encoder}", settings, {}, {}, {}, created, 1.0)
        estimates = evaluate(predictions, n_resamples=100)
        run_files.write_run(project.workspace.runs, run, predictions, estimates)

    write.project = project
    return write


def two_cohorts(sharp, own):
    abroad = said(sharp / 2, seed=1, labels="ab", own=own, cohort="abroad")
    return said(sharp, own=own), external(abroad)


@pytest.fixture
def three(store):
    """Runs of three encoders on the same images."""
    for own, (name, sharp) in enumerate({"best": 4.0, "good": 3.6, "bad": 0.2}.items(), 1):
        store(f"probe-{name}", name, *two_cohorts(sharp, own))
    return store


def test_the_table_has_all_that_a_reader_needs(three, command):
    answer = command("compare", "--resamples", "500")
    assert answer.code == 0
    assert answer.err == ""
    first, *_, tail = answer.out.split("\n\n")
    lines = first.splitlines()
    assert lines[0].startswith("home, tested out of fold: 20 patients, 85 images, 3 classes")
    assert lines[1].split() == [
        "run", "macro_f1", "behind", "the", "best", "p", "rank", "P(best)", "group"
    ]  # fmt: skip
    assert {line.split()[0] for line in lines[3:5]} == {"best", "good"}
    assert lines[5].startswith("bad ")
    assert lines[5].split()[-1] == "2"
    assert "abroad, external: " in answer.out
    assert "lost outside" in answer.out
    assert "bad: probe-bad" in tail


def test_json_has_every_pair_and_all_sections(three, command):
    report = json.loads(command("compare", "--json", "--resamples", "100", "--by", "class").out)
    assert set(report) == set(CompareReport.__slots__)
    home, abroad = report["cohorts"]
    assert len(home["comparison"]["pairs"]) == 3
    assert abroad["classes"] == ["a", "b"]
    assert len(report["drops"]) == 3
    assert len(report["parts"]) == 3 * 3 + 3 * 2
    assert {one["metric"] for one in report["estimates"]["best"]} >= {"ece", "log_loss"}


def test_the_latest_run_of_each_encoder_counts(three, command):
    three("probe-new", "bad", *two_cohorts(4.0, 9), created="2025-02-01")
    assert "bad: probe-new" in command("compare", "--resamples", "100").out


def test_runs_on_other_images_or_folds_are_left_out_and_named(three, command):
    home, abroad = two_cohorts(1.0, 7)
    three("probe-few", "few", home.take(np.arange(70)), abroad)
    three("probe-folds", "folds", replace(home, fold=(home.fold + 1) % 3), abroad)
    three("probe-classes", "classes", replace(home, label=home.label[::-1]), abroad)
    answer = command("compare", "--resamples", "100", "-m", "best", "-m", "few", "-m", "folds",
                     "-m", "classes", "-m", "good")  # fmt: skip
    assert "few: " not in answer.out
    assert "best: " in answer.out
    assert "probe-few left out: other images of 'home' (70, not 85)" in answer.err
    assert "probe-folds left out: other folds of 'home'" in answer.err
    assert "probe-classes left out: other patients or labels in 'home'" in answer.err


def test_an_older_run_on_the_same_images_stands_in_for_a_newer_one_on_others(three, command):
    home, abroad = two_cohorts(1.0, 7)
    three("probe-few", "bad", home.take(np.arange(70)), abroad, created="2024-01-01")
    three("probe-more", "good", home.take(np.arange(70)), abroad, created="2024-01-01")
    answer = command("compare", "--resamples", "100")
    assert "bad: probe-bad" in answer.out
    assert answer.err == ""


def test_kinds_of_probe_are_told_apart_when_they_meet(three, command):
    home, abroad = two_cohorts(2.0, 5)
    three("zeroshot-best", "best", external(home), abroad, kind="zeroshot")
    answer = command("compare", "--resamples", "100")
    assert "best (zeroshot): zeroshot-best" in answer.out
    assert "best (probe): probe-best" in answer.out
    lost = answer.out.split("lost outside")[1]
    assert "zeroshot)  " not in lost  # it was trained on neither


def test_probes_of_one_encoder_are_told_apart_and_controls_wait_to_be_named(three, command):
    for own, (family, protocol) in enumerate([("knn", "default"), ("logistic", "dinov2")], 4):
        settings = {"probe": family, "protocol": protocol}
        three(f"probe-{family}", "good", *two_cohorts(2.0, own), probe=settings)
    by_folds = {"probe": "logistic", "rule": "one-se", "external": "folds", "seed": 3}
    three("probe-folds", "good", *two_cohorts(2.0, 6), probe=by_folds)
    home, abroad = two_cohorts(2.0, 7)
    shuffled = replace(home, label=home.label[::-1])
    three("control-good", "good", shuffled, abroad, kind="control", created="2026-01-01")
    answer = command("compare", "-m", "good", "--resamples", "100")
    assert answer.err == ""
    names = [line.rpartition(": ")[0] for line in answer.out.splitlines()[-4:]]
    assert names == [
        "good (knn)",
        "good (logistic, dinov2)",
        "good (logistic, one-se, external by folds, seed 3)",
        "good (probe)",
    ]
    named = command("compare", "control-good", "--resamples", "100")
    assert "good: control-good" in named.out


def test_runs_can_be_named(three, command):
    answer = command("compare", "probe-bad", "probe-good", "--resamples", "100", "--pairs")
    assert "best" not in answer.out.replace("the best", "").replace("P(best)", "")
    assert "home, pairs" in answer.out
    assert command("compare", "probe-bad", "-m", "bad").code == 2


def test_scores_by_a_manifest_column_and_by_class(three, project, command):
    answer = command("compare", "--by", "class", "--resamples", "100")
    part = answer.out.split("macro_f1 by class")[1]
    assert "abroad  a " in part
    assert "abroad  c " not in part
    answer = command("compare", "--by", "planet")
    assert answer.code == 1
    assert "no column 'planet'" in answer.err


def test_a_drop_is_over_the_classes_that_occur_outside(three, command):
    report = json.loads(command("compare", "--json", "--resamples", "100", "-m", "bad").out)
    home, abroad = two_cohorts(0.2, 3)
    inside = home.take(np.flatnonzero(np.array(home.label) != "c"))
    expected = np.subtract(*(
        f1_score(one.codes(), one.predicted(), labels=[0, 1], average="macro")
        for one in (inside, abroad)
    ))  # fmt: skip
    (found,) = report["drops"]
    assert found["drop"]["value"] == pytest.approx(expected)


def test_levels_and_masks_are_options(three, command):
    report = json.loads(
        command("compare", "--json", "--level", "patient", "--scoring", "masked",
                "--resamples", "100", "-m", "bad").out
    )  # fmt: skip
    home, abroad = two_cohorts(0.2, 3)
    assert {one["level"] for one in report["estimates"]["bad"]} == {"patient"}
    kinds = {(one["cohort"], one["scoring"], one["metric"]) for one in report["estimates"]["bad"]}
    assert {("home", "all", "ece"), ("abroad", "masked", "ece")} <= kinds
    assert ("abroad", "all", "ece") not in kinds
    expected = evaluate([home, abroad], n_resamples=100)
    for cohort, scoring in zip(report["cohorts"], ("all", "masked"), strict=True):
        (value,) = [
            one.value
            for one in expected
            if (one.cohort, one.scoring, one.level, one.metric)
            == (cohort["cohort"], scoring, "patient", "macro_f1")
        ]
        assert cohort["comparison"]["standings"][0]["value"] == pytest.approx(value)


def test_a_class_that_a_cohort_lacks_leaves_that_cohort_out(three, command):
    answer = command("compare", "--metric", "f1:c", "--resamples", "100")
    assert "'abroad' left out: f1:c is not defined on its classes" in answer.err
    assert "abroad, external" not in answer.out


def test_calibration_and_operating_points_are_those_stored_with_the_runs(store, command):
    home, abroad = two_cohorts(2.0, 1)
    warm = replace(home, temperature=np.full(len(home.label), 1.5))
    store("probe-x", "x", warm, abroad)
    answer = command("compare", "--calibration", "--operating-points", "--resamples", "100")
    assert answer.code == 0
    calibration = answer.out.split("calibration, T")[1]
    assert "1.500" in calibration
    assert "reliability" in calibration
    points = answer.out.split("operating points")[1]
    rows = [line for line in points.splitlines() if line.startswith("x  ")]
    assert len(rows) == 3 + 2
    inside, outside = (line.split() for line in (rows[0], rows[3]))
    assert inside[:3] == ["x", "home", "a"]
    assert outside[:3] == ["x", "abroad", "a"]
    assert inside[3] == outside[3]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["no-such-run"], "no run 'no-such-run'"),
        (["-m", "nobody"], "no run of 'nobody'; there are runs of bad, best, good"),
        (["--metric", "f2"], "no metric 'f2'"),
        (["--metric", "f1:zebra"], "no class 'zebra'"),
    ],
)
def test_what_is_not_there_is_an_error_of_one_line(three, command, arguments, match):
    answer = command("compare", *arguments)
    assert answer.code == 1
    assert match in answer.err
    assert len(answer.err.splitlines()) == 1


def test_a_store_without_runs_says_what_to_do(project, command):
    project.workspace.create_store()
    answer = command("compare")
    assert answer.code == 1
    assert "run `embedcache probe -m all`" in answer.err


def test_a_run_of_another_task_is_passed_over_or_refused(three, command):
    home, abroad = two_cohorts(1.0, 8)
    three("probe-days", "days", home, abroad, created="2026-01-01", task="regression")
    assert "days" not in command("compare", "--resamples", "100").out
    answer = command("compare", "probe-days")
    assert answer.code == 1
    assert "run 'probe-days' is of regression; expected classification" in answer.err


def test_predictions_come_back_as_they_were_written(store):
    home, abroad = two_cohorts(1.0, 1)
    warm = np.where(home.fold == 0, np.nan, 2.0)
    store("probe-x", "x", replace(home, temperature=warm), abroad)
    inside, outside = run_files.read_predictions(store.project.workspace.runs / "probe-x")
    assert np.array_equal(inside.probability, home.probability)
    assert np.array_equal(inside.temperature, warm, equal_nan=True)
    assert (outside.role, outside.temperature, outside.label) == ("external", None, abroad.label)
    assert (outside.fold == -1).all()
