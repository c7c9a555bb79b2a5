"""The probes as scikit-learn classifiers, and the rule by which one of them chooses C."""

from __future__ import annotations

import pickle
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from sklearn.base import clone
from sklearn.datasets import make_classification
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from embedcache import LinearProbe, LinearProbeCV, probes
from embedcache.probes import logistic
from embedcache.probes.selection import macro_f1, pick


def samples(k=3, n=240, seed=0):
    X, y = make_classification(
        n, 12, n_informative=8, n_classes=k, n_clusters_per_class=1, random_state=seed
    )
    return X + 5, np.array(["a", "b", "c", "d"])[y]


@parametrize_with_checks([LinearProbe(), LinearProbeCV()])
def test_scikit_learn_takes_them_as_its_own(estimator, check):
    check(estimator)


@pytest.mark.parametrize("k", [2, 3])
def test_a_probe_is_a_scaler_and_a_logistic_regression(k):
    X, y = samples(k)
    weight = np.random.default_rng(0).uniform(0, 2, len(y))
    probe = LinearProbe(0.1).fit(X, y, sample_weight=weight)
    scaler = StandardScaler().fit(X, sample_weight=weight)
    theirs = LogisticRegression(C=0.1, tol=1e-10, max_iter=1000).fit(
        scaler.transform(X), y, sample_weight=weight
    )
    assert np.allclose(probe.coef_, theirs.coef_, atol=1e-4)
    assert np.allclose(probe.intercept_, theirs.intercept_, atol=1e-4)
    assert np.allclose(
        probe.decision_function(X), theirs.decision_function(scaler.transform(X)), atol=1e-3
    )
    assert np.allclose(probe.predict_proba(X), theirs.predict_proba(scaler.transform(X)), atol=1e-4)
    assert (probe.predict(X) == theirs.predict(scaler.transform(X))).all()
    assert probe.gap_ <= probe.tol
    assert probe.n_iter_ > 0
    assert probe.C_ == 0.1


def test_class_weights_go_by_name():
    X, y = samples()
    given = {"a": 0.2, "c": 3.0}
    probe = LinearProbe(class_weight=given).fit(X, y)
    Z = StandardScaler().fit_transform(X)
    theirs = LogisticRegression(tol=1e-10, max_iter=1000, class_weight=given).fit(Z, y)
    assert np.allclose(probe.coef_, theirs.coef_, atol=1e-3)


def test_a_feature_that_did_not_vary_has_no_say_however_far_it_moves():
    X, y = samples()
    X[:, 4] = 3
    probe = LinearProbe().fit(X, y)
    moved = X.copy()
    moved[:, 4] = 1e9
    assert np.array_equal(probe.predict_proba(X), probe.predict_proba(moved))


@pytest.mark.parametrize("k", [2, 3])
def test_a_class_that_weighs_nothing_gets_no_probability(k):
    X, y = samples(k + 1)
    kept = y != "a"
    probe = LinearProbe().fit(X, y, sample_weight=kept.astype(float))
    assert (probe.predict_proba(X)[:, 0] == 0).all()
    without = LinearProbe().fit(X[kept], y[kept])
    assert np.allclose(probe.predict_proba(X)[:, 1:], without.predict_proba(X), atol=1e-6)


@pytest.mark.parametrize("kind", [LinearProbe, LinearProbeCV])
def test_they_survive_clone_pickle_and_pipelines(kind):
    X, y = samples()
    probe = make_pipeline(PCA(6), kind(tol=1e-6)).fit(X, y)
    again = pickle.loads(pickle.dumps(probe))
    assert np.array_equal(probe.predict_proba(X), again.predict_proba(X))
    fresh = clone(probe)
    assert fresh[-1].tol == 1e-6
    with pytest.raises(NotFittedError, match=kind.__name__):
        fresh[-1].predict(X[:, :6])


def test_a_grid_search_may_turn_their_strength():
    X, y = samples()
    search = GridSearchCV(LinearProbe(), {"C": [1e-4, 1.0]}, scoring="f1_macro", cv=3).fit(X, y)
    assert search.best_params_ == {"C": 1.0}


def test_names_of_features_are_kept_and_held_to():
    X, y = samples()
    names = [f"x{i}" for i in range(X.shape[1])]
    table = pa.table(dict(zip(names, X.T, strict=True)))
    probe = LinearProbe().fit(table, y)
    assert probe.feature_names_in_.tolist() == names
    with pytest.raises(ValueError, match="feature names should match"):
        probe.predict(table.rename_columns(names[::-1]))


def test_the_strength_is_the_one_that_predicts_held_out_groups_best():
    X, y = samples()
    groups = np.arange(len(y)) // 4
    Cs = (1e-5, 1e-2, 1.0)
    probe = LinearProbeCV(Cs, cv=4, random_state=3).fit(X, y, groups)
    splits = StratifiedGroupKFold(4, shuffle=True, random_state=3).split(X, y, groups)
    predicted = np.empty((3, len(y)), object)
    for train, test in splits:
        for number, C in enumerate(Cs):
            predicted[number, test] = LinearProbe(C).fit(X[train], y[train]).predict(X[test])
    expected = [f1_score(y, one.astype(str), average="macro") for one in predicted]
    assert np.allclose(probe.scores_, expected)
    assert Cs[pick(probe.scores_)] == probe.C_
    assert np.allclose(probe.predict_proba(X), LinearProbe(probe.C_).fit(X, y).predict_proba(X))


def test_strengths_may_come_in_any_order():
    X, y = samples()
    a, b = (LinearProbeCV(Cs).fit(X, y) for Cs in ([1e-3, 1.0, 0.1], [0.1, 1e-3, 1.0, 1.0]))
    assert a.Cs_.tolist() == [1e-3, 0.1, 1.0]
    assert np.array_equal(a.scores_, b.scores_)


