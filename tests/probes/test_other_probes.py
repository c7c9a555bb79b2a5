from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from embedcache.data.labels import label_matrix, separate_labels
from embedcache.errors import RunError
from embedcache.probes import gram, knn, lda, mlp, ridge
from embedcache.probes.families import PROBES
from embedcache.probes.multilabel import fit_multilabel
from embedcache.probes.ridge import fit_ridge_regression
from embedcache.probes.scaling import Scaler

# The logistic probe has tests of its own; three values of each of the others, smoothest first.
OTHERS = {
    "knn": (40.0, 10.0, 3.0),
    "prototype": (0.5, 0.1),
    "ridge": (1e3, 10.0, 0.1),
    "lda": (1.0, 0.3, 0.01),
    "svm": (1e-4, 1e-2),
    "mlp": (1.0,),
}
EVERY = pytest.mark.parametrize("name", OTHERS)


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch):
    monkeypatch.setattr(mlp, "STEPS", 6)
    monkeypatch.setattr(mlp, "BATCH", 40)
    monkeypatch.setattr(mlp, "HIDDEN", 8)


def cloud(n=90, dim=6, n_classes=3, seed=0):
    chance, fixed = np.random.default_rng(seed), np.random.default_rng(99)
    centres = fixed.normal(0, 1.5, (n_classes, dim))
    scale, offset = fixed.uniform(0.1, 9, dim), fixed.normal(0, 5, dim)
    y = chance.permutation(np.arange(n) % n_classes).astype(np.int64)
    return ((centres[y] + chance.normal(size=(n, dim))) * scale + offset).astype(np.float32), y


@dataclass
class One:
    """One value's probe of a path."""

    path: object
    number: int

    def probability(self, X):
        return self.path.probability(X)[self.number]


def fit(name, X, y, n_classes, rows=None, values=None):
    rows, values = np.arange(len(y)) if rows is None else rows, values or OTHERS[name]
    (path,) = PROBES[name].fit_sweep(X, y, n_classes, [(rows, values)])
    assert path.probability(X[:1]).shape == (len(values), 1, n_classes)
    return [One(path, number) for number in range(len(values))]


def z_scored(X):
    return StandardScaler().fit_transform(X.astype(np.float64))


def folds_problems(n, values, n_folds=4):
    fold = np.random.default_rng(5).integers(n_folds, size=n)
    pairs = [(i, j) for i in range(n_folds) for j in range(i)]
    return [(np.flatnonzero((fold != i) & (fold != j)), values) for i, j in pairs]


# What each computes, against another computation of it


@pytest.mark.parametrize("shape", [(90, 6), (20, 50), (30, 30)])
def test_ridge_is_scikit_learns(shape):
    X, _ = cloud(*shape)
    t = np.random.default_rng(1).normal(3, 2, (len(X), 2))
    rows, alphas = np.arange(len(X)), (1e4, 10.0, 1e-3)
    (path,) = fit_ridge_regression(X, t, [(rows, alphas)])
    for alpha, predicted in zip(alphas, path.predict(X), strict=True):
        expected = Ridge(alpha=alpha).fit(z_scored(X), t).predict(z_scored(X))
        assert np.allclose(predicted, expected, rtol=1e-8, atol=1e-8)


def test_the_ridge_classifier_regresses_on_indicators():
    X, y = cloud()
    for alpha, probe in zip(OTHERS["ridge"], fit("ridge", X, y, 3), strict=True):
        scores = Ridge(alpha=alpha).fit(z_scored(X), np.eye(3)[y]).predict(z_scored(X))
        assert np.allclose(probe.probability(X), softmax(scores, axis=1), atol=1e-9)


@pytest.mark.parametrize("dim", [6, 120])
def test_overlapping_training_sets_fit_as_they_do_alone(dim):
    X, y = cloud(200, dim)
    problems = folds_problems(len(y), (10.0, 0.1))
    for module in (ridge, lda):
        for problem, together in zip(problems, module.fit_sweep(X, y, 3, problems), strict=True):
            (alone,) = module.fit_sweep(X, y, 3, [problem])
            assert np.allclose(alone.probability(X), together.probability(X), atol=1e-10)


