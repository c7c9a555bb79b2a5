from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import t as student
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    f1_score,
    log_loss,
    recall_score,
    roc_auc_score,
)
from written_out import interval

from embedcache.data.predictions import Predictions
from embedcache.errors import RunError
from embedcache.scoring.answers import subject_of
from embedcache.scoring.calibration import N_BINS
from embedcache.scoring.class_units import ClassUnits
from embedcache.scoring.evaluate import classes_often_missing, evaluate
from embedcache.scoring.jackknife import SHARE, UNBOUNDED, deviations, error_of, spread_with
from embedcache.scoring.resampling import ece_interval, resample_weights


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


def scores(one: Predictions, level="image", **settings):
    return {
        (e.scoring, e.metric, e.label): e
        for e in evaluate([one], n_resamples=200, **settings)
        if e.level == level
    }


def inside(one: Predictions) -> Predictions:
    return replace(one, role="in-domain")


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
    for metric, function in (("f1", f1_score), ("recall", recall_score)):
        for label, value in zip("abcd", function(truth, predicted, average=None), strict=True):
            assert got["all", metric, label].value == pytest.approx(value)
    for number, label in enumerate("abcd"):
        area = roc_auc_score(np.array(truth) == label, one.probability[:, number])
        assert got["all", "auroc", label].value == pytest.approx(area)
    assert got["all", "log_loss", ""].value == pytest.approx(log_loss(truth, one.probability))
    squares = (one.probability - np.eye(4)[one.codes()]) ** 2
    assert got["all", "brier", ""].value == pytest.approx(squares.sum(axis=1).mean())
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
    for estimate in evaluate([predictions(n_patients=1, per_patient=30)], n_resamples=100):
        assert np.isfinite(estimate.value)
        assert np.isnan([estimate.low, estimate.high]).all()


def test_intervals_hold_the_value_and_counts_are_given():
    one = predictions()
    for estimate in evaluate([one], n_resamples=500):
        assert estimate.low <= estimate.value <= estimate.high
        assert estimate.n_patients == 25
        assert estimate.n_images == len(one.image_id)


def left_out(one: Predictions, score) -> np.ndarray:
    """The score of all patients, then that without each of them."""
    patient = np.array(one.patient_id)
    rows = [patient != name for name in ("", *np.unique(patient))]
    return np.array([score(one, np.flatnonzero(kept)) for kept in rows])


def macro_f1(one, rows):
    truth, predicted = one.codes()[rows], one.predicted()[rows]
    present = np.unique(truth)
    return f1_score(truth, predicted, labels=present, average="macro", zero_division=0)


def auroc(one, rows):
    truth = one.codes()[rows]
    areas = [roc_auc_score(truth == c, one.probability[rows, c]) for c in np.unique(truth)]
    return np.mean(areas)


def mean_log_loss(one, rows):
    return log_loss(one.codes()[rows], one.probability[rows], labels=range(len(one.classes)))


def by_patient(one, rows):
    """Each image weighs one over the images that its patient has."""
    sizes = dict(zip(*np.unique(one.patient_id, return_counts=True), strict=True))
    weight = [1 / sizes[one.patient_id[row]] for row in rows]
    truth, predicted = one.codes()[rows], one.predicted()[rows]
    return f1_score(
        truth, predicted, labels=np.unique(truth), average="macro", sample_weight=weight
    )


@pytest.mark.parametrize(
    ("metric", "score"),
    [
        ("macro_f1", macro_f1),
        ("auroc", auroc),
        ("log_loss", mean_log_loss),
        ("macro_f1_by_patient", by_patient),
    ],
)
def test_an_interval_is_that_of_scores_without_each_patient(metric, score):
    one = predictions(n_patients=15)
    estimate = scores(one)["all", metric, ""]
    value, *others = left_out(one, score)
    assert estimate.value == pytest.approx(value)
    ends = interval(value, others, 15, is_share=metric != "log_loss")
    assert (estimate.low, estimate.high) == pytest.approx(ends)