def test_row_order_moves_no_group_to_another_fold():
    X, y = samples()
    groups = np.arange(len(y)) // 4
    order = np.random.default_rng(0).permutation(len(y))
    a = LinearProbeCV().fit(X, y, groups)
    b = LinearProbeCV().fit(X[order], y[order], groups[order])
    assert np.allclose(a.scores_, b.scores_)
    assert np.allclose(a.coef_, b.coef_, atol=1e-4)


def test_fewer_groups_than_folds_make_fewer_folds():
    X, y = samples()
    probe = LinearProbeCV(cv=5).fit(X, y, np.arange(len(y)) % 3)
    assert np.array_equal(
        probe.scores_, LinearProbeCV(cv=3).fit(X, y, np.arange(len(y)) % 3).scores_
    )


def test_a_class_of_one_group_is_held_out_from_a_probe_that_lacks_it():
    X, y = samples()
    probe = LinearProbeCV(cv=3).fit(X, y, np.where(y == "c", 0, 1 + np.arange(len(y)) % 5))
    assert probe.scores_.max() < 0.7  # an F1 of 0 among three
    assert set(probe.predict(X)) == {"a", "b", "c"}


def test_one_standard_error_prefers_a_stronger_penalty():
    X, y = samples()
    X += np.random.default_rng(0).normal(0, 3, X.shape)
    best, simple = (LinearProbeCV(rule=rule).fit(X, y) for rule in ("tie", "one-se"))
    assert simple.C_ < best.C_


@pytest.mark.parametrize(
    ("probe", "complaint"),
    [
        (LinearProbe(0), "C is 0; it must be above 0"),
        (LinearProbe(np.nan), "C is nan; it must be above 0"),
        (LinearProbe(tol=-1), "tol is -1; it must be above 0"),
        (LinearProbe(class_weight="even"), "class_weight 'even'; it may be 'balanced', a dict"),
        (LinearProbe(class_weight={"b": 0}), "class_weight of 'b' is 0; it must be above 0"),
        (LinearProbeCV([1.0, -2.0]), "C is -2.0; it must be above 0"),
        (LinearProbeCV(()), "Cs is empty; pass at least one value of C"),
        (LinearProbeCV(cv=1), "1 folds leave none to choose C on"),
        (LinearProbeCV(rule="best"), "no rule 'best'; it may be tie, one-se"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_parameter_that_cannot_be_is_named(probe, complaint):
    with pytest.raises(ValueError, match=complaint):
        probe.fit(*samples())


def test_data_that_cannot_be_fitted_is_refused():
    X, y = samples()
    with pytest.raises(ValueError, match=r"one class at most \['a'\]; a probe needs"):
        LinearProbe().fit(X, np.full(len(y), "a"))
    with pytest.raises(ValueError, match=r"one class at most \['b'\]"):
        LinearProbe().fit(X, y, sample_weight=y == "b")
    with pytest.raises(ValueError, match="Negative values"):
        LinearProbe().fit(X, y, sample_weight=-np.ones(len(y)))
    with pytest.raises(ValueError, match="groups of shape \\(3,\\) for 240 rows"):
        LinearProbeCV().fit(X, y, [1, 2, 3])
    with pytest.raises(ValueError, match="1 folds leave none to choose C on"):
        LinearProbeCV().fit(X, y, np.zeros(len(y)))


@pytest.mark.parametrize("probe", [LinearProbe(1e4), LinearProbeCV((1e-6, 1e4))])
def test_a_fit_that_stops_short_warns_of_its_strength_gap_and_way_out(monkeypatch, probe):
    X, y = samples()
    few = dict.fromkeys(logistic._MOST_PASSES, 3)
    monkeypatch.setattr(logistic, "_MOST_PASSES", few)
    with pytest.warns(ConvergenceWarning, match=r"fits missed tol = .*: C = 10000 is up to .*pass"):
        probe.fit(X, y)
    if isinstance(probe, LinearProbe):
        assert probe.gap_ > probe.tol


def test_naming_the_package_imports_no_scikit_learn():
    code = "import sys, embedcache.probes; assert 'sklearn' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="has no attribute 'LinearProb'"):
        probes.LinearProb  # noqa: B018


# The rule


@pytest.mark.parametrize("k", [2, 5, 100])
def test_macro_f1_is_scikit_learns_over_the_classes_that_occur(k):
    chance = np.random.default_rng(k)
    truth, predicted = chance.integers(k - 1, size=50), chance.integers(k, size=(4, 50))
    expected = [
        f1_score(truth, one, labels=np.unique(truth), average="macro", zero_division=0)
        for one in predicted
    ]
    assert np.allclose(macro_f1(truth, predicted, k), expected, atol=1e-15)


def test_a_tie_goes_to_the_smoother_probe():
    assert pick(np.array([0.1, 0.4995, 0.5, 0.2])) == 1
    assert pick(np.array([0.1, 0.4985, 0.5, 0.2])) == 2


def test_one_standard_error_is_that_of_the_best_values_folds():
    scores = np.array([0.5, 0.7, 0.8])
    folds = np.array([[0.5, 0.5], [0.7, 0.7], [0.65, 0.95]])  # standard error 0.15
    assert pick(scores, folds, rule="one-se") == 1
    assert pick(scores, folds, rule="tie") == 2
    with pytest.raises(ValueError, match="'one-se' needs the scores of 2 folds or more, not of 0"):
        pick(scores, rule="one-se")
    with pytest.raises(ValueError, match="no rule 'two-se'; it may be tie, one-se"):
        pick(scores, rule="two-se")