def test_the_shared_gram_matrices_are_those_of_the_standardised_rows():
    X, _ = cloud(300, 5)
    few = [rows for rows, _ in folds_problems(len(X), ())]
    chance = np.random.default_rng(0)
    many = [chance.choice(300, 100) for _ in range(4)]  # with rows drawn twice, in no few parts
    twice = [np.r_[np.arange(9), np.arange(5)], np.arange(9)]
    for training in (few, many, few[:1], twice):
        for rows, (scaler, Z, product) in zip(
            training, gram.standardised(X, training), strict=True
        ):
            assert np.allclose(Z, z_scored(X[rows]), atol=1e-6)
            assert np.allclose(scaler.mean, X[rows].mean(axis=0, dtype=float))
            assert np.allclose(product, Z.T @ Z, rtol=1e-11, atol=1e-9)


def test_a_gram_matrix_does_not_suffer_from_an_offset():
    X = cloud(300, 5)[0] + np.float32(1e5)
    (_, Z, product), _ = gram.standardised(X, [np.arange(200), np.arange(300)])
    assert np.allclose(product, Z.T @ Z, rtol=1e-9, atol=1e-8)


def test_a_gram_matrix_does_not_suffer_from_huge_values_outside_its_training_set():
    X, _ = cloud(300, 5)
    X[250:] *= 1e7
    inside, everything = np.arange(250), np.arange(300)
    sets = list(gram.standardised(X, [inside, everything]))
    assert np.allclose(sets[0][2], sets[0][1].T @ sets[0][1], rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("shape", [(120, 6), (30, 60)])
def test_lda_is_scikit_learns(shape, n_classes):
    X, y = cloud(*shape, n_classes)
    y[:7] = 0  # unequal priors
    for shrinkage, probe in zip(OTHERS["lda"], fit("lda", X, y, n_classes), strict=True):
        model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage)
        expected = model.fit(z_scored(X), y).predict_proba(z_scored(X))
        assert np.allclose(probe.probability(X), expected, atol=1e-6)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_the_svm_is_linear_svc(n_classes):
    X, y = cloud(n_classes=n_classes)
    Z = z_scored(X)
    for C, probe in zip(OTHERS["svm"], fit("svm", X, y, n_classes), strict=True):
        margin = LinearSVC(C=C, dual=False).fit(Z, y).decision_function(Z)
        margin = np.stack([-margin, margin], axis=1) if n_classes == 2 else margin
        assert np.allclose(probe.probability(X), softmax(margin, axis=1), atol=1e-6)


def test_neighbours_vote_as_counted_by_hand(monkeypatch):
    monkeypatch.setattr(knn, "_BLOCK_CELLS", 200)  # several blocks
    X, y = cloud(60)
    new, _ = cloud(25, seed=3)
    mean, sd = X.mean(axis=0, dtype=float), X.std(axis=0, dtype=float)
    unit = [
        Z / np.linalg.norm(Z, axis=1, keepdims=True) for Z in ((X - mean) / sd, (new - mean) / sd)
    ]
    cosine = unit[1] @ unit[0].T
    for k, probe in zip(OTHERS["knn"], fit("knn", X, y, 3), strict=True):
        expected = np.zeros((25, 3))
        for row, order in enumerate(np.argsort(-cosine, axis=1)):
            for neighbour in order[: int(k)]:
                expected[row, y[neighbour]] += np.exp(cosine[row, neighbour] / 0.07)
        expected /= expected.sum(axis=1, keepdims=True)
        assert np.allclose(probe.probability(new), expected, atol=1e-4)


def test_more_neighbours_than_training_images_are_all_of_them():
    X, y = cloud(20)
    huge, all_of_them = fit("knn", X, y, 3, values=(500.0, 20.0))
    assert np.array_equal(huge.probability(X), all_of_them.probability(X))