def test_the_interval_of_a_class_counts_the_patients_of_the_class():
    one = predictions(n_patients=40, per_patient=2)
    label = np.array(one.label)
    label[np.isin(one.patient_id, ["P3", "P5", "P8"])] = "d"
    label[~np.isin(one.patient_id, ["P3", "P5", "P8"]) & (label == "d")] = "a"
    one = replace(one, label=tuple(label.tolist()))

    def f1_of_d(one, rows):
        truth, predicted = one.codes()[rows], one.predicted()[rows]
        return f1_score(truth, predicted, labels=[3], average="macro", zero_division=0)

    value, *others = left_out(one, f1_of_d)
    estimate = scores(one)["all", "f1", "d"]
    assert (estimate.low, estimate.high) == pytest.approx(interval(value, others, 3))
    alone = replace(one, label=tuple("a" if name == "d" else name for name in one.label))
    alone = replace(alone, label=("d", *alone.label[1:]))
    estimate = scores(alone)["all", "recall", "d"]
    assert np.isnan([estimate.low, estimate.high]).all()  # of one patient


@pytest.mark.parametrize("rare", "ab")
def test_the_auroc_of_two_classes_is_one_number_with_one_interval(rare):
    one = predictions(n_patients=30, classes="ab", labels="ab", per_patient=3, sharp=1.0)
    is_rare = np.isin(one.patient_id, ["P3", "P5", "P8"])
    often = "b" if rare == "a" else "a"
    one = replace(one, label=tuple(np.where(is_rare, rare, often).tolist()))
    got, units = scores(one), subject_of(one)
    ends = {(e.low, e.high) for e in (got["all", "auroc", label] for label in ("", "a", "b"))}
    assert len({(round(low, 9), round(high, 9)) for low, high in ends}) == 1
    assert {units.score(m).n_holders for m in ("auroc", "auroc:a", "auroc:b")} == {3}
    value, *others = left_out(one, auroc)
    assert ends.pop() == pytest.approx(interval(value, others, 3))


def test_an_auroc_of_one_class_ranks_no_other(monkeypatch):
    units, ranked = subject_of(predictions()), []
    ranking = ClassUnits.ranking
    monkeypatch.setattr(
        ClassUnits, "ranking", lambda u, number: (ranked.append(number), ranking(u, number))[1]
    )
    alone = units.score("auroc:c")
    assert ranked == [2]
    assert alone.spread == next(s for s in units.scores() if s[:2] == alone[:2]).spread


def test_probabilities_that_are_not_finite_are_refused_with_cohort_and_number():
    one = predictions()
    probability = one.probability.copy()
    probability[[2, 5], 1] = np.nan
    with pytest.raises(RunError, match=f"'away': 2 of {len(one.label)} images have a probability"):
        replace(one, probability=probability)


def test_where_no_patient_moves_a_score_the_interval_is_that_of_as_many_images():
    error = error_of(np.zeros(30), 7, SHARE)
    spread = spread_with(1.0, error, 7, SHARE)
    t = student.ppf(0.975, 6)
    assert (spread.low, spread.high) == (pytest.approx(7 / (7 + t**2)), 1)
    assert spread_with(0.0, error, 7, SHARE).high == pytest.approx(t**2 / (7 + t**2))


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


def test_degrees_of_freedom_count_the_patients_that_matter():
    def freedom(parts, n_holders, bounds=UNBOUNDED):
        return error_of(np.array(parts), n_holders, bounds).freedom

    assert freedom([1.0, -1.0] * 20, 40) == 39
    assert freedom([1.0, -1.0] * 20, 5) == 4
    few = [1.0, -1.0] * 3 + [0.0] * 34
    assert freedom(few, 40) == pytest.approx(2 * 6 - 1)
    assert freedom(few, 40, SHARE) == pytest.approx(2 * 7 - 1)
    alone = [1.0, *[-1 / 39] * 39]
    assert freedom(alone, 40) == pytest.approx(1.0, abs=0.11)
    assert freedom(alone, 40, SHARE) == pytest.approx(3.0, abs=0.11)


