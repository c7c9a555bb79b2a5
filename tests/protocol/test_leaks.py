"""No probe, at any level, predicts a patient that it was fitted on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_cohorts import embeddings, folds_of

from embedcache.data.folds import assign_folds
from embedcache.errors import RunError
from embedcache.probes import training_sets
from embedcache.protocol import choice, estimators, tasks
from embedcache.protocol.learning_curve import learning_curve
from embedcache.protocol.nested import fit_probe
from embedcache.protocol.protocols import grid_of
from embedcache.runs.methods import ProbeMethod


def watch(monkeypatch, train):
    """Record the patients of every training set that is fitted, and of every row predicted."""
    seen = []
    real, real_sweep = tasks.logistic.fit_sweep, tasks._sweep
    owner = {row.tobytes(): who for row, who in zip(train.X, train.patient_id, strict=True)}

    def watched(paths, X, problems):
        return [
            Watched(path, {owner[X[row].tobytes()] for row in rows}, owner, seen)
            for path, (rows, _) in zip(paths, problems, strict=True)
        ]

    def fit(X, y, n_classes, problems, **options):
        return watched(real(X, y, n_classes, problems, **options), X, problems)

    def sweep(X, y, n_classes, sets, grid, **options):
        made = real_sweep(X, y, n_classes, sets, grid, **options)
        solve = made.solve
        problems = [(rows, grid) for rows in sets]
        made.solve = lambda places, tol: watched(solve(places, tol), X, problems)
        return made

    monkeypatch.setattr(tasks.logistic, "fit_sweep", fit)
    monkeypatch.setattr(tasks, "_sweep", sweep)
    return seen


class Watched:
    def __init__(self, path, trained, owner, seen):
        self.path, self.trained, self.owner, self.seen = path, trained, owner, seen

    def probability(self, X):
        self.seen.append((self.trained, {self.owner[row.tobytes()] for row in X}))
        return self.path.probability(X)


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10**6), n_patients=st.integers(9, 30), n_folds=st.integers(3, 5))
def test_no_probe_at_any_level_predicts_a_patient_that_it_was_fitted_on(seed, n_patients, n_folds):
    with pytest.MonkeyPatch.context() as patch:
        train = embeddings(n_patients, seed=seed)
        seen = watch(patch, train)
        table = folds_of(train, n_folds)
        fit_probe(train, table, method=ProbeMethod(grid=(0.01, 1.0)))
        n_probe = len(seen)
        learning_curve(train, table, [2, 5], n_draws=2)
    assert n_probe >= n_folds * (n_folds - 1) + n_folds
    assert len(seen) > n_probe
    for trained, predicted in seen:
        assert trained
        assert predicted
        assert not trained & predicted


@settings(max_examples=60, deadline=None)
@given(
    images=st.lists(st.tuples(st.integers(0, 12), st.sampled_from("abc")), min_size=8, max_size=60),
    n_folds=st.integers(3, 6),
    seed=st.integers(0, 99),
)
def test_no_split_of_any_manifest_has_a_patient_on_both_sides(images, n_folds, seed):
    """What every task goes through: outer folds, inner folds, and who predicts whom."""
    patient = [f"P{number}" for number, _ in images]
    label = [name for _, name in images]
    try:
        table = assign_folds(patient, label, n_folds=n_folds, seed=seed)
    except RunError:
        return  # too few patients or classes
    fold, who = table.of(patient), np.array(patient)

    sets, asked = choice.inner_folds(fold)
    for outer, parts in zip(np.unique(fold), asked, strict=True):
        for number, rows in parts:
            assert not set(who[sets[number]]) & set(who[rows])
        predicted = np.concatenate([rows for _, rows in parts])
        assert sorted(predicted) == np.flatnonzero(fold != outer).tolist()
        for number, _ in parts:
            assert not set(who[sets[number]]) & set(who[fold == outer])
    for rows in sets:
        assert len(set(fold[rows])) == len(set(fold)) - 2


@pytest.mark.parametrize("groups", ["abcdefgh", "aabbccdd"])
def test_the_estimator_holds_out_whole_groups(monkeypatch, groups):

    train = embeddings(24)
    own = np.array([groups[i % 8] for i in range(len(train))])
    seen = []
    real = estimators.fit_sweep

    def fit(X, y, n_classes, problems, **options):
        seen.extend(rows for rows, _ in problems)
        return real(X, y, n_classes, problems, **options)

    monkeypatch.setattr(estimators, "fit_sweep", fit)
    estimators.LinearProbeCV(Cs=[0.01, 1.0]).fit(train.X, np.array(train.label), groups=own)
    inner = [rows for rows in seen if len(rows) < len(train)]
    assert inner
    for rows in inner:
        assert not set(own[rows]) & set(np.delete(own, rows))


def test_the_watch_of_the_test_above_sees_a_leak(monkeypatch):
    train = embeddings(12)
    seen = watch(monkeypatch, train)
    method = ProbeMethod(protocol="dinov2", grid=(0.01, 1.0))
    fit_probe(train, folds_of(train), method=method)
    assert any(trained & predicted for trained, predicted in seen)


def chosen_when_tested_images_change(monkeypatch, factor):
    """What each fold chooses before, and after the embeddings of that very fold have changed."""
    monkeypatch.setattr(training_sets, "_SMALL_CELLS", 0)  # as if it were large: in float32
    train = embeddings(100, dim=24, seed=3, spread=4.0, classes="abcd")
    fold = folds_of(train).of(train.patient_id)
    method = ProbeMethod()

    def choose(X):
        task = tasks.TASKS["classification"](replace(train, X=X), method)
        return [chosen.value for chosen in choice.choose_nested(task, fold, grid_of(method))]

    changed = []
    for outer in range(5):
        X = train.X.copy()
        X[fold == outer] *= np.float32(factor)
        changed.append(choose(X)[outer])
    return choose(train.X), changed


def test_the_embeddings_of_tested_patients_do_not_turn_the_choice_of_their_fold(monkeypatch):
    before, after = chosen_when_tested_images_change(monkeypatch, 100)
    assert before == after


def test_rough_fits_alone_would_let_them(monkeypatch):
    monkeypatch.setattr(choice, "REFINEMENTS", ())
    before, after = chosen_when_tested_images_change(monkeypatch, 100)
    assert before != after
