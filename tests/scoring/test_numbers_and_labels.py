"""Scores and comparison of numbers and of label sets."""

from __future__ import annotations

import numpy as np
import pytest
from made_answers import label_sets, measurements
from sklearn.metrics import (
    average_precision_score,
    f1_score,
    mean_absolute_error,
    r2_score,
    roc_auc_score,
    root_mean_squared_error,
)
from written_out import interval

from embedcache.errors import RunError
from embedcache.scoring.answers import subject_of
from embedcache.scoring.compare import compare, drop, lead, spread
from embedcache.scoring.evaluate import evaluate
from embedcache.scoring.label_units import LabelUnits

N = 80
PATIENTS = [f"p{number}" for number in np.random.default_rng(2).integers(0, 15, N)]
NUMBER_SCORES = {
    "mae": mean_absolute_error,
    "rmse": root_mean_squared_error,
    "r2": r2_score,
    "pearson": lambda t, p: np.corrcoef(t, p)[0, 1],
}


def by_name(estimates):
    return {(e.level, e.metric, e.label): e for e in estimates}


def ages(noise, seed=0, n_patients=15):
    """Ages of the same images for any `noise` and `seed`, as a model predicts them."""
    truth = np.random.default_rng(0).normal(200, 30, N)
    value = truth + np.random.default_rng([seed, 1]).normal(0, noise, N)
    patient = PATIENTS if n_patients == 15 else [f"q{i % n_patients}" for i in range(N)]
    return measurements(truth, value, patient)


def findings(sharp=0.4, seed=0, own=0):
    """Label sets of the same images; label c is on no image, d on all."""
    truth = np.random.default_rng(seed).random((N, 4)) < [0.3, 0.5, 0.0, 1.0]
    chance = np.random.default_rng([seed, own]).random((N, 4))
    # Coarse, so that many scores are tied.
    probability = np.round(np.clip(sharp * truth + (1 - sharp) * chance, 0, 1), 1)
    return label_sets(truth, probability, "abcd", PATIENTS)


# Evaluation


def test_regression_scores_and_intervals_are_of_scikit_learns_scores():
    answers = ages(20)
    estimates = by_name(evaluate([answers]))
    patient = np.unique(PATIENTS, return_inverse=True)[1]
    pair = answers.truth, answers.value
    means = [np.array([v[patient == i].mean() for i in range(15)]) for v in pair]
    for metric, score in NUMBER_SCORES.items():
        for level, (t, p), owner in (
            ("image", pair, patient),
            ("patient", means, np.arange(15)),
        ):
            estimate = estimates[level, metric, ""]
            assert estimate.value == pytest.approx(score(t, p))
            left_out = [score(t[owner != number], p[owner != number]) for number in range(15)]
            ends = interval(score(t, p), left_out, 15, is_share=False)
            if metric in {"r2", "pearson"}:
                ends = ends[0], min(ends[1], 1)
            assert (estimate.low, estimate.high) == pytest.approx(ends)
            assert (estimate.n_patients, estimate.n_images) == (15, N)
    assert len(estimates) == 8


def test_what_does_not_vary_has_no_correlation():
    constant = measurements(np.full(N, 1 / 3), np.arange(80.0), PATIENTS)
    estimates = by_name(evaluate([constant], n_resamples=200))
    assert {metric for _, metric, _ in estimates} == {"mae", "rmse"}
    with pytest.raises(RunError, match="r2 is not defined: truth or prediction does not vary"):
        spread([subject_of(constant)], "r2")


def test_r2_has_no_interval_where_nothing_varies_without_a_patient():
    truth = np.repeat([77.1, 1000.7], (70, 10))
    predicted = truth + np.tile([-1.0, 1.0], 40)
    answers = measurements(truth, predicted, np.repeat(["a", "b", "c"], (30, 40, 10)))
    estimate = by_name(evaluate([answers]))["image", "r2", ""]
    assert estimate.value > 0.99
    assert np.isnan([estimate.low, estimate.high]).all()