def test_patients_who_are_all_alike_move_nothing():
    tables = [np.full(n, (7 * n - 7) / (10 * n - 10)) for n in (5, 7, 10, 20)]
    assert all(not deviations(np.array([x * 3 / 3 for x in t])).any() for t in tables)
    one = predictions(n_patients=7, per_patient=10)
    right = np.tile(np.arange(10) < 7, 7)
    codes = np.where(right, one.codes(), (one.codes() + 1) % 4)
    estimate = scores(replace(one, probability=np.eye(4)[codes]))["all", "accuracy", ""]
    t = student.ppf(0.975, 6)
    assert estimate.value == pytest.approx(0.7)
    assert estimate.low < 0.7 - t * np.sqrt(0.21 / 7) / 2


def test_one_wrong_image_of_many_says_little_less_than_none():
    one = predictions(n_patients=500, per_patient=1, sharp=50.0)
    probability = one.probability.copy()
    probability[0] = np.roll(probability[0], 1)
    whole, but_one = scores(one), scores(replace(one, probability=probability))
    assert whole["all", "accuracy", ""].low > 0.99
    assert but_one["all", "accuracy", ""].low > 0.96


def test_a_class_that_resamples_lack_is_named_with_how_many_of_them_do():
    patients = [f"P{i}" for i in range(30)] * 2
    labels = ["a"] * 30 + ["rare" if i < 3 else "b" if i < 9 else "a" for i in range(30)]
    (name, share), *others = classes_often_missing(labels, patients).items()
    drawn = resample_weights(30, 20_000, 0)
    assert (name, others) == ("rare", [])
    assert share == pytest.approx((drawn[:, :3].sum(axis=1) == 0).mean(), abs=0.006)
    assert classes_often_missing(labels, patients, share=0.001).keys() == {"b", "rare"}


def test_order_of_rows_plays_no_part():
    one = inside(predictions())
    one = replace(one, temperature=np.full(len(one.label), 1.3))
    order = np.random.default_rng(0).permutation(len(one.label))
    pairs = zip(*(evaluate([x], n_resamples=100) for x in (one, one.take(order))), strict=True)
    for here, there in pairs:
        assert here.metric == there.metric
        assert (here.value, here.low, here.high) == pytest.approx(
            (there.value, there.low, there.high), nan_ok=True
        )


# Patients


def test_a_patient_counts_once_for_each_class_that_the_frames_show():
    one = predictions(n_patients=12, per_patient=8)
    patients, truth = np.array(one.patient_id), np.array(one.label)
    cells = sorted({*zip(patients, truth, strict=True)})
    means = [one.probability[(patients == p) & (truth == c)].mean(axis=0) for p, c in cells]
    said = [one.classes[i] for i in np.argmax(means, axis=1)]
    expected = f1_score([c for _, c in cells], said, average="macro")
    assert scores(one, "patient")["all", "macro_f1", ""].value == pytest.approx(expected)
    assert len(subject_of(one, level="patient").truth) == len(cells) < len(one.label)


def test_macro_f1_by_patient_does_not_let_one_patient_decide():
    one = predictions(n_patients=10, per_patient=2, sharp=9.0)
    n = 500
    crowd = replace(predictions(n_patients=1, per_patient=n, sharp=-9.0), patient_id=("Q",) * n)
    both = Predictions(
        "external", one.classes,
        *(getattr(one, name) + getattr(crowd, name) for name in
          ("image_id", "patient_id", "cohort", "label")),
        np.full(n + 20, -1), np.vstack([one.probability, crowd.probability]),
    )  # fmt: skip
    got = scores(both)
    assert got["all", "macro_f1", ""].value < 0.1
    assert got["all", "macro_f1_by_patient", ""].value > 0.8


# Calibration


def test_a_temperature_undoes_what_it_was_made_with():
    one = predictions()
    power = one.probability**2.5
    sure = replace(one, probability=power / power.sum(axis=1, keepdims=True))
    warm = replace(sure, temperature=np.full(len(one.label), 2.5))
    assert warm.calibrated().probability == pytest.approx(one.probability)
    plain, calibrated = scores(one), scores(warm)
    for metric in ("log_loss", "brier", "ece"):
        assert calibrated["all", f"{metric}_calibrated", ""].value == pytest.approx(
            plain["all", metric, ""].value
        )
        assert ("all", f"{metric}_calibrated", "") not in plain
    assert calibrated["all", "macro_f1", ""] == scores(sure)["all", "macro_f1", ""]


