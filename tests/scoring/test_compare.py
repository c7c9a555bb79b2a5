"""Models against each other: the statistics, on arrays."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_answers import label_sets, made_predictions, measurements
from sklearn.metrics import accuracy_score, f1_score

from embedcache.errors import RunError
from embedcache.scoring.answers import subject_of, subjects_of
from embedcache.scoring.calibration import reliability
from embedcache.scoring.compare import compare, drop, spread
from embedcache.scoring.estimates import METRICS
from embedcache.scoring.evaluate import evaluate
from embedcache.scoring.grouping import alike, holm
from embedcache.scoring.jackknife import as_term, deviations
from embedcache.scoring.pairs import (
    Lead,
    draw_statistics,
    equivalence_p,
    patients_needed,
    spread_and_p,
)
from embedcache.scoring.repeats import parts_of_repeats, redrawn_folds


def units(*arguments, **settings):
    return subject_of(made_predictions(*arguments, **settings))


def test_scores_and_differences_are_those_of_scikit_learn():
    models = {"good": made_predictions(2.0, own=1), "bad": made_predictions(0.5, own=2)}
    found = compare({name: [subject_of(one)] for name, one in models.items()}, "macro_f1")
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


def leads_left_out(first, second, score):
    """The lead of all patients, and that without each of them, scored by scikit-learn."""
    patient = np.array(first.patient_id)

    def lead(rows):
        return np.subtract(
            *(score(one.codes()[rows], one.predicted()[rows]) for one in (first, second))
        )

    return lead(patient != ""), np.array([lead(patient != name) for name in np.unique(patient)])


def lead_of(value, left_out):
    return Lead(np.array([value]), deviations(left_out), np.empty(0))


def test_a_pair_is_tested_as_written_out():
    """Pseudo-values of scikit-learn's scores without each patient, under all 2^6 signs."""
    first, second = (made_predictions(1.0, n_patients=6, own=own) for own in (1, 2))
    value, left_out = leads_left_out(first, second, lambda y, z: f1_score(y, z, average="macro"))
    n = len(left_out)
    moves = left_out.mean() - left_out
    error = np.sqrt((n - 1) / n * (moves**2).sum())
    signs = np.array(list(itertools.product([1, -1], repeat=n)))
    shares = value / n + moves
    sums = signs @ shares
    statistics = np.abs(sums) / np.sqrt((n - 1) / n * ((shares**2).sum() - sums**2 / n))
    lead = lead_of(value, left_out)
    drawn = draw_statistics([lead], 20_000, 0)[:, 0]
    for limit in (0.5, 1.0, 1.5, 2.0, 3.0):
        assert np.mean(drawn >= limit) == pytest.approx(np.mean(statistics >= limit), abs=0.02)
    spread, p = spread_and_p(lead, drawn)
    expected = np.mean(statistics >= abs(value) / error - 1e-9)
    assert p == pytest.approx(expected, abs=0.02)
    critical = np.sort(drawn)[-int(0.05 * 20_001)]
    assert (spread.low, spread.high) == pytest.approx(
        (value - critical * error, value + critical * error)
    )


def test_p_is_uniform_where_the_models_differ_by_chance_only():
    p = [
        compare(
            {"x": [units(1.0, own=2 * i + 1)], "y": [units(1.0, own=2 * i + 2)]},
            "macro_f1",
            n_resamples=400,
            seed=i,
        ).pairs[0].p
        for i in range(200)
    ]  # fmt: skip
    below = [np.mean(np.array(p) <= level) for level in (0.05, 0.25, 0.5, 0.75)]
    assert below == pytest.approx([0.05, 0.25, 0.5, 0.75], abs=0.09)


@given(st.integers(2, 9), st.integers(1, 400), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=200)
def test_p_and_interval_never_contradict_each_other(n_patients, n_draws, seed):
    chance = np.random.default_rng(seed)
    # Small whole numbers: ties, equal patients, and errors of 0 are common.
    left_out = chance.integers(-2, 3, size=n_patients) / 4
    lead = lead_of(chance.integers(-4, 5) / 4, left_out)
    spread, p = spread_and_p(lead, draw_statistics([lead], n_draws, 1)[:, 0])
    assert (spread.low > 0 or spread.high < 0) == (p <= 0.05)


def test_p_is_small_where_one_model_is_better_and_never_0():
    (pair,) = compare(
        {"x": [units(4.0, n_patients=40, own=1)], "y": [units(0.0, n_patients=40, own=2)]},
        "balanced_accuracy",
        n_resamples=999,
    ).pairs
    assert pair.p == pair.p_corrected == 1 / 1000
    assert (pair.verdict, pair.patients_needed) == ("better", None)