def test_scores_of_labels_are_scikit_learns():
    answers = findings()
    values = {
        (metric, label): estimate.value
        for (_, metric, label), estimate in by_name(evaluate([answers], n_resamples=200)).items()
    }
    for number, name in enumerate("ab"):
        t, p = answers.truth[:, number], answers.probability[:, number]
        assert values["auroc", name] == pytest.approx(roc_auc_score(t, p))
        assert values["f1", name] == pytest.approx(f1_score(t, p >= 0.5))
        assert values["average_precision", name] == pytest.approx(average_precision_score(t, p))
    assert ("auroc", "d") not in values
    assert not [label for _, label in values if label == "c"]
    assert values["average_precision", "d"] == 1
    mean_area = (values["auroc", "a"] + values["auroc", "b"]) / 2
    assert values["macro_auroc", ""] == pytest.approx(mean_area)
    for metric, mean in (("f1", "macro_f1"), ("average_precision", "mean_average_precision")):
        assert values[mean, ""] == pytest.approx(np.mean([values[metric, n] for n in "abd"]))


def test_a_cohort_without_any_label_has_no_scores():
    answers = label_sets(np.zeros((N, 1), bool), np.ones((N, 1)), "c", PATIENTS)
    assert evaluate([answers], n_resamples=200) == []


@pytest.mark.parametrize(
    ("metric", "score"),
    [("average_precision", average_precision_score), ("auroc", roc_auc_score)],
)
def test_intervals_of_labels_are_those_of_scores_without_each_patient(metric, score):
    answers = findings()
    estimate = by_name(evaluate([answers]))["image", metric, "a"]
    patient = np.array(PATIENTS)
    t, p = answers.truth[:, 0], answers.probability[:, 0]
    left_out = [score(t[patient != name], p[patient != name]) for name in np.unique(patient)]
    holders = [len(set(patient[side])) for side in (t, ~t)]
    n_holders = min(holders) if metric == "auroc" else holders[0]
    ends = interval(score(t, p), left_out, n_holders)
    assert (estimate.low, estimate.high) == pytest.approx(ends)


def test_a_label_that_few_patients_lack_has_the_auroc_interval_of_these_few():
    whole = findings()
    truth = ~np.isin(PATIENTS, ["p3", "p7"])[:, None] | (whole.truth[:, :1] & False)
    answers = label_sets(truth, whole.probability[:, :1], "a", PATIENTS)
    units = subject_of(answers)
    assert units.score("auroc:a").n_holders == 2
    assert units.score("average_precision:a").n_holders == 13
    for mean, of_label in (("macro_auroc", "auroc:a"), ("macro_f1", "f1:a")):
        assert units.score(mean).spread == units.score(of_label).spread


def test_probabilities_of_labels_that_are_not_finite_are_refused():
    whole = findings()
    probability = np.where(np.arange(N)[:, None] == 3, np.inf, whole.probability)
    with pytest.raises(RunError, match=f"1 of {N} images have a probability that is not finite"):
        label_sets(whole.truth, probability, "abcd", PATIENTS)


def test_one_patient_has_scores_but_no_interval():
    whole, numbers = findings(), ages(20, n_patients=1)
    alone = label_sets(whole.truth, whole.probability, whole.names, ["p"] * N)
    estimates = [
        estimate for answers in (alone, numbers) for estimate in evaluate([answers], n_resamples=50)
    ]
    assert len(estimates) > 10
    assert np.isnan([end for e in estimates for end in (e.low, e.high)]).all()


def test_a_score_of_one_label_does_not_rank_the_others(monkeypatch):
    units, ranked = subject_of(findings()), []
    score_of = LabelUnits._left_out
    monkeypatch.setattr(
        LabelUnits, "_left_out", lambda u, *args: (ranked.append(args), score_of(u, *args))[1]
    )
    alone = units.score("average_precision:b")
    assert ranked == [("average_precision", 1)]
    assert alone.spread == next(s for s in units.scores() if s[:2] == alone[:2]).spread


# Comparison


