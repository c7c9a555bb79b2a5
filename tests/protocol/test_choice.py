"""What is chosen: ties, one standard error, others' protocols, temperatures, refusals."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from made_cohorts import TASKS, embeddings, folds_of, of_task

from embedcache.errors import RunError
from embedcache.probes import selection, training_sets
from embedcache.probes.calibration import fit_temperature
from embedcache.probes.families import PROBES
from embedcache.probes.logistic import C_GRID
from embedcache.probes.ridge import ALPHA_GRID, fit_ridge_regression
from embedcache.protocol import choice, nested
from embedcache.protocol.nested import fit_probe
from embedcache.protocol.protocols import PROTOCOLS, check_method, grid_of
from embedcache.protocol.tasks import TASKS as TASK_TYPES
from embedcache.runs.methods import ProbeMethod


@pytest.mark.parametrize(
    ("settings", "task", "match"),
    [
        ({"probe": "forest"}, "classification", "no probe 'forest'; it may be logistic, knn"),
        ({"protocol": "mine"}, "classification", "no protocol 'mine'; it may be default, dinov2"),
        ({"rule": "two-se"}, "classification", "no rule 'two-se'; it may be tie, one-se"),
        ({"external_by": "vote"}, "regression", "no external_by 'vote'; it may be refit, folds"),
        ({}, "ranking", "no task 'ranking'; it may be classification, regression, multilabel"),
        (
            {"probe": "knn", "protocol": "clip"},
            "classification",
            "protocol 'clip' is about logistic regression; leave out --probe knn",
        ),
        (
            {"protocol": "dinov2", "rule": "one-se"},
            "classification",
            "protocol 'dinov2' has no inner folds; leave out --rule one-se",
        ),
        (
            {"protocol": "dinov2"},
            "regression",
            "protocol 'dinov2' is about one class an image, not regression; pass --protocol",
        ),
        (
            {"protocol": "clip"},
            "multilabel",
            "protocol 'clip' is about one class an image, not multilabel; pass --protocol",
        ),
        ({"probe": "knn"}, "regression", "regression is by ridge; leave out --probe knn"),
        ({"grid": ()}, "classification", r"grid \[\] of C; pass one value or more"),
        ({"grid": (1.0, 0.0)}, "regression", r"grid \[1.0, 0.0\] of alpha; pass one value"),
    ],
)
def test_a_method_that_a_task_does_not_have_is_refused_in_one_line(settings, task, match):
    train, folds, _ = of_task(task) if task in TASKS else of_task("classification")
    with pytest.raises(RunError, match=match) as refusal:
        fit_probe(train, folds, task=task, method=ProbeMethod(**settings))
    assert "\n" not in str(refusal.value)


def test_a_checked_method_says_what_is_done():
    assert check_method(ProbeMethod()) == ProbeMethod()
    assert check_method(ProbeMethod(), "regression") == ProbeMethod(probe="ridge")
    assert check_method(ProbeMethod(), "multilabel") == ProbeMethod()
    official = check_method(ProbeMethod(protocol="fetalclip"), "regression")
    assert (official.probe, grid_of(official)) == ("ridge", PROBES["ridge"].grid)


def test_a_grid_is_tried_from_the_smoothest_probe_on_however_it_is_written():
    assert check_method(ProbeMethod(grid=(1.0, 0.1, 1.0))).grid == (0.1, 1.0)
    assert check_method(ProbeMethod(grid=(0.1, 1.0)), "regression").grid == (1.0, 0.1)
    assert check_method(ProbeMethod(probe="knn", grid=(5.0, 20.0))).grid == (20.0, 5.0)


@pytest.mark.parametrize("task", TASKS)
def test_one_standard_error_never_chooses_a_rougher_probe(task):
    train, folds, _ = of_task(task, spread=3.0)
    tie, rule = (
        fit_probe(train, folds, task=task, method=ProbeMethod(rule=rule))
        for rule in ("tie", "one-se")
    )
    setting = next(iter(tie.choices))
    grid = grid_of(check_method(ProbeMethod(), task))
    places = [[grid.index(value) for value in r.choices[setting]] for r in (rule, tie)]
    assert all(one_se <= nearest for one_se, nearest in zip(*places, strict=True))
    assert places[0] != places[1]


def test_one_standard_error_of_a_number_is_that_of_its_inner_folds():
    train, folds, _ = of_task("regression", spread=3.0)
    result = fit_probe(train, folds, task="regression", method=ProbeMethod(rule="one-se"))
    fold, truth = folds.of(train.patient_id), np.array(train.label, float)
    outer, inner = 0, [1, 2, 3, 4]
    scores = np.empty((len(ALPHA_GRID), len(inner)))
    errors = []
    for place, number in enumerate(inner):
        rows, held_out = (fold != outer) & (fold != number), fold == number
        (path,) = fit_ridge_regression(
            train.X, truth[:, None], [(np.flatnonzero(rows), ALPHA_GRID)]
        )
        squares = (path.predict(train.X[held_out])[..., 0] - truth[held_out]) ** 2
        errors.append(squares)
        scores[:, place] = 1 - squares.mean(axis=1) / truth.var()
    pooled = 1 - np.concatenate(errors, axis=1).mean(axis=1) / truth.var()
    best = int(pooled.argmax())
    slack = scores[best].std(ddof=1) / len(inner) ** 0.5
    expected = ALPHA_GRID[int(np.argmax(pooled >= pooled[best] - slack))]
    assert result.choices["alpha"][outer] == expected


def test_inner_folds_without_any_label_have_no_part_in_the_standard_error():
    train, folds, _ = of_task("multilabel")
    fold, rows = folds.of(train.patient_id), np.arange(len(train))

    def choose(n_with_labels):
        pairs = zip(fold, train.label, strict=True)
        label = tuple(name if number < n_with_labels else "-" for number, name in pairs)
        task = TASK_TYPES["multilabel"](replace(train, label=label), ProbeMethod())
        return choice.choose_by_folds(task, rows, fold, C_GRID, "one-se").value

    assert choose(5) in C_GRID
    assert choose(2) in C_GRID
    with pytest.raises(RunError, match="1 inner folds have a macro_f1 to take the standard error"):
        choose(1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dinov2", "clip"])
def test_others_choose_on_a_tenth_of_the_images_from_their_own_grid(name):
    train = embeddings(40)
    result = fit_probe(train, folds_of(train), method=ProbeMethod(protocol=name))
    assert set(result.choices["C"]) <= set(PROTOCOLS[name].grid)
    assert result.choices["temperature"] == [None] * 5
    assert result.answers[0].temperature is None


class Peaked:
    """A task whose score falls with the distance of C from 1, the middle of the grid of CLIP."""

    def __init__(self):
        self.train, self.tried = embeddings(4), []

    def fit_to_choose(self, problems):
        ((_, values),) = problems
        self.tried += values
        return [values]

    def predict(self, path, X):
        return np.array(path)

    def score(self, rows, predicted):
        return -np.abs(np.log10(predicted))


def test_the_search_by_halving_finds_the_peak_of_the_whole_grid():
    protocol, task = PROTOCOLS["clip"], Peaked()
    rows = np.arange(len(task.train))
    chosen = choice.choose_as_others(protocol, task, rows, protocol.grid, seed=0)
    assert chosen.value == pytest.approx(1.0)
    assert len(task.tried) == len(set(task.tried)) < 20


@pytest.mark.parametrize("name", ["dinov2", "clip"])
def test_no_row_order_moves_what_others_choose(name):
    train = embeddings(16)
    order = np.random.default_rng(1).permutation(len(train))
    method = ProbeMethod(protocol=name, grid=PROTOCOLS[name].grid[20:70:8])
    table = folds_of(train)
    a = fit_probe(train, table, method=method)
    b = fit_probe(train.take(order), table, method=method)
    assert a.choices["C"] == b.choices["C"]
    assert np.allclose(a.answers[0].probability[order], b.answers[0].probability, atol=1e-3)


def test_a_temperature_undoes_what_made_probabilities_too_sure():
    chance = np.random.default_rng(0)
    logits = chance.normal(0, 2, (4000, 3))
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    y = np.array([chance.choice(3, p=row) for row in p])
    sure = p**3 / (p**3).sum(axis=1, keepdims=True)
    one = np.zeros(4000, np.int64)
    assert fit_temperature(p, y, one) == pytest.approx(1, abs=0.07)
    assert fit_temperature(sure, y, one) == pytest.approx(3, abs=0.2)
    nothing = np.array([[1.0, 0.0], [1.0, 0.0]])
    assert fit_temperature(nothing, np.array([1, 1]), one[:2]) == 1.0


@pytest.mark.parametrize("n", [5, 50])
def test_images_that_are_all_right_leave_some_doubt(n):
    y = np.arange(2 * n) % 2
    probability = np.where(np.eye(2)[y] == 1, 0.9, 0.1)
    T = fit_temperature(probability, y, np.zeros(2 * n, np.int64))
    sureness = 9 ** (1 / T)  # Platt's target of two classes: (n + 1) / (n + 2)
    assert sureness / (1 + sureness) == pytest.approx((n + 1) / (n + 2), abs=1e-3)


def test_a_class_that_a_probe_was_not_trained_on_has_no_part_in_its_temperature():
    chance = np.random.default_rng(0)
    p = chance.dirichlet(np.full(3, 0.5), 600)
    y = np.array([chance.choice(3, p=row) for row in p])
    probe = np.repeat([0, 1], 300)
    lacking = p.copy()
    lacking[probe == 0, 2] = 0
    lacking /= lacking.sum(axis=1, keepdims=True)
    is_trained = (probe == 1) | (y < 2)
    expected = fit_temperature(lacking[is_trained], y[is_trained], probe[is_trained])
    assert fit_temperature(lacking, y, probe) == expected
    assert fit_temperature(lacking, y, np.zeros(600, np.int64)) > 2 * expected


@pytest.mark.parametrize("task", ["classification", "multilabel"])
def test_a_grid_stops_where_larger_values_cannot_win_and_chooses_what_the_whole_would(
    monkeypatch, task
):
    monkeypatch.setattr(training_sets, "_SMALL_CELLS", 0)  # as if it were large
    monkeypatch.setattr(choice, "_CHANCE", 0)  # so that few images are enough
    train, folds, _ = of_task(task, spread=5.0, n_patients=90, dim=40)
    method = ProbeMethod(grid=tuple(np.logspace(-3, 4, 15)))
    stopped = fit_probe(train, folds, task=task, method=method).choices
    monkeypatch.setattr(selection, "PAST", 99)
    whole = fit_probe(train, folds, task=task, method=method).choices
    assert whole["skipped_C"] == [[]] * len(whole["C"])
    assert all(stopped["skipped_C"])
    assert stopped["C"] == whole["C"]
    for C, skipped in zip(stopped["C"], stopped["skipped_C"], strict=True):
        assert skipped == list(method.grid[-len(skipped) :])
        assert skipped[0] > C


def test_a_fall_that_a_few_images_can_make_by_chance_stops_nothing(monkeypatch):
    train, folds, _ = of_task("classification", spread=5.0, n_patients=90, dim=40)
    method = ProbeMethod(grid=tuple(np.logspace(-3, 4, 15)))
    monkeypatch.setattr(training_sets, "_SMALL_CELLS", 0)
    skipped = []
    for n_images in (0, 5, 1000):
        monkeypatch.setattr(choice, "_CHANCE", n_images)
        by_fold = fit_probe(train, folds, method=method).choices["skipped_C"]
        skipped.append(min(map(len, by_fold)))
    assert skipped[0] >= skipped[1] >= skipped[2] == 0 < skipped[0]


def test_other_probes_skip_nothing():
    train, folds, _ = of_task("classification", spread=4.0)
    choices = fit_probe(train, folds, method=ProbeMethod(probe="lda")).choices
    assert choices["skipped_shrinkage"] == [[]] * folds.n_folds


@pytest.mark.parametrize(
    ("scores", "losses", "is_past"),
    [
        ([0.5, 0.8, 0.7, 0.7], [3.0, 1.0, 2.0, 3.0], True),
        ([0.5, 0.8, 0.7, 0.7], [4.0, 3.0, 2.0, 1.0], False),  # the loss still falls
        ([0.5, 0.8, 0.7, 0.7995], [3.0, 1.0, 2.0, 3.0], False),  # as good as the best
        ([0.8, 0.7], [1.0, 2.0], False),  # too few
        ([np.nan] * 4, [3.0, 1.0, 2.0, 3.0], False),
    ],
)
def test_a_search_is_past_the_best_where_score_and_loss_both_got_worse_twice(
    scores, losses, is_past
):
    assert selection.past_best(np.array(scores), np.array(losses)) is is_past


@pytest.mark.parametrize(
    ("scores", "close"),
    [
        ([0.5, 0.8, 0.6], []),
        ([0.5, 0.8, 0.8], []),  # whichever is better, the first is within the tie
        ([0.5, 0.8, 0.801], [1, 2]),  # at the edge of the tie
        ([0.7985, 0.8, 0.7], [0, 1]),
    ],
)
def test_a_choice_is_close_where_small_errors_of_the_scores_would_change_it(scores, close):
    assert selection.close_values(np.array(scores), reach=0.0009).tolist() == close


def test_temperatures_that_the_data_did_not_decide_are_noted():
    train = embeddings(spread=0.01)
    notes = fit_probe(train, folds_of(train)).choices["notes"]
    assert any("temperatures rest on the smoothing of targets" in note for note in notes)
    at_bound = [choice.Chosen(1.0, 0.5, T) for T in (1.0, 1000.0, 0.001)]
    assert list(nested._temperature_notes(at_bound, 1.0, is_perfect=False)) == [
        "2 of 4 temperatures are at a bound, 0.001 or 1000"
    ]