def test_equal_within_the_margin_is_two_one_sided_tests():
    models = {name: [units(2.0, n_patients=150, own=own)] for own, name in enumerate("xy", 1)}
    verdicts = {}
    for margin in (None, 0.001, 0.3):
        (pair,) = compare(models, "accuracy", margin=margin, n_resamples=999).pairs
        verdicts[margin] = pair.verdict
        if margin is None:
            assert pair.p_equal is None
            continue
        # Equal just where the 90 % interval lies within the margin.
        error = np.hypot(pair.error_patients, pair.error_repeats)
        assert (pair.p_equal <= 0.05) == (pair.difference + 1.66 * error < margin)
    assert verdicts == {None: "undecided", 0.001: "undecided", 0.3: "equal"}


def test_as_many_patients_as_are_needed_decide_as_often_as_promised():
    """Planning from a pilot whose lead happens to be the true one."""
    chance = np.random.default_rng(0)
    pilot = chance.normal(size=60)
    pilot = (pilot - pilot.mean()) / pilot.std() + 0.3

    def lead_of_mean(values):
        return lead_of(values.mean(), (values.sum() - values) / (len(values) - 1))

    needed = patients_needed(lead_of_mean(pilot), None)
    assert needed == pytest.approx(7.85 * pilot.var(ddof=1) / 0.3**2, rel=0.02)
    found = []
    for seed in range(300):
        lead = lead_of_mean(chance.normal(0.3, 1, size=needed))
        found.append(spread_and_p(lead, draw_statistics([lead], 199, seed)[:, 0])[1])
    assert np.mean(np.array(found) <= 0.05) == pytest.approx(0.8, abs=0.08)


def test_as_many_patients_as_are_needed_call_equal_models_equal_as_often_as_promised():
    chance, margin = np.random.default_rng(0), 0.3

    def lead_of_mean(values):
        return lead_of(values.mean(), (values.sum() - values) / (len(values) - 1))

    for true in (0.0, 0.1):
        pilot = chance.normal(size=60)
        pilot += true - pilot.mean()
        needed = patients_needed(lead_of_mean(pilot / pilot.std()), margin)
        equal = []
        for seed in range(300):
            lead = lead_of_mean(chance.normal(true, 1, size=needed))
            equal.append(equivalence_p(lead, draw_statistics([lead], 199, seed)[:, 0], margin))
        assert np.mean(np.array(equal) <= 0.05) == pytest.approx(0.8, abs=0.08), true


def test_no_number_of_patients_decides_a_tie_but_a_margin_may():
    tie = lead_of(0.0, np.array([0.1, -0.1]))
    assert patients_needed(tie, None) is None
    assert patients_needed(tie, 0.1) > 2
    ahead = replace(tie, values=np.full(1, 0.1))
    assert patients_needed(ahead, 0.1) == patients_needed(ahead, None)
    assert patients_needed(ahead, None, n_pairs=10) > patients_needed(ahead, None)
    assert patients_needed(replace(ahead, values=np.full(1, 9.0)), None) == 3  # more than there are


def test_equal_shares_of_few_patients_are_as_likely_as_a_coin_says():
    """Rounding must not make something of patients that are all alike."""
    for n_patients in (3, 6):
        total = 7 * n_patients
        left_out = np.array([(total - 7) / (10 * n_patients - 10)] * n_patients) / 3
        lead = lead_of(0.7 / 3, left_out)
        _, p = spread_and_p(lead, draw_statistics([lead], 20_000, 0)[:, 0])
        assert p == pytest.approx(2.0 ** (1 - n_patients), abs=0.01)


def test_a_score_that_is_not_defined_without_a_patient_has_no_p():
    one, two = (made_predictions(2.0, own=own) for own in (1, 2))
    only = np.array(one.patient_id) == one.patient_id[0]
    label = tuple(np.where(only, "a", np.where(np.array(one.label) == "a", "b", one.label)))
    models = {
        name: [subject_of(replace(answers, label=label))]
        for name, answers in (("x", one), ("y", two))
    }
    found = compare(models, "f1:a", margin=0.1, n_resamples=200)
    (pair,) = found.pairs
    assert np.isnan([pair.p, pair.p_corrected, pair.p_equal, pair.low, pair.high]).all()
    assert (pair.verdict, pair.patients_needed) == ("undecided", None)
    assert np.isnan([s.rank for s in found.standings]).all()
    assert "1 pairs have no p" in found.notes[0]