def test_neighbours_as_near_as_the_last_vote_too():
    X = np.array([[0, 1], [1, 0], [1, 0], [0, -1], [-1, 0]], np.float32)
    y = np.array([0, 1, 0, 0, 0])
    (nearest,) = fit("knn", X, y, 2, values=(1.0,))
    assert np.allclose(nearest.probability(X[1:2]), [[0.5, 0.5]])


def test_the_nearest_mean_is_found_by_hand():
    X, y = cloud(n_classes=4)
    Z = z_scored(X)
    means = np.stack([Z[y == code].mean(axis=0) for code in range(4)])
    cosine = Z @ means.T / np.linalg.norm(Z, axis=1)[:, None] / np.linalg.norm(means, axis=1)
    for temperature, probe in zip(OTHERS["prototype"], fit("prototype", X, y, 4), strict=True):
        expected = softmax(cosine / temperature, axis=1)
        assert np.allclose(probe.probability(X), expected, atol=1e-6)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_the_network_predicts_as_scikit_learns(n_classes):
    X, y = cloud(n_classes=n_classes)
    order = mlp._order(X, y)
    Z = Scaler.of(X).apply(X).astype(np.float32)
    model = mlp.MLPClassifier((8,), alpha=1.0, batch_size=40, max_iter=2, random_state=0)
    with pytest.warns(UserWarning, match="Maximum iterations"):
        model.fit(Z[order], y[order])
    assert np.allclose(
        fit("mlp", X, y, n_classes)[0].probability(X), model.predict_proba(Z), atol=1e-5
    )


def test_the_seed_of_the_network_is_an_argument():
    X, y = cloud()
    problems = [(np.arange(len(y)), (1.0,))]
    first, again, other = (
        mlp.fit_sweep(X, y, 3, problems, seed=seed)[0].probability(X) for seed in (1, 1, 2)
    )
    assert np.array_equal(first, again)
    assert not np.allclose(first, other)


# What holds for every probe


@EVERY
def test_a_probe_learns_what_is_there(name, monkeypatch):
    X, y = cloud(400, 8, seed=1)
    new, truth = cloud(200, 8, seed=2)
    monkeypatch.setattr(mlp, "STEPS", 400)
    for probe in fit(name, X, y, 3):
        assert (probe.probability(new).argmax(axis=1) == truth).mean() > 0.85


@EVERY
@pytest.mark.parametrize("n_classes", [2, 4])
@pytest.mark.parametrize("shape", [(60, 6), (24, 40)])
def test_probabilities_sum_to_one(name, shape, n_classes):
    X, y = cloud(*shape, n_classes)
    for probe in fit(name, X, y, n_classes):
        p = probe.probability(X)
        assert p.shape == (len(X), n_classes)
        assert p.dtype == np.float64
        assert (p >= 0).all()
        assert np.allclose(p.sum(axis=1), 1)
        assert probe.probability(X[:0]).shape == (0, n_classes)


@EVERY
def test_a_class_that_a_training_set_lacks_has_probability_zero(name):
    X, y = cloud()
    y = np.array([0, 2, 4])[y]
    for probe in fit(name, X, y, 6, rows=np.flatnonzero(y != 4)):
        p = probe.probability(X)
        assert (p[:, [1, 3, 4, 5]] == 0).all()
        assert (p[:, [0, 2]] > 0).any(axis=0).all()
    for probe in fit(name, X, y, 6, rows=np.flatnonzero(y == 2)):
        assert np.array_equal(probe.probability(X), np.tile(np.eye(6)[2], (len(X), 1)))


@EVERY
def test_a_feature_that_does_not_vary_in_the_training_set_weighs_nothing(name):
    X, y = cloud()
    rows = np.arange(60)
    dead = np.full((len(X), 2), [0.0, 1 / 3], np.float32)
    dead[60:] = 1e6  # where it varies it was not trained on
    wider = np.hstack([X, dead])
    for a, b in zip(fit(name, X, y, 3, rows), fit(name, wider, y, 3, rows), strict=True):
        if name == "mlp":  # one weight more moves the random ones
            assert np.array_equal(
                b.probability(wider), b.probability(np.hstack([X, dead - 3.0]).astype(np.float32))
            )
        else:
            assert np.allclose(a.probability(X), b.probability(wider), atol=1e-5)