@pytest.mark.parametrize("metric", NUMBER_SCORES)
def test_the_better_of_two_numbers_has_the_lower_error_or_the_larger_score(metric):
    answers = {"near": ages(10, 1), "far": ages(40, 2)}
    models = {name: [subject_of(a)] for name, a in answers.items()}
    comparison = compare(models, metric, n_resamples=300)
    values = {name: NUMBER_SCORES[metric](a.truth, a.value) for name, a in answers.items()}
    assert {s.name: s.value for s in comparison.standings} == pytest.approx(values)
    assert [s.name for s in comparison.standings] == ["near", "far"]
    assert comparison.standings[0].rank < comparison.standings[1].rank
    assert comparison.standings[0].p_best > 0.9
    (pair,) = comparison.pairs
    assert (pair.better, pair.worse) == ("near", "far")
    assert pair.difference == pytest.approx(abs(values["near"] - values["far"]))
    assert 0 < pair.low < pair.difference < pair.high
    assert pair.p < 0.02


@pytest.mark.parametrize(
    "metric",
    [
        "macro_f1",
        "f1:b",
        "macro_auroc",
        "mean_average_precision",
        "auroc:a",
        "average_precision:b",
    ],
)
def test_label_sets_are_compared_by_each_of_their_metrics(metric):
    answers = {"sharp": findings(0.45, own=1), "dull": findings(0.05, own=2)}
    models = {name: [subject_of(a)] for name, a in answers.items()}
    comparison = compare(models, metric, n_resamples=300)
    estimates = {
        (e.metric if not e.label else f"{e.metric}:{e.label}"): e
        for e in evaluate([answers["sharp"]], n_resamples=300)
    }
    best = comparison.standings[0]
    assert best.name == "sharp"
    assert (best.value, best.low, best.high) == pytest.approx(
        (estimates[metric].value, estimates[metric].low, estimates[metric].high)
    )
    assert comparison.pairs[0].p < 0.05


def test_a_lead_is_the_paired_difference_of_the_comparison_for_every_task():
    for first, second, metric in (
        (ages(10, 1), ages(40, 2), "mae"),
        (ages(10, 1), ages(40, 2), "r2"),
        (findings(0.45, own=1), findings(0.05, own=2), "macro_f1"),
    ):
        ours, theirs = [subject_of(first)], [subject_of(second)]
        (pair,) = compare({"x": ours, "y": theirs}, metric, n_resamples=200).pairs
        ahead = lead(ours, theirs, metric, n_resamples=200)
        behind = lead(theirs, ours, metric, n_resamples=200)
        assert (ahead.value, ahead.low, ahead.high) == (pair.difference, pair.low, pair.high)
        assert ahead.value > 0
        assert behind.value == -ahead.value
        assert (behind.low, behind.high) == pytest.approx((-ahead.high, -ahead.low))


def test_an_error_that_grows_outside_is_a_drop_above_0():
    inside, outside = [subject_of(ages(10, 1))], [subject_of(ages(40, 2))]
    for metric in ("mae", "r2"):
        lost = drop(inside, outside, metric)
        assert 0 < lost.low < lost.value < lost.high


@pytest.mark.parametrize(
    ("answers", "metric", "match"),
    [
        (ages(10), "macro_f1", "no metric 'macro_f1' of regression to compare by; it may be mae, "),
        (findings(), "mae", "no metric 'mae' of multilabel to compare by; it may be macro_auroc, "),
        (findings(), "f1:z", "no label 'z' for f1; there are a, b, d"),
        (findings(), "f1:c", "no label 'c' for f1; there are a, b, d"),
        (findings(), "auroc:d", "no label 'd' for auroc; there are a, b"),
    ],
)
def test_a_metric_of_another_task_or_label_is_refused_with_what_there_is(answers, metric, match):
    with pytest.raises(RunError, match=match):
        compare({"x": [subject_of(answers)]}, metric, n_resamples=100)


def test_a_view_that_a_task_does_not_have_is_refused():
    with pytest.raises(RunError, match="several labels are scored by image"):
        subject_of(findings(), level="patient")
    for answers in (ages(10), findings()):
        with pytest.raises(RunError, match="scoring 'masked' is for one class an image"):
            subject_of(answers, masked=True)