@pytest.mark.parametrize("n_repeats", [5, 8])
def test_models_that_move_all_patients_of_a_cohort_are_not_taken_for_patients(n_repeats):
    """External cohorts: the error of a few repeats is that of Student's t."""
    chance, p = np.random.default_rng(0), []
    for seed in range(400):
        values = chance.normal(size=n_repeats)
        parts = np.zeros((n_repeats, 50)) + chance.normal(0, 0.01, 50)
        lead = Lead(values, parts.mean(axis=0), parts_of_repeats(parts, values, 1))
        p.append(spread_and_p(lead, draw_statistics([lead], 400, seed)[:, 0])[1])
    assert np.mean(np.array(p) <= 0.05) == pytest.approx(0.06, abs=0.03)


@pytest.mark.parametrize("n_holders", [4, 6, 10])
def test_patients_without_the_class_are_no_evidence_of_it(n_holders):
    """The recall of a class that few of 48 patients show, of two models that are alike."""
    chance, p = np.random.default_rng(0), []
    for seed in range(400):
        values = chance.normal(size=n_holders)
        parts = np.zeros(48)
        parts[:n_holders] = deviations((values.sum() - values) / (n_holders - 1))
        lead = Lead(np.array([values.mean()]), parts, np.empty(0), n_holders)
        p.append(spread_and_p(lead, draw_statistics([lead], 400, seed)[:, 0])[1])
    assert np.mean(np.array(p) <= 0.05) == pytest.approx(0.05, abs=0.03)


def test_seeds_on_the_same_folds_are_no_folds_drawn_anew():
    folds = [np.array([0, 0, 1, 2]), np.array([0, 0, 1, 2])]
    assert redrawn_folds(folds) == 1
    assert redrawn_folds([folds[0], np.array([1, 2, 0, 0])]) == 3
    assert redrawn_folds(folds[:1]) == 3


def test_no_number_of_patients_decides_what_rounding_makes():
    lead = Lead(np.array([1e-15]), np.full(20, 0.01), 20)
    assert patients_needed(lead, None) is None


def test_too_few_resamples_or_patients_for_any_verdict_are_noted():
    few = {name: [units(1.0, own=own)] for own, name in enumerate("wxyz", 1)}
    (note,) = compare(few, "accuracy", n_resamples=100).notes
    assert note == (
        "100 resamples cannot make a corrected p of 6 pairs as small as 0.05; pass --resamples 120 "
        "or more"
    )
    assert not compare(few, "accuracy", n_resamples=120).notes
    three = {name: [units(1.0, n_patients=3, own=own)] for own, name in enumerate("xy", 1)}
    (note,) = compare(three, "accuracy", n_resamples=100).notes
    assert note == "3 patients cannot make a corrected p of 1 pairs as small as 0.05"


def test_repeats_are_averaged_and_bring_their_own_error():
    answers = {
        name: [made_predictions(1.0, own=10 * own + repeat) for repeat in range(3)]
        for own, name in enumerate("xy")
    }
    for repeats in answers.values():
        for number, one in enumerate(repeats):
            repeats[number] = replace(one, fold=(one.fold + number) % 3)
    models = {name: subjects_of(repeats) for name, repeats in answers.items()}
    found = compare(models, "accuracy", n_resamples=200)
    for standing in found.standings:
        values = [one.score("accuracy").value for one in models[standing.name]]
        assert standing.values == tuple(values)
        assert standing.value == pytest.approx(np.mean(values))
    (pair,) = found.pairs
    assert pair.difference == pytest.approx(np.mean(pair.values))
    parts = np.subtract(*(
        [one.score("accuracy").parts for one in models[name]] for name in (pair.better, pair.worse)
    ))  # fmt: skip
    assert pair.error_patients == pytest.approx(np.linalg.norm(parts.mean(axis=0)))
    assert models["x"][0].n_folds == 3
    between = 2 * parts.var(axis=0, ddof=1).sum()
    assert pair.error_repeats == pytest.approx(np.sqrt(between))
    (alone,) = compare({name: one[:1] for name, one in models.items()}, "accuracy").pairs
    assert alone.error_repeats == 0


def test_a_model_against_itself_is_a_tie():
    one = units(1.0)
    found = compare({"x": [one], "y": [one]}, "macro_f1", n_resamples=200)
    assert [(s.rank, s.p_best, s.groups) for s in found.standings] == [(1.5, 0.5, (1,))] * 2
    assert (found.pairs[0].difference, found.pairs[0].p) == (0, 1)


