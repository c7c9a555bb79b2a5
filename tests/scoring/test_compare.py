"""Models against each other: the statistics, on arrays."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from made_answers import label_sets, made_predictions, measurements
from sklearn.metrics import accuracy_score, f1_score

from embedcache.errors import RunError
from embedcache.scoring.answers import subject_of
from embedcache.scoring.calibration import reliability
from embedcache.scoring.compare import compare, drop, permutation_p, spread
from embedcache.scoring.estimates import METRICS
from embedcache.scoring.evaluate import evaluate
from embedcache.scoring.grouping import alike, holm
from embedcache.scoring.resampling import interval, resample_weights


def units(*arguments, **settings):
    return subject_of(made_predictions(*arguments, **settings))


def test_scores_and_differences_are_those_of_scikit_learn():
    models = {"good": made_predictions(2.0, own=1), "bad": made_predictions(0.5, own=2)}
    found = compare({name: subject_of(one) for name, one in models.items()}, "macro_f1")
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
    first, second = made_predictions(1.5, own=1), made_predictions(1.0, own=2)
    (pair,) = compare({"x": subject_of(first), "y": subject_of(second)}, "accuracy").pairs
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
    first, second = (made_predictions(1.0, n_patients=6, own=own) for own in (1, 2))
    patient = np.unique(first.patient_id, return_inverse=True)[1]
    truth, a, b = first.codes(), first.predicted(), second.predicted()
    swaps = np.array(list(itertools.product([0, 1], repeat=6)), np.float32)

    def lead(swap):
        moved = swap[patient] == 1
        ours, theirs = np.where(moved, b, a), np.where(moved, a, b)
        return np.subtract(*(f1_score(truth, one, average="macro") for one in (ours, theirs)))

    leads = np.abs([lead(swap) for swap in swaps])
    expected = (1 + (leads >= leads[0] - 1e-9).sum()) / (1 + len(swaps))
    assert permutation_p(subject_of(first), subject_of(second), "macro_f1", swaps) == expected
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
    models = {name: made_predictions(1.0, own=own) for own, name in enumerate("xyz", 1)}
    order = np.random.default_rng(1).permutation(len(models["x"].label))
    found = compare({n: subject_of(one) for n, one in models.items()}, metric, n_resamples=300)
    again = compare(
        {name: subject_of(models[name].take(order)) for name in "zxy"}, metric, n_resamples=300
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
    score, lost = spread(one, "accuracy"), drop(one, one, "accuracy")
    assert lost.value == 0
    assert lost.high - lost.low == pytest.approx(2**0.5 * (score.high - score.low), rel=0.06)


def test_the_bins_of_reliability_add_up_to_the_ece():
    one = made_predictions(1.0)
    bins, n = reliability(subject_of(one)), len(one.label)
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


def test_the_metrics_of_each_task_are_those_of_its_subjects():
    truth, patient = np.array([1.0, 2.0, 4.0]), ("p", "q", "r")
    several = np.array([[True, False], [False, True], [True, True]])
    for task, answers in (
        ("classification", made_predictions(2.0)),
        ("regression", measurements(truth, truth[::-1], patient)),
        ("multilabel", label_sets(several, several * 0.8, ("a", "b"), patient)),
    ):
        names = {metric.partition(":")[0] for metric in subject_of(answers).metrics}
        assert names == set(METRICS[task])
