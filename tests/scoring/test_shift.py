"""The drop on an external cohort taken apart."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import t as student
from sklearn.metrics import f1_score

from embedcache.data.predictions import Predictions
from embedcache.scoring.answers import subject_of
from embedcache.scoring.compare import drop
from embedcache.scoring.shift import class_shares, prior_adjusted, take_apart

HOME = np.array([0.5, 0.3, 0.2])
AWAY = np.array([0.1, 0.2, 0.7])
EVEN = np.array([0.3, 0.3, 0.4])


def answers(shares, *, skill=1.5, n_patients=40, seed=0, cohort="away"):
    """Four images a patient, answered by Bayes' rule at `skill` 1.5 and the shares of home."""
    chance = np.random.default_rng(seed)
    patient = np.repeat(np.arange(n_patients), 4)
    truth = chance.choice(3, size=len(patient), p=shares)
    seen = chance.normal(size=(len(patient), 3))
    seen[np.arange(len(truth)), truth] += skill
    odds = np.exp(1.5 * seen) * HOME
    return Predictions(
        role="in-domain" if cohort == "home" else "external",
        classes=("a", "b", "c"),
        image_id=tuple(f"{cohort}{number}" for number in range(len(patient))),
        patient_id=tuple(f"{cohort}-{number:03d}" for number in patient),
        cohort=(cohort,) * len(patient),
        label=tuple("abc"[code] for code in truth),
        fold=patient % 5 if cohort == "home" else np.full(len(patient), -1),
        probability=odds / odds.sum(axis=1, keepdims=True),
    )


def apart(home, away, metric="macro_f1"):
    adjusted, _ = prior_adjusted(away, class_shares(home))
    return take_apart(*([subject_of(one)] for one in (home, away, adjusted)), metric)


def f1_at_shares_of(home, away):
    """Macro F1 of scikit-learn, each image weighing the share at home over that outside."""
    n_home, n_away = (np.bincount(one.codes(), minlength=3) for one in (home, away))
    weight = (n_home / n_home.sum() / (n_away / n_away.sum()))[away.codes()]
    return f1_score(away.codes(), away.predicted(), sample_weight=weight, average="macro")


def macro_f1(one):
    return f1_score(one.codes(), one.predicted(), average="macro")


def without(one, patient):
    return one.take(np.flatnonzero(np.array(one.patient_id) != patient))


def test_mix_and_rest_are_those_of_scikit_learn_and_add_up_to_the_drop():
    home, away = answers(HOME, cohort="home", n_patients=12), answers(AWAY, n_patients=8, seed=1)
    parts = apart(home, away)
    reweighted = f1_at_shares_of(home, away)
    assert parts.mix.value == pytest.approx(reweighted - macro_f1(away))
    assert parts.rest.value == pytest.approx(macro_f1(home) - reweighted)
    whole = drop([subject_of(home)], [subject_of(away)], "macro_f1")
    assert parts.mix.value + parts.rest.value == pytest.approx(whole.value, abs=1e-12)
    adjusted, _ = prior_adjusted(away, class_shares(home))
    assert parts.prior.value == pytest.approx(macro_f1(adjusted) - macro_f1(away))


def jackknife(score, home, away):
    """The interval of a score of two cohorts, each patient of either left out once."""
    variances, freedoms = [], []
    for cohorts in (
        [(without(home, patient), away) for patient in np.unique(home.patient_id)],
        [(home, without(away, patient)) for patient in np.unique(away.patient_id)],
    ):
        left_out, n = np.array([score(*pair) for pair in cohorts]), len(cohorts)
        squares = (left_out - left_out.mean()) ** 2 * (n - 1) / n
        variances.append(squares.sum())
        freedoms.append(np.clip(2 * squares.sum() ** 2 / (squares**2).sum() - 1, 1, n - 1))
    freedom = sum(variances) ** 2 / sum(v**2 / f for v, f in zip(variances, freedoms, strict=True))
    half = student.ppf(0.975, freedom) * np.sqrt(sum(variances))
    return score(home, away) - half, score(home, away) + half


def test_intervals_leave_out_each_patient_of_both_cohorts():
    home, away = answers(HOME, cohort="home", n_patients=9), answers(EVEN, n_patients=7, seed=1)
    parts = apart(home, away)
    expected = jackknife(lambda h, a: f1_at_shares_of(h, a) - macro_f1(a), home, away)
    assert (parts.mix.low, parts.mix.high) == pytest.approx(expected)
    expected = jackknife(lambda h, a: macro_f1(h) - f1_at_shares_of(h, a), home, away)
    assert (parts.rest.low, parts.rest.high) == pytest.approx(expected)