@EVERY
def test_offsets_and_units_of_features_change_nothing(name):
    X, y = cloud()
    moved = X * np.float32([1, 256, 1, 2**-20, 1, 1]) + np.float32([0, 0, 4096, 0, 0, 0])
    X = X.copy()
    X[:, 2] = moved[:, 2] - 4096  # what is left of the digits
    for a, b in zip(fit(name, X, y, 3), fit(name, moved, y, 3), strict=True):
        assert np.allclose(a.probability(X), b.probability(moved), atol=1e-3)


@EVERY
@pytest.mark.parametrize("shape", [(60, 6), (20, 30)])
def test_degenerate_columns_and_rows_leave_probabilities_finite(name, shape):
    X, y = cloud(*shape)
    odd = np.hstack(
        [X, X[:, :1], np.float32(1e8) + 0 * X[:, :1], 1e30 * X[:, :1], 1e-30 * X[:, 1:2]]
    )
    for values in (odd, X * 0, X[:, :1], np.repeat(X[:1], len(X), axis=0)):
        for probe in fit(name, values.astype(np.float32), y, 3):
            assert np.isfinite(probe.probability(values.astype(np.float32))).all()


@EVERY
def test_one_image_of_each_class_is_enough(name):
    X, y = cloud(3)
    for probe in fit(name, X, y, 3, values=(1.0,)):
        assert (probe.probability(X).argmax(axis=1) == y).all() or name == "mlp"
        assert np.allclose(probe.probability(X).sum(axis=1), 1)


@EVERY
def test_row_order_changes_no_probability(name):
    X, y = cloud(70, 8)
    X[50:60], y[50:60] = X[:10], y[10:20]  # the same image under two labels
    order = np.random.default_rng(1).permutation(70)
    for a, b in zip(fit(name, X, y, 3), fit(name, X[order], y[order], 3), strict=True):
        assert np.allclose(a.probability(X), b.probability(X), atol=1e-5)


@EVERY
def test_rows_outside_the_training_set_have_no_part(name):
    X, y = cloud()
    rows, other = np.arange(40), X.copy()
    other[40:] = cloud(seed=8)[0][40:] + 100
    relabelled = np.r_[y[:40], (y[40:] + 1) % 3]
    for a, b in zip(fit(name, X, y, 3, rows), fit(name, other, relabelled, 3, rows), strict=True):
        assert np.allclose(a.probability(X), b.probability(X), atol=1e-9)


@EVERY
def test_no_training_images_are_one_line(name):
    X, y = cloud()
    with pytest.raises(RunError, match="no training images to fit on; lower --folds"):
        fit(name, X, y, 3, rows=np.arange(0))


@cache
def fitted(name, seed):
    X, y = cloud(seed=seed)
    return X, fit(name, X, y, 3, np.arange(60))


@EVERY
@settings(max_examples=15, deadline=None)
@given(rows=st.lists(st.integers(0, 89), max_size=30), seed=st.integers(0, 3))
def test_a_prediction_does_not_depend_on_the_rows_predicted_with_it(name, rows, seed):
    X, probes = fitted(name, seed)
    for probe in probes:
        whole, some = probe.probability(X), probe.probability(X[rows])
        assert np.allclose(whole[rows], some, atol=1e-6)


def test_families_choose_from_positive_values_the_smoothest_first():
    assert set(OTHERS) == set(PROBES) - {"logistic"}
    smoother_when_larger = {"knn": True, "prototype": True, "ridge": True, "lda": True, "mlp": True}
    for name, family in PROBES.items():
        assert min(family.grid) > 0
        smoothest_first = sorted(family.grid, reverse=smoother_when_larger.get(name, False))
        assert list(family.grid) == smoothest_first, name
        assert family.setting
        assert len(family.about) < 80


