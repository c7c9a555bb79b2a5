"""Operating points: chosen where they are not judged, applied outside as they are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from made_answers import made_predictions

from embedcache.data.predictions import Predictions
from embedcache.scoring.answers import subject_of
from embedcache.scoring.evaluate import evaluate
from embedcache.scoring.operating import (
    operating_points,
    rates_above,
    rates_out_of_fold,
    threshold_at,
    thresholds_of_others,
)
from embedcache.scoring.ranking import Ranking


def away(**settings) -> Predictions:
    home = made_predictions(0.5, cohort="away", **settings)
    return replace(home, role="external", fold=np.full(len(home.label), -1))


def two_classes(p, label, fold):
    n = len(p)
    return Predictions(
        "in-domain", ("a", "b"), tuple(map(str, range(n))), tuple(map(str, range(n))), ("c",) * n,
        tuple(label), np.asarray(fold), np.column_stack([p, 1 - p]),
    )  # fmt: skip


def ranking(n_patients=200, n_folds=5, seed=0, gain=1.0) -> Ranking:
    chance = np.random.default_rng(seed)
    patient = np.repeat(np.arange(n_patients), chance.integers(1, 9, n_patients))
    positive = chance.random(len(patient)) < 0.3
    z = gain * positive + chance.normal(size=len(patient)) + chance.normal(size=n_patients)[patient]
    return Ranking(positive, 1 / (1 + np.exp(-z)), patient, n_patients, patient % n_folds)


def test_thresholds_let_as_few_of_the_rest_pass_as_they_may():
    units = subject_of(made_predictions(1.0, n_patients=60))
    for number, (name, threshold) in enumerate(operating_points(units).items()):
        assert units.classes[number] == name
        rest = units.probability[units.truth != number, number]
        assert (rest > threshold).sum() == int(0.05 * len(rest))
        lower = np.nextafter(threshold, 0)
        assert (rest <= lower).mean() < 0.95


def test_forty_others_at_95_percent_let_two_pass():
    p = np.r_[np.full(10, 0.9), np.arange(40) / 100]
    units = subject_of(two_classes(p, "a" * 10 + "b" * 40, np.zeros(50, int)))
    threshold = operating_points(units)["a"]
    assert threshold == 0.37
    rates = rates_above(units.ranking(0), "a", threshold)
    assert [rate.value for rate in rates] == [1, 0.95]


def test_each_fold_is_called_by_the_threshold_of_the_others():
    of = ranking()
    thresholds = thresholds_of_others(of)
    for number in range(5):
        others = (of.fold != number) & ~of.positive
        expected = np.sort(of.probability[others])[: int(np.ceil(0.95 * others.sum()))].max()
        assert set(thresholds[of.fold == number]) == {expected}
    called = of.probability > thresholds
    sensitivity, specificity = rates_out_of_fold(of, "x")
    assert sensitivity.value == pytest.approx(called[of.positive].mean())
    assert specificity.value == pytest.approx((~called)[~of.positive].mean())


def test_rates_without_a_patient_are_those_of_the_others_at_the_same_threshold():
    of = ranking(n_patients=12)
    called = of.probability > 0.6
    for score, side, right in zip(
        rates_above(of, "x", 0.6), (of.positive, ~of.positive), (called, ~called), strict=True
    ):
        left_out = [right[side & (of.patient != patient)].mean() for patient in range(12)]
        expected = np.sqrt(11 / 12) * (np.mean(left_out) - left_out)
        assert score.parts == pytest.approx(expected)
        assert score.n_holders == len(set(of.patient[side]))


def test_the_sensitivity_carries_the_error_of_the_thresholds_and_the_specificity_does_not():
    of = ranking()
    given = rates_above(of, "x", thresholds_of_others(of))
    sensitivity, specificity = rates_out_of_fold(of, "x")
    assert np.array_equal(specificity.parts, given[1].parts)
    slope = np.linalg.lstsq(
        specificity.parts[:, None], given[0].parts - sensitivity.parts, rcond=None
    )[0][0]
    assert given[0].parts - sensitivity.parts == pytest.approx(slope * specificity.parts)
    # The slope of this binormal curve, where the rest has a standard deviation of sqrt(2).
    z = (1.645 * np.sqrt(2) - 1) / np.sqrt(2)
    assert slope == pytest.approx(-np.exp((1.645**2 - z**2) / 2), rel=0.25)


def test_intervals_of_a_sensitivity_hold_that_of_the_population():
    whole = ranking(n_patients=20_000, seed=1)
    goal = rates_above(whole, "x", threshold_at(whole, 0.95))[0].value
    spreads = [rates_out_of_fold(ranking(40, seed=n), "x")[0].spread for n in range(100, 300)]
    assert 0.92 <= np.mean([s.low <= goal <= s.high for s in spreads]) <= 0.99


def test_folds_without_a_rest_to_choose_on_have_no_rates():
    p = np.linspace(0.1, 0.9, 20)
    one_fold = subject_of(two_classes(p, "ab" * 10, np.zeros(20, int)))
    assert rates_out_of_fold(one_fold.ranking(0), "a") == ()
    rest_in_one_fold = subject_of(two_classes(p, "a" * 10 + "b" * 10, [0] * 5 + [1] * 15))
    assert rates_out_of_fold(rest_in_one_fold.ranking(0), "a") == ()
    assert {e.metric for e in evaluate([two_classes(p, "ab" * 10, np.zeros(20, int))])} >= {
        "threshold_at_spec95"
    }


def test_ties_about_the_threshold_move_nothing():
    flat = replace(ranking(), probability=np.full(len(ranking().patient), 0.5))
    sensitivity, specificity = rates_out_of_fold(flat, "x")
    assert (sensitivity.value, specificity.value) == (0, 1)
    assert not sensitivity.parts.any()


def test_operating_points_are_chosen_inside_and_applied_outside_as_they_are():
    home, outside = (
        made_predictions(1.5, classes="abcd", labels="abcd"),
        away(classes="abcd", labels="abc"),
    )
    found = {
        (e.role, e.metric, e.label): e.value
        for e in evaluate([home, outside], n_resamples=100)
        if (e.level, e.scoring) == ("image", "all")
    }
    for number, name in enumerate("abc"):
        threshold = found["in-domain", "threshold_at_spec95", name]
        called = outside.probability[:, number] > threshold
        is_in = np.array(outside.label) == name
        rates = [found["external", f"{m}_at_spec95", name] for m in ("sensitivity", "specificity")]
        assert rates == pytest.approx([called[is_in].mean(), (~called[~is_in]).mean()])
    assert ("external", "threshold_at_spec95", "a") not in found
    assert ("external", "sensitivity_at_spec95", "d") not in found


def test_without_predictions_inside_there_are_no_operating_points():
    assert not [e for e in evaluate([away()], n_resamples=100) if "spec95" in e.metric]
