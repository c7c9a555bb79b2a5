"""Subgroups of one cohort against the rest of it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from made_answers import made_predictions, measurements
from sklearn.metrics import f1_score

from embedcache.scoring.answers import subject_of
from embedcache.scoring.grouping import holm
from embedcache.scoring.subgroups import Side, Subgroup, shortfalls


def split(answers, value):
    """Subgroups by a value of each image, whatever classes they have."""
    patients, subgroups = np.unique(answers.patient_id), []
    for name in np.unique(value):
        sides = []
        for rows in (value == name, value != name):
            part = answers.take(np.flatnonzero(rows))
            places = np.searchsorted(patients, np.unique(part.patient_id))
            sides.append(Side([subject_of(part)], places))
        subgroups.append(Subgroup(str(name), (), *sides))
    return subgroups, len(patients)


def by_patient(answers, n_groups):
    return np.array([int(name.rpartition("-")[2]) % n_groups for name in answers.patient_id])


def test_a_gap_is_the_rest_less_the_group_with_the_patients_that_both_share():
    answers = made_predictions(1.0, n_patients=8)
    value = np.arange(len(answers.label)) % 2  # every patient is in both
    subgroups, n_patients = split(answers, value)
    rows, _ = shortfalls(subgroups, "macro_f1", n_patients)
    shortfall = next(row for row in rows if row.subgroup == "0")

    def of_rows(keep):
        levels = [
            f1_score(answers.codes()[rows], answers.predicted()[rows], average="macro")
            for rows in (keep & (value == 0), keep & (value == 1))
        ]
        return levels[1] - levels[0]

    patient = np.array(answers.patient_id)
    assert shortfall.value == pytest.approx(of_rows(patient != ""))
    left_out = np.array([of_rows(patient != name) for name in np.unique(patient)])
    error = math.sqrt(7 / 8 * ((left_out - left_out.mean()) ** 2).sum())
    # The interval is symmetric; its half width is Student's t, between 7 and 14 degrees, times it.
    half = (shortfall.high - shortfall.low) / 2
    assert shortfall.value == pytest.approx((shortfall.low + shortfall.high) / 2)
    assert 2.1 < half / error < 2.7


def test_two_groups_are_one_hypothesis_and_more_are_corrected():
    answers = made_predictions(1.0, n_patients=24)
    (first, second), largest = shortfalls(*_with(answers, 2))
    assert first.value == pytest.approx(-second.value)
    assert (first.p, first.p_corrected) == (second.p, second.p)
    assert first.p_worst + second.p_worst == 1
    assert (largest.value, largest.low, largest.high) == (first.value, first.low, first.high)
    rows, largest = shortfalls(*_with(answers, 4))
    assert [row.p_corrected for row in rows] == holm([row.p for row in rows])
    assert largest.value == rows[0].value == max(row.value for row in rows)
    assert largest.high - largest.low > rows[0].high - rows[0].low
    assert sum(row.p_worst for row in rows) == pytest.approx(1)


def _with(answers, n_groups):
    subgroups, n_patients = split(answers, by_patient(answers, n_groups))
    return subgroups, "macro_f1", n_patients


def test_p_and_interval_never_contradict_each_other_and_hold_where_groups_are_alike():
    inside, n_false = [], 0
    for seed in range(60):
        answers = made_predictions(1.5, n_patients=30, seed=seed)
        rows, _ = shortfalls(*_with(answers, 3), n_draws=100)
        for row in rows:
            assert (row.p <= 0.05) == (not row.low <= 0 <= row.high)
        inside += [row.low <= 0 <= row.high for row in rows]
        n_false += any(row.p_corrected <= 0.05 for row in rows)
    assert np.mean(inside) >= 0.9
    assert n_false <= 8


def test_a_group_that_is_worse_is_found_and_named():
    answers = made_predictions(3.0, n_patients=40)
    value = by_patient(answers, 4)
    odds = np.where((value == 2)[:, None], 1 / 3, answers.probability)
    noise = np.random.default_rng(0).random(odds.shape) * 1e-3
    answers.probability[:] = odds + noise
    rows, largest = shortfalls(*_with(answers, 4))
    assert rows[0].subgroup == "2"
    assert rows[0].p_worst > 0.99
    assert rows[0].p_corrected < 0.01
    assert largest.low > 0.2


def test_a_group_of_one_patient_has_a_gap_without_an_interval_and_comes_last():
    answers = made_predictions(1.0, n_patients=20)
    value = np.minimum(by_patient(answers, 20), 3)
    subgroups, n_patients = split(answers, value)
    rows, _ = shortfalls(subgroups, "accuracy", n_patients)
    assert [row.n_patients for row in rows] == [17, 1, 1, 1]
    assert not math.isnan(rows[-1].value)
    assert all(math.isnan(getattr(rows[-1], name)) for name in ("low", "p", "p_corrected"))
    assert rows[0].p == rows[0].p_corrected
    alone = made_predictions(1.0, n_patients=2)
    subgroups, n_patients = split(alone, by_patient(alone, 2))
    assert shortfalls(subgroups, "accuracy", n_patients)[1] is None


def test_a_group_that_is_all_wrong_is_not_taken_for_certain():
    answers = made_predictions(9.0, n_patients=20)
    value = by_patient(answers, 2)
    wrong = np.eye(3)[(answers.codes() + 1) % 3]
    right = np.eye(3)[answers.codes()]
    answers.probability[:] = np.where((value == 0)[:, None], wrong, right)
    rows, _ = shortfalls(*_with(answers, 2)[:1], "accuracy", 20)
    assert rows[0].value == 1
    assert rows[0].low < 0.9
    assert 0 < rows[0].p < 0.001
    answers.probability[:] = right
    rows, _ = shortfalls(*_with(answers, 2)[:1], "accuracy", 20)
    assert rows[0].value == 0
    assert rows[0].low < 0 < rows[0].high


def test_of_errors_the_group_with_the_larger_one_is_behind():
    chance = np.random.default_rng(0)
    patient = [f"P{number:02d}" for number in np.repeat(np.arange(20), 3)]
    truth = chance.normal(size=60)
    value = np.arange(60) % 2
    answers = measurements(truth, truth + (1 + value) * chance.normal(size=60), patient)
    subgroups, n_patients = split(answers, value)
    rows, _ = shortfalls(subgroups, "mae", n_patients)
    assert rows[0].subgroup == "1"
    assert rows[0].value > 0
