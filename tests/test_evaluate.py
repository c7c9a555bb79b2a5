from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, roc_auc_score

from embedcache.evaluate import evaluate, resample_weights
from embedcache.runs import Predictions


def predictions(n_patients=25, classes="abcd", labels="abcd", seed=0, sharp=2.0, per_patient=None):
    chance = np.random.default_rng(seed)
    patient, label = [], []
    for number in range(n_patients):
        for _ in range(per_patient or chance.integers(1, 6)):
            patient.append(f"P{number}")
            label.append(labels[int(chance.integers(len(labels)))])
    logits = chance.normal(size=(len(label), len(classes)))
    logits[np.arange(len(label)), [classes.index(name) for name in label]] += sharp
    odds = np.exp(logits)
    n = len(label)
    return Predictions(
        role="external",
        classes=tuple(classes),
        image_id=tuple(map(str, range(n))),
        patient_id=tuple(patient),
        cohort=("away",) * n,
        label=tuple(label),
        fold=np.full(n, -1),
        probability=odds / odds.sum(1, keepdims=True),
    )


def scores(one: Predictions, **settings):
    return {(e.scoring, e.metric, e.label): e for e in evaluate(one, n_resamples=200, **settings)}


def test_values_are_scikit_learns():
    one = predictions()
    got, truth = scores(one), one.label
    predicted = [one.classes[i] for i in one.predicted()]
    assert got["all", "macro_f1", ""].value == pytest.approx(
        f1_score(truth, predicted, average="macro")
    )
    assert got["all", "accuracy", ""].value == pytest.approx(accuracy_score(truth, predicted))
    assert got["all", "balanced_accuracy", ""].value == pytest.approx(
        balanced_accuracy_score(truth, predicted)
    )
    assert got["all", "auroc", ""].value == pytest.approx(
        roc_auc_score(truth, one.probability, multi_class="ovr", average="macro")
    )
    for label, value in zip("abcd", f1_score(truth, predicted, average=None), strict=True):
        assert got["all", "f1", label].value == pytest.approx(value)
    assert {key[0] for key in got} == {"all"}


def test_a_cohort_with_fewer_classes_is_scored_over_its_own_both_ways():
    one = predictions(labels="ac", sharp=1.0)
    got, truth = scores(one), one.label
    free = [one.classes[i] for i in one.predicted()]
    assert set(free) - {"a", "c"}  # some predictions do fall outside
    assert got["all", "macro_f1", ""].value == pytest.approx(
        f1_score(truth, free, labels=["a", "c"], average="macro")
    )
    own = [["a", "c"][i] for i in one.probability[:, [0, 2]].argmax(1)]
    assert got["masked", "macro_f1", ""].value == pytest.approx(
        f1_score(truth, own, average="macro")
    )
    assert got["masked", "macro_f1", ""].value > got["all", "macro_f1", ""].value
    assert {label for _, metric, label in got if metric == "f1"} == {"a", "c"}


def test_a_cohort_of_one_class_has_no_masked_score():
    assert {scoring for scoring, *_ in scores(predictions(labels="a"))} == {"all"}


def test_one_patient_has_scores_but_no_interval():
    for estimate in evaluate(predictions(n_patients=1, per_patient=30), n_resamples=100):
        assert np.isfinite(estimate.value)
        assert np.isnan([estimate.low, estimate.high]).all()


def test_intervals_hold_the_value_and_counts_are_given():
    one = predictions()
    for estimate in evaluate(one, n_resamples=500):
        assert estimate.low <= estimate.value <= estimate.high
        assert estimate.n_patients == 25
        assert estimate.n_images == len(one.image_id)


def naive(one: Predictions, score, n_resamples=200, seed=0) -> np.ndarray:
    """The bootstrap written as one would explain it."""
    names, patient = np.unique(one.patient_id, return_inverse=True)
    drawn = np.random.default_rng(seed).integers(len(names), size=(n_resamples, len(names)))
    values = []
    for who in drawn:
        rows = np.concatenate([np.flatnonzero(patient == number) for number in who])
        values.append(score(one, rows))
    return np.array(values)


def macro_f1(one, rows):
    truth, predicted = one.codes()[rows], one.predicted()[rows]
    present = np.unique(truth)
    return f1_score(truth, predicted, labels=present, average="macro", zero_division=0)


def auroc(one, rows):
    truth = one.codes()[rows]
    areas = [roc_auc_score(truth == c, one.probability[rows, c]) for c in np.unique(truth)]
    return np.mean(areas)


@pytest.mark.parametrize(("metric", "score"), [("macro_f1", macro_f1), ("auroc", auroc)])
def test_the_vectorised_bootstrap_is_the_naive_one(metric, score):
    one = predictions(n_patients=15)
    estimate = scores(one)["all", metric, ""]
    low, high = np.quantile(naive(one, score), [0.025, 0.975])
    assert estimate.low == pytest.approx(low, abs=1e-6)
    assert estimate.high == pytest.approx(high, abs=1e-6)


def test_ties_in_scores_count_a_half():
    one = predictions(classes="ab", labels="ab")
    flat = replace(one, probability=np.full_like(one.probability, 0.5))
    assert scores(flat)["all", "auroc", ""].value == 0.5


def test_intervals_over_patients_are_wider_when_images_of_a_patient_agree():
    chance = np.random.default_rng(0)
    n_patients, each = 30, 20
    right = np.repeat(chance.random(n_patients) < 0.7, each)
    label = np.repeat(chance.integers(2, size=n_patients), each)
    said = np.where(right, label, 1 - label)
    n = len(label)

    def interval(patient):
        one = Predictions(
            "in-domain", ("a", "b"), tuple(map(str, range(n))), tuple(patient), ("c",) * n,
            tuple("ab"[i] for i in label), np.zeros(n, int), np.eye(2)[said],
        )  # fmt: skip
        estimate = scores(one)["all", "accuracy", ""]
        return estimate.high - estimate.low

    by_patient = interval([f"P{i // each}" for i in range(n)])
    by_image = interval([f"P{i}" for i in range(n)])
    assert by_patient > 3 * by_image


def test_resamples_are_shared_by_all_who_have_the_same_patients():
    a, b = resample_weights(10, 50, 1), resample_weights(10, 50, 1)
    assert np.array_equal(a, b)
    assert (a.sum(axis=1) == 10).all()
    assert not np.array_equal(a, resample_weights(10, 50, 2))
