"""Scores with what each patient does to them: in closed form as computed without the patient."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.metrics import average_precision_score, brier_score_loss, log_loss, roc_auc_score

from embedcache.scoring.calibration import losses
from embedcache.scoring.class_units import ClassUnits
from embedcache.scoring.jackknife import deviations
from embedcache.scoring.ranking import Ranking, auroc, average_precision
from embedcache.scoring.recalibration import recalibration


def ranking(n_patients=12, n_folds=1, digits=1, seed=0):
    """Units with many ties in their probabilities."""
    chance = np.random.default_rng(seed)
    patient = np.repeat(np.arange(n_patients), chance.integers(1, 7, n_patients))
    positive = chance.random(len(patient)) < 0.3
    probability = np.round(np.clip(0.3 * positive + chance.random(len(patient)), 0, 1), digits)
    return Ranking(positive, probability, patient, n_patients, patient % n_folds)


def without(of: Ranking, patient: int) -> Ranking:
    rows = of.patient != patient
    arrays = {
        name: getattr(of, name)[rows] for name in ("positive", "probability", "patient", "fold")
    }
    return replace(of, **arrays)


@pytest.mark.parametrize(
    ("score", "theirs"), [(auroc, roc_auc_score), (average_precision, average_precision_score)]
)
def test_a_score_without_a_patient_is_scikit_learns_of_the_other_patients(score, theirs):
    of = ranking()
    value, left_out = score(of)
    assert value == pytest.approx(theirs(of.positive, of.probability))
    for patient in range(of.n_patients):
        rest = without(of, patient)
        assert left_out[patient] == pytest.approx(theirs(rest.positive, rest.probability))


def test_an_auroc_by_folds_without_a_patient_is_that_of_the_other_patients():
    of = ranking(n_folds=3)
    _, left_out = auroc(of)
    expected = [auroc(without(of, patient))[0] for patient in range(of.n_patients)]
    assert left_out == pytest.approx(expected)
    assert not np.allclose(left_out, auroc(replace(of, fold=np.zeros_like(of.fold)))[1])


@pytest.mark.parametrize("score", [auroc, average_precision])
def test_without_the_only_patient_of_a_label_there_is_no_score(score):
    of = ranking()
    alone = replace(of, positive=of.patient == 4)
    value, left_out = score(alone)
    assert np.isfinite(value)
    assert np.array_equal(np.isnan(left_out), np.arange(12) == 4)


def test_average_precision_does_not_depend_on_how_many_patients_are_taken_at_a_time(monkeypatch):
    of = ranking()
    whole = average_precision(of)[1]
    monkeypatch.setattr("embedcache.scoring.ranking._BLOCK_CELLS", 20)
    assert np.array_equal(average_precision(of)[1], whole)


# Calibration


def units(n_patients=40, sharp=1.0, seed=0, classes="abc"):
    """Units with classes drawn by softmax(logits), and probabilities softmax(sharp logits)."""
    chance = np.random.default_rng(seed)
    patient = np.repeat(np.arange(n_patients), chance.integers(1, 9, n_patients))
    logits = chance.normal(0, 1.5, size=(len(patient), len(classes)))
    true, said = (np.exp(factor * logits) for factor in (1.0, sharp))
    true, said = (odds / odds.sum(axis=1, keepdims=True) for odds in (true, said))
    draw = chance.random(len(patient))[:, None]
    truth = (draw > true.cumsum(axis=1)).sum(axis=1).clip(0, len(classes) - 1)
    return ClassUnits(
        classes=tuple(classes),
        patient=patient,
        truth=truth,
        predicted=said.argmax(axis=1),
        probability=said,
        columns=np.arange(len(classes)),
        fold=np.zeros(len(truth), np.int64),
    )


def of_rest(of: ClassUnits, patient: int) -> ClassUnits:
    rows = of.patient != patient
    arrays = {
        name: getattr(of, name)[rows]
        for name in ("patient", "truth", "predicted", "probability", "fold")
    }
    return replace(of, **arrays)


def by_name(of: ClassUnits):
    return {(score.metric, score.label): score for score in recalibration(of)}


def test_losses_and_what_each_patient_does_to_them_are_scikit_learns():
    of = units()
    theirs = {
        "log_loss": lambda u: log_loss(u.truth, u.probability, labels=[0, 1, 2]),
        "brier": lambda u: sum(
            brier_score_loss(u.truth == k, u.probability[:, k]) for k in range(3)
        ),
    }
    for score in losses(of):
        loss = theirs[score.metric]
        left_out = np.array([loss(of_rest(of, patient)) for patient in range(of.n_patients)])
        assert score.value == pytest.approx(loss(of))
        assert score.parts == pytest.approx(deviations(left_out))


def test_slopes_and_intercepts_are_those_of_maximum_likelihood():
    of, got = units(sharp=1.7), by_name(units(sharp=1.7))
    log_p = np.log(of.probability)

    def loss_of_all(b):
        z = b * log_p
        return -(z[np.arange(len(z)), of.truth] - np.log(np.exp(z).sum(axis=1))).sum()

    assert got["calibration_slope", ""].value == pytest.approx(
        minimize(loss_of_all, 1.0).x[0], abs=1e-4
    )
    for number, label in enumerate("abc"):
        y, p = of.truth == number, of.probability[:, number]
        logit = np.log(p / (1 - p))

        def loss(z, y=y):
            return np.logaddexp(0, np.where(y, -z, z)).sum()

        intercept = minimize(lambda a, x=logit, loss=loss: loss(a + x), 0.0).x[0]
        slope = minimize(lambda t, x=logit, loss=loss: loss(t[0] + t[1] * x), [0.0, 1.0]).x[1]
        assert got["calibration_intercept", label].value == pytest.approx(intercept, abs=1e-4)
        assert got["calibration_slope", label].value == pytest.approx(slope, abs=1e-4)


def test_what_a_patient_does_to_a_slope_is_about_what_a_fit_without_the_patient_says():
    of = units(n_patients=60)
    whole, rest = by_name(of), [by_name(of_rest(of, patient)) for patient in range(60)]
    for name, score in whole.items():
        exact = deviations(np.array([scores[name].value for scores in rest]))
        assert np.linalg.norm(score.parts - exact) < 0.06 * np.linalg.norm(exact)


@pytest.mark.parametrize("sharp", [0.5, 1.0, 2.0])
def test_a_slope_says_how_much_too_sure_a_model_is(sharp):
    for (metric, _), score in by_name(units(n_patients=3000, sharp=sharp)).items():
        if metric == "calibration_slope" and not score.label:
            assert score.value == pytest.approx(1 / sharp, rel=0.05)
        if sharp == 1.0:
            ideal = float(metric == "calibration_slope")
            assert score.value == pytest.approx(ideal, abs=0.1)


def test_where_probabilities_separate_the_classes_there_is_no_slope():
    of = units()
    right = np.where(np.eye(3, dtype=bool)[of.truth], 0.8, 0.1)
    got = by_name(replace(of, probability=right))
    assert {metric for metric, _ in got} == {"calibration_intercept"}


@pytest.mark.parametrize("classes", ["ab", "abc"])
@pytest.mark.parametrize("share", [0.3, 0.7])
def test_where_most_probabilities_are_zero_and_one_there_is_no_recalibration(share, classes):
    of = units(n_patients=100, classes=classes)
    chance, c = np.random.default_rng(0), len(classes)
    said = np.where(chance.random(len(of.truth)) < 0.1, (of.truth + 1) % c, of.truth)
    is_certain = chance.random(len(of.truth)) < share
    probability = np.where(is_certain[:, None], np.eye(c)[said], of.probability)
    got = by_name(replace(of, probability=probability))
    assert len(got) == (0 if share > 0.5 else 1 + 2 * c)


def test_a_class_that_most_images_are_certain_not_to_be_of_leaves_the_slope_of_all():
    of = units()
    p = of.probability.copy()
    p[np.arange(len(p)) % 4 > 0, 2] = 0
    got = by_name(replace(of, probability=p / p.sum(axis=1, keepdims=True)))
    assert {label for _, label in got} == {"", "a", "b"}


@pytest.mark.parametrize("classes", ["ab", "abc"])
def test_a_fit_ends_where_no_step_is_uphill(classes):
    of = units(classes=classes)
    is_broken = np.arange(len(of.truth))[:, None] % 3 == 0
    assert by_name(replace(of, probability=np.where(is_broken, np.nan, of.probability))) == {}


def test_a_cohort_of_one_class_has_no_recalibration():
    of = units(classes="a")
    assert by_name(of) == {}


def test_a_class_of_one_patient_has_an_intercept_without_an_interval():
    of = units()
    truth = np.where(of.patient == 3, 2, of.truth % 2)
    score = by_name(replace(of, truth=truth))["calibration_intercept", "c"]
    assert np.isfinite(score.value)
    assert np.isnan(score.spread.low)
