"""Scores by number of training patients."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from made_cohorts import TASKS, embeddings, folds_of, of_task
from test_leaks import watch

from embedcache.errors import RunError
from embedcache.protocol import learning_curve as room
from embedcache.protocol.learning_curve import learning_curve
from embedcache.protocol.nested import fit_probe
from embedcache.scoring.estimates import HEADLINES
from embedcache.scoring.evaluate import evaluate


def test_a_curve_rises_and_ends_at_all_patients():
    train = embeddings(40, spread=2.0)
    points = learning_curve(train, folds_of(train), n_draws=3)
    assert [point.n_patients for point in points] == [1, 2, 4, 8, 16, 32]
    assert [len(point.scores) for point in points] == [3, 3, 3, 3, 3, 1]
    assert points[0].scores[0] < points[-1].scores[0]
    assert all(fewer.n_images < more.n_images for fewer, more in pairwise(points))


def test_a_curve_is_the_same_for_the_same_seed_and_patients_are_nested(monkeypatch):
    train = embeddings(24)
    seen = watch(monkeypatch, train)
    first = learning_curve(train, folds_of(train), [2, 4], n_draws=2, seed=3)
    sets = [trained for trained, _ in seen]
    again = learning_curve(train, folds_of(train), [2, 4], n_draws=2, seed=3)
    assert first == again
    assert first != learning_curve(train, folds_of(train), [2, 4], n_draws=2, seed=4)
    assert {len(one) for one in sets} >= {2, 4}
    small, large = ([one for one in sets if len(one) == size] for size in (2, 4))
    assert all(any(one <= other for other in large) for one in small)


def test_a_curve_needs_a_patient_and_a_draw():
    train = embeddings(12)
    for sizes, n_draws in (([0], 1), ([1], 0)):
        with pytest.raises(RunError, match="one draw and one patient at least"):
            learning_curve(train, folds_of(train), sizes, n_draws=n_draws)


@pytest.mark.parametrize("task", TASKS)
def test_a_curve_of_every_task_rises_to_the_score_of_its_headline(task):
    train, folds, _ = of_task(task)
    points = learning_curve(train, folds, [1, 4], task=task, n_draws=3)
    assert [point.n_patients for point in points] == [1, 4, 24]
    assert {point.metric for point in points} == {HEADLINES[task]}
    assert [len(point.scores) for point in points] == [3, 3, 1]
    means = [np.mean(point.scores) for point in points]
    assert means == sorted(means)


@pytest.mark.parametrize("task", ["regression", "multilabel"])
def test_the_last_point_is_the_score_of_probes_that_chose_as_their_fold_does(task):
    """With all patients a point is a probe by folds, scored as `evaluate` scores it."""
    train, folds, _ = of_task(task)
    *_, last = learning_curve(train, folds, [1], task=task, n_draws=1)
    (inside,) = fit_probe(train, folds, task=task).answers
    (headline,) = [
        e.value
        for e in evaluate([inside], n_resamples=10)
        if (e.metric, e.level) == (HEADLINES[task], "image")
    ]
    assert last.scores == pytest.approx((headline,), abs=0.02)


def test_more_patients_than_a_fold_leaves_are_refused():
    train = embeddings(12)
    with pytest.raises(RunError, match="11 patients asked for; a fold leaves 9 to train on"):
        learning_curve(train, folds_of(train), [11])


@pytest.mark.parametrize("task", TASKS)
def test_a_setting_is_chosen_only_where_enough_patients_show_the_rarest(task, monkeypatch):
    train, folds, _ = of_task(task)
    chosen_on = []
    real = room.choose_by_folds

    def choose(question, rows, *rest):
        chosen_on.append(question.fewest_patients(rows))
        return real(question, rows, *rest)

    monkeypatch.setattr(room, "choose_by_folds", choose)
    learning_curve(train, folds, [4, 20], task=task, n_draws=1)
    assert min(chosen_on) >= 5
    assert len(chosen_on) >= 5