def test_a_tiny_temperature_does_not_underflow():
    one = predictions()
    cold = replace(one, temperature=np.full(len(one.label), 1e-4)).calibrated().probability
    assert np.isfinite(cold).all()
    assert np.array_equal(cold.argmax(axis=1), one.predicted())


def test_images_without_a_temperature_leave_the_calibrated_scores_out():
    one = predictions()
    some = replace(one, temperature=np.where(np.arange(len(one.label)) < 3, np.nan, 1.5))
    assert not [key for key in scores(some) if "calibrated" in key[1]]


def test_the_ece_is_that_of_its_definition():
    one = predictions(n_patients=60)
    sure = one.probability.max(axis=1)
    right = one.predicted() == one.codes()
    parts = np.array_split(np.argsort(sure), N_BINS)
    # Bins of equal mass by rank; the edges of quantiles put a unit at most on the other side.
    expected = sum(abs((sure[part] - right[part]).sum()) for part in parts) / len(sure)
    assert scores(one)["all", "ece", ""].value == pytest.approx(
        expected, abs=2 / len(sure) * N_BINS
    )


def test_equal_confidences_share_a_bin():
    one = predictions(classes="ab", labels="ab")
    flat = replace(one, probability=np.tile([0.8, 0.2], (len(one.label), 1)))
    share = np.mean(np.array(one.label) == "a")
    assert scores(flat)["all", "ece", ""].value == pytest.approx(abs(0.8 - share))


def test_the_interval_of_the_ece_holds_the_zero_of_a_calibrated_model():
    """Percentiles of resampled ECE never do: noise adds to absolute values."""
    chance, held, n_percentile = np.random.default_rng(0), 0, 0
    for _ in range(40):
        gaps = chance.normal(0, 0.01, N_BINS)
        drawn = gaps + chance.normal(0, 0.01, (500, N_BINS))
        held += ece_interval(gaps, drawn, 200)[0] == 0
        n_percentile += np.quantile(np.abs(drawn).sum(axis=1), 0.025) < 0.01
    assert held >= 36
    assert n_percentile == 0


def test_the_interval_of_the_ece_reaches_as_far_as_the_gaps_move():
    gaps = np.linspace(-0.02, 0.02, N_BINS)
    moves = np.random.default_rng(0).choice([-0.001, 0.001], size=(100, N_BINS))
    value, distance = np.abs(gaps).sum(), 0.001 * N_BINS
    ends = ece_interval(gaps, gaps + moves, 50)
    assert ends == pytest.approx((value - distance, value + distance))


def test_a_probability_of_zero_costs_as_much_as_scikit_learn_says():
    one = predictions(n_patients=3)
    certain = replace(one, probability=np.eye(4)[(one.codes() + 1) % 4])
    expected = log_loss(one.label, certain.probability)
    assert scores(certain)["all", "log_loss", ""].value == pytest.approx(expected)


def test_the_auroc_holds_no_image_against_one_of_another_fold():
    one = predictions(30, classes="ab", labels="ab", sharp=1.0)
    patient = np.array([int(name[1:]) for name in one.patient_id])
    tested = replace(one, role="in-domain", fold=patient % 3)
    # Probabilities of one fold on another scale than those of the others: no ranking changes.
    p = np.where(tested.fold == 0, one.probability[:, 1] / 10, one.probability[:, 1])
    shifted = replace(tested, probability=np.column_stack([1 - p, p]))
    truth = np.array([name == "b" for name in one.label])
    pairs = [
        (p[i] > p[j]) + 0.5 * (p[i] == p[j])
        for i in np.flatnonzero(truth)
        for j in np.flatnonzero(~truth)
        if tested.fold[i] == tested.fold[j]
    ]
    a, b = (scores(which)["all", "auroc", "b"] for which in (tested, shifted))
    assert (a.value, a.low) == pytest.approx((b.value, b.low))
    assert scores(shifted)["all", "auroc", "b"].value == pytest.approx(np.mean(pairs))
    assert roc_auc_score(truth, p) < np.mean(pairs) - 0.02