def test_other_class_shares_alone_leave_no_rest_and_adjusting_wins_back():
    rests, wins = [], []
    for seed in range(20):
        home, away = answers(HOME, cohort="home", seed=seed), answers(AWAY, seed=seed + 100)
        parts = apart(home, away)
        rests.append(parts.rest.low <= 0 <= parts.rest.high)
        wins.append(parts.prior.value)
        assert parts.mix.value > 0
    assert np.mean(rests) >= 0.9
    assert np.mean(wins) > 0.04


def test_less_skill_alone_is_no_matter_of_class_shares():
    for seed in range(5):
        home = answers(HOME, cohort="home", seed=seed)
        away = answers(HOME, skill=0.5, seed=seed + 100)
        parts = apart(home, away)
        assert abs(parts.mix.value) < 0.02
        assert parts.rest.low > 0


def test_estimated_shares_are_the_most_likely_and_need_no_labels():
    away = answers(AWAY, n_patients=400)
    adjusted, shares = prior_adjusted(replace(away, label=away.label[::-1]), HOME)

    def minus_log_likelihood(free):
        odds = np.exp(np.append(free, 0.0))
        return -np.log((away.probability / HOME) @ (odds / odds.sum())).mean()

    odds = np.exp(np.append(minimize(minus_log_likelihood, [0.0, 0.0], tol=1e-12).x, 0.0))
    assert shares == pytest.approx(odds / odds.sum(), abs=1e-4)
    assert shares == pytest.approx(AWAY, abs=0.05)
    assert adjusted.probability.mean(axis=0) == pytest.approx(shares, abs=1e-6)
    assert adjusted.probability.sum(axis=1) == pytest.approx(1)


def test_the_temperature_is_applied_and_absent_classes_can_be_masked():
    away = answers(np.array([0.3, 0.7, 0.0]))
    warm = replace(away, temperature=np.full(len(away.label), 2.0))
    adjusted, shares = prior_adjusted(warm, HOME)
    assert adjusted.temperature is None
    again, same = prior_adjusted(warm.calibrated(), HOME)
    assert np.array_equal(adjusted.probability, again.probability)
    assert np.array_equal(shares, same)
    masked, shares = prior_adjusted(away, HOME, masked=True)
    assert shares[2] == 0
    assert (masked.probability[:, 2] == 0).all()
    assert shares[:2] == pytest.approx([0.3, 0.7], abs=0.1)


def test_answers_that_are_certain_stay_as_they_are():
    away = answers(AWAY)
    certain = replace(away, probability=np.eye(3)[away.predicted()])
    adjusted, shares = prior_adjusted(certain, HOME)
    assert np.array_equal(adjusted.probability, certain.probability)
    assert shares == pytest.approx(np.bincount(away.predicted(), minlength=3) / len(away.label))
    # Nothing was trained of a class of share 0, so nothing says what its share is outside.
    untrained = replace(away, probability=np.tile([0.0, 0.0, 1.0], (len(away.label), 1)))
    adjusted, shares = prior_adjusted(untrained, np.array([0.5, 0.5, 0.0]))
    assert np.array_equal(adjusted.probability, untrained.probability)
    assert shares.tolist() == [0.5, 0.5, 0.0]


def test_repeats_that_answer_alike_are_one_and_unlike_ones_widen_the_interval():
    home, away, other = (
        answers(HOME, cohort="home"),
        answers(AWAY, seed=1),
        answers(AWAY, skill=1.0, seed=2),
    )
    other = replace(other, label=away.label)
    h, a, o = map(subject_of, (home, away, other))
    alone = take_apart([h], [a], [a], "macro_f1")
    assert take_apart([h, h], [a, a], [a, a], "macro_f1").rest.value == alone.rest.value
    assert alone.prior.value == 0
    moved = take_apart([h, h], [a, o], [a, o], "macro_f1")
    assert moved.rest.value == pytest.approx(
        (alone.rest.value + take_apart([h], [o], [o], "macro_f1").rest.value) / 2
    )
    assert moved.rest.high - moved.rest.low > alone.rest.high - alone.rest.low


def test_one_patient_outside_has_no_interval():
    home, away = answers(HOME, cohort="home"), answers(HOME, n_patients=1, seed=3)
    for metric in ("macro_f1", "accuracy"):
        parts = apart(home, away, metric)
        for part in (parts.mix, parts.rest, parts.prior):
            assert not np.isnan(part.value)
            assert np.isnan([part.low, part.high]).all()