def test_the_page_has_a_row_for_every_probe_with_its_values():
    page = (ROOT / "docs/probes.md").read_text()
    for name, family in PROBES.items():
        (row,) = re.findall(rf"^\| `{name}` \| .* \| `{family.setting}` \| (.*) \|$", page, re.M)
        number, _, values = row.partition(": ")
        powers = [one.partition("^") for one in values.split(", ") if one != "..."]
        shown = [float(base) ** float(power or 1) for base, _, power in powers]
        assert int(number) == len(family.grid)
        assert np.allclose(shown, [*family.grid[: len(shown) - 1], family.grid[-1]])


@pytest.mark.parametrize("name", ["knn", "ridge", "lda", "svm"])
def test_the_first_value_is_the_smoothest(name):
    X, y = cloud(300, 4, seed=2)
    first, *_, last = fit(name, X, y, 3)
    certainty = [probe.probability(X).max(axis=1).mean() for probe in (first, last)]
    assert certainty[0] < certainty[1]


# Scaling


def test_a_scaler_weighs_rows_as_copies_of_them():
    X, _ = cloud(30)
    weights = np.random.default_rng(0).integers(0, 4, 30)
    a, b = Scaler.of(X, weights.astype(float)), Scaler.of(np.repeat(X, weights, axis=0))
    assert np.allclose(a.mean, b.mean)
    assert np.allclose(a.scale, b.scale)
    with pytest.raises(RunError, match="no training images"):
        Scaler.of(X, np.zeros(30))


def test_what_varies_by_rounding_alone_does_not_vary():
    noise = np.random.default_rng(0).integers(0, 2, (1000, 1)) * np.float32(2**-24)
    real = np.random.default_rng(1).normal(size=(1000, 1))
    X = np.hstack([0.5 + noise, 0.5 + real * 1e-5, 1e-20 * real, 1e8 + 1e3 * real]).astype(
        np.float32
    )
    assert (Scaler.of(X).scale > 0).tolist() == [False, True, True, True]
    assert np.allclose(Scaler.of(X).apply(X)[:, 1:].std(axis=0), 1)


# Several labels


@pytest.mark.parametrize("name", ["ridge", "lda", "knn"])
def test_each_label_has_a_probe_of_its_own(name):
    X, y = cloud()
    Y = np.column_stack([y == 0, y > 0, np.ones(90, bool), np.zeros(90, bool)])
    problems = [(np.arange(60), OTHERS[name]), (np.arange(30, 90), OTHERS[name][:1])]
    first, second = fit_multilabel(PROBES[name].fit_sweep, X, Y, problems)
    assert first.probability(X).shape == (len(OTHERS[name]), 90, 4)
    assert second.probability(X).shape == (1, 90, 4)
    p = first.probability(X)[1]
    alone = fit(name, X, (y > 0).astype(np.int64), 2, np.arange(60))[1].probability(X)
    assert np.allclose(p[:, 1], alone[:, 1])
    assert (p[:, 2] == 1).all()
    assert (p[:, 3] == 0).all()


def test_cells_hold_labels_or_say_that_none_applies():
    own = separate_labels(["b-lines| pleura ", "-", "pleura"])
    assert own == [{"b-lines", "pleura"}, set(), {"pleura"}]
    assert separate_labels(["a;b|c"], sep=";") == [{"a", "b|c"}]
    assert label_matrix(own, ["pleura", "x"]).tolist() == [
        [True, False],
        [False, False],
        [True, False],
    ]
    assert label_matrix([], ["x"]).shape == (0, 1)


@pytest.mark.parametrize("cell", ["", " ", "a||b", "a|", "a|-"])
def test_a_cell_that_is_no_list_of_labels_is_refused(cell):
    with pytest.raises(RunError, match=f"cell '{cell}' is no list of labels".replace("|", r"\|")):
        separate_labels(["fine", cell])