@pytest.mark.parametrize(
    "metric", ["macro_f1", "balanced_accuracy", "accuracy", "f1:b", "recall:b", "auroc", "auroc:b"]
)
def test_neither_the_order_of_rows_nor_that_of_models_matters(metric):
    models = {name: made_predictions(1.0, own=own) for own, name in enumerate("xyz", 1)}
    order = np.random.default_rng(1).permutation(len(models["x"].label))
    found = compare({n: [subject_of(one)] for n, one in models.items()}, metric, n_resamples=300)
    again = compare(
        {name: [subject_of(models[name].take(order))] for name in "zxy"}, metric, n_resamples=300
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
    models = {name: [units(sharp, own=own)] for own, (name, sharp) in
              enumerate({"x": 2.0, "y": 1.6, "z": 0.0}.items(), 1)}  # fmt: skip
    found = compare(models, "macro_f1", n_resamples=500)
    assert sum(one.rank for one in found.standings) == pytest.approx(6)
    assert sum(one.p_best for one in found.standings) == pytest.approx(1)
    assert found.standings[-1].name == "z"
    assert found.standings[-1].rank > 2.9


def test_auroc_is_tested_like_every_other_score():
    models = {"x": [units(3.0, own=1)], "y": [units(0.0, own=2)]}
    assert compare(models, "auroc", n_resamples=499).pairs[0].p == 1 / 500


def test_one_patient_has_scores_but_no_interval_and_nothing_to_swap():
    models = {
        name: [units(sharp, n_patients=1, own=own)] for own, (name, sharp) in
        enumerate({"x": 2.0, "y": 0.0}.items())
    }  # fmt: skip
    found = compare(models, "accuracy", n_resamples=100)
    assert np.isnan([found.pairs[0].low, found.standings[0].high]).all()
    assert np.isnan(found.pairs[0].p)
    assert found.pairs[0].verdict == "undecided"


def test_models_that_say_the_same_of_two_patients_are_not_called_equal():
    models = {name: [units(30.0, n_patients=2, own=own)] for own, name in enumerate("xy", 1)}
    (pair,) = compare(models, "accuracy", margin=0.001, n_resamples=999).pairs
    assert (pair.difference, pair.p_equal, pair.verdict) == (0, 0.25, "undecided")


def test_an_absurd_margin_is_no_error():
    models = {name: [units(1.0, own=own)] for own, name in enumerate("xy", 1)}
    assert compare(models, "accuracy", margin=1e200, n_resamples=999).pairs[0].verdict == "equal"


def test_repeats_that_do_not_vary_leave_an_interval_as_it_is():
    one = [units(30.0, n_patients=20)]
    alone, twice = spread(one, "accuracy"), spread(one * 2, "accuracy")
    assert alone == twice


@pytest.mark.parametrize(
    ("metric", "match"),
    [("f2", "no metric 'f2'"), ("f1:z", "no class 'z' for f1; there are a, b, c"), ("f1", "'f1'")],
)
def test_an_unknown_metric_or_class_is_an_error(metric, match):
    with pytest.raises(RunError, match=match):
        compare({"x": [units(1.0)]}, metric, n_resamples=100)


def test_one_class_has_no_auroc_but_an_accuracy():
    one = {"x": [units(1.0, labels="a")], "y": [units(0.0, labels="a", own=2)]}
    assert compare(one, "accuracy", n_resamples=100).standings[0].name == "x"
    with pytest.raises(RunError, match="auroc needs two classes; there is only a"):
        compare(one, "auroc", n_resamples=100)


def test_the_drop_has_the_errors_of_both_cohorts():
    home, away = units(2.0, n_patients=40), units(1.0, n_patients=30, own=2)
    lost = drop([home], [away], "accuracy")
    scores = [one.score("accuracy") for one in (home, away)]
    assert lost.value == pytest.approx(scores[0].value - scores[1].value)
    terms = [as_term(s.value, s.error, s.n_holders, s.bounds) for s in scores]
    assert terms[0].variance == pytest.approx((scores[0].parts ** 2).sum(), rel=0.2)
    error = np.sqrt(sum(term.variance for term in terms))
    assert lost.high - lost.value == pytest.approx(2.0 * error, rel=0.03)
    assert lost.value - lost.low == pytest.approx(lost.high - lost.value)


def test_a_cohort_that_is_all_right_may_not_be_so_of_other_patients():
    home, away = units(2.0, n_patients=40), units(30.0, n_patients=5, own=2)
    assert away.score("accuracy").value == 1
    alone = away.score("accuracy").spread
    lost = drop([home], [away], "accuracy")
    assert lost.high - lost.value > 0.4 * (alone.high - alone.low)


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
