"""The sweep solver against scikit-learn and against the optimum itself, where fits are hard."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from scipy.special import log_softmax, logsumexp, softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from sklearn.utils.class_weight import compute_class_weight

from embedcache.errors import RunError
from embedcache.probes import lbfgs, logistic, training_sets
from embedcache.probes.logistic import C_GRID, fit_sweep

STRENGTHS = (1e-6, 1e-3, 0.1, 1.0, 1e2, 1e4, 1e6)


class Problem:
    """One training set and C, by plain formulas: scikit-learn's objective and its optimum."""

    def __init__(self, X, y, C, weight=None, class_weight=None):
        self.classes, self.y = np.unique(y, return_inverse=True)
        weight = np.ones(len(y)) if weight is None else weight
        self.scaler = StandardScaler().fit(X.astype(np.float64), sample_weight=weight)
        self.Z = self.scaler.transform(X.astype(np.float64))
        self.model = LogisticRegression(C=C, tol=1e-10, max_iter=20_000, class_weight=class_weight)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            self.model.fit(self.Z, y, sample_weight=weight)
        factors = compute_class_weight(
            class_weight, classes=self.classes, y=y, sample_weight=weight
        )
        self.weight = weight * factors[self.y]
        # Two classes: one vector of weights, which is twice either of ours.
        self.penalty = (2 if len(self.classes) == 2 else 1) / C
        coef, intercept = self.model.coef_, self.model.intercept_
        if len(self.classes) == 2:
            coef, intercept = (np.concatenate([-one, one]) / 2 for one in (coef, intercept))
        self.best = self._newton(np.column_stack([coef, intercept]))

    def value(self, theta):
        z = self.Z @ theta[:, :-1].T + theta[:, -1]
        loss = logsumexp(z, axis=1) - z[np.arange(len(z)), self.y]
        return self.weight @ loss + self.penalty / 2 * (theta[:, :-1] ** 2).sum()

    def _newton(self, theta):
        """Go on from scikit-learn's answer until nothing but rounding is left."""
        A, k = np.column_stack([self.Z, np.ones(len(self.Z))]), len(theta)
        ridge = self.penalty * np.append(np.ones(A.shape[1] - 1), 0.0)
        onehot = np.eye(k)[self.y]
        for _ in range(50):
            p = softmax(A @ theta.T, axis=1)
            gradient = ((p - onehot) * self.weight[:, None]).T @ A + ridge * theta
            bend = (p[:, :, None] * (np.eye(k) - p[:, None, :])) * self.weight[:, None, None]
            hessian = np.concatenate(
                [
                    ((bend[:, a, :, None] * A[:, None, :]).reshape(len(A), -1).T @ A).T
                    for a in range(k)
                ]
            )
            hessian += np.diag(np.tile(ridge, k))
            intercepts = np.arange(k) * A.shape[1] + A.shape[1] - 1
            hessian[np.ix_(intercepts, intercepts)] += self.weight.sum()  # their sum is free
            step = np.linalg.solve(hessian, gradient.ravel()).reshape(theta.shape)
            length = 1.0
            while self.value(theta - length * step) >= self.value(theta) and length > 1e-4:
                length /= 2
            if length <= 1e-4:
                break
            theta = theta - length * step
        return theta

    def check(self, path, number, X, *, tol=1e-5, strays=0):
        """Hold one probe of a path to the optimum; of all predictions `strays` may differ."""
        inverse = path.scaler.inverse
        coef, intercept = path.coef[number][self.classes], path.intercept[number][self.classes]
        # As a function of StandardScaler's Z, which divides by 1 where nothing varies.
        assert np.allclose(path.scaler.mean, self.scaler.mean_, rtol=1e-9, atol=1e-12)
        assert np.allclose(1 / self.scaler.scale_[inverse > 0], inverse[inverse > 0], rtol=1e-6)
        value = self.value(np.column_stack([coef, intercept]))
        optimum = self.value(self.best)
        prior = np.bincount(self.y, self.weight) / self.weight.sum()
        null = -self.weight.sum() * prior @ np.log(prior)
        excess, rounding = value - optimum, 1e-12 * optimum + 1e-14 * null
        assert -rounding <= excess <= tol * optimum + rounding
        assert excess <= path.gap[number] * min(value, null - value) + rounding
        expected = self.classes[self.logits(X).argmax(axis=1)]
        assert (path.logits(X)[number].argmax(axis=1) != expected).sum() <= strays

    def logits(self, X):
        return self.scaler.transform(X.astype(np.float64)) @ self.best[:, :-1].T + self.best[:, -1]


def clusters(n=400, d=20, k=3, apart=0.5, seed=0):
    chance = np.random.default_rng(seed)
    y = chance.integers(k, size=n)
    y[:k] = np.arange(k)
    X = chance.normal(size=(n, d)) + apart * chance.normal(size=(k, d))[y]
    return X.astype(np.float32), y


def badly_scaled():
    X, y = clusters()
    return X * np.logspace(-8, 8, X.shape[1], dtype=np.float32), y


def offset():
    X, y = clusters()
    return X + np.float32(1e4) * np.arange(X.shape[1], dtype=np.float32), y


def constant_and_duplicate():
    X, y = clusters()
    return np.column_stack([X, np.full(len(X), 3.3, np.float32), X[:, 0], X[:, 0], X[:, 1]]), y


def dead_channels():
    X, y = clusters()
    X[:, ::4] = np.maximum(X[:, ::4] - 1.5, 0)
    X[:, 1::5] = 0
    return X, y


def one_sample_of_a_class():
    X, y = clusters()
    return X, np.where(np.arange(len(y)) == 7, 0, 1 + y % 2)


def a_patient_with_most_rows():
    X, y = clusters()
    X[:240] = X[0] + 0.05 * X[:240]
    return X, y


def weighted():
    X, y = clusters()
    return X, y, np.random.default_rng(1).integers(0, 4, len(y)).astype(np.float64)


HARD = {
    "plain": clusters,
    "fewer rows than features": lambda: clusters(60, 150, 4, 1.0),
    "as many rows as features": lambda: clusters(60, 60, 3),
    "separable": lambda: clusters(300, 20, 3, 5.0),
    "two classes": lambda: clusters(k=2),
    "two classes, separable, few rows": lambda: clusters(30, 60, 2, 3.0),
    "badly scaled": badly_scaled,
    "offset": offset,
    "constant and duplicate": constant_and_duplicate,
    "dead channels": dead_channels,
    "one sample of a class": one_sample_of_a_class,
    "a patient with most rows": a_patient_with_most_rows,
    "weighted": weighted,
}


def everything(y):
    return np.arange(len(y))


@pytest.mark.parametrize("single", [False, True], ids=["float64", "float32 first"])
@pytest.mark.parametrize("case", HARD)
def test_a_hard_fit_is_at_its_optimum_and_certified(monkeypatch, case, single):
    if single:
        monkeypatch.setattr(training_sets, "_SMALL_CELLS", 0)
    X, y, *weight = HARD[case]()
    weight = weight[0] if weight else None
    tol = 1e-6 if single else 1e-5  # what is small and in float64 is solved further than asked
    (path,) = fit_sweep(X, y, 4, [(everything(y), STRENGTHS)], tol=tol, sample_weight=weight)
    used = slice(None) if weight is None else weight > 0
    assert path.gap.max() <= tol
    for number, C in enumerate(STRENGTHS):
        problem = Problem(X[used], y[used], C, None if weight is None else weight[used])
        problem.check(path, number, X, strays=int(single))


@pytest.mark.slow
def test_no_certificate_is_below_the_true_gap(monkeypatch):
    """On random problems too: at rare classes the intercepts once had too small a part in it."""
    monkeypatch.setattr(training_sets, "_SMALL_CELLS", 0)
    n_early = 0
    for seed in range(150):
        chance = np.random.default_rng(seed)
        n, d, k = (int(chance.integers(*ends)) for ends in ((50, 200), (2, 20), (3, 6)))
        drawn = chance.choice(k, n, p=chance.dirichlet(np.full(k, 0.5)))
        _, y = np.unique(drawn, return_inverse=True)
        if y.max() == 0:
            continue
        centres = 10.0 ** chance.uniform(-1, 1) * chance.normal(size=(k, d))
        X = (chance.normal(size=(n, d)) * 10.0 ** chance.normal(size=d) + centres[y]).astype("f")
        C = 10.0 ** chance.uniform(-3, 3)
        (path,) = fit_sweep(X, y, int(y.max()) + 1, [(everything(y), [C])])
        problem = Problem(X, y, C)
        value = problem.value(np.column_stack([path.coef[0], path.intercept[0]]))
        least, share = problem.value(problem.best), np.bincount(y) / n
        reference = min(value, -n * share @ np.log(share) - value)
        if value - least > 1e-9 * least:  # else it is rounding that is compared
            n_early += 1
            assert (value - least) / reference <= path.gap[0] <= 1e-5, seed
    assert n_early > 75


def test_a_training_set_without_rows_is_refused():
    X, y = np.zeros((4, 2), np.float32), np.array([0, 1, 0, 1])
    with pytest.raises(RunError, match="no training images to fit on"):
        fit_sweep(X, y, 2, [(np.array([], np.intp), [1.0])])


@pytest.mark.slow
def test_a_hundred_classes():
    X, y = clusters(500, 8, 100, 2.0)
    strengths = (1e-6, 1e-2, 1.0, 1e4)
    (path,) = fit_sweep(X, y, 100, [(everything(y), strengths)])
    for number, C in enumerate(strengths):
        Problem(X, y, C).check(path, number, X, strays=1)


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("class_weight", ["balanced", {0: 0.1, 1: 5.0, 2: 1.0}])
def test_class_weights_are_scikit_learns(class_weight, k):
    X, y = clusters(k=k)
    y[y == 1] = np.where(np.arange((y == 1).sum()) % 3, 0, 1)
    weight = np.random.default_rng(3).uniform(0.1, 2, len(y))
    (path,) = fit_sweep(
        X, y, k, [(everything(y), (1e-3, 1.0))], sample_weight=weight, class_weight=class_weight
    )
    for number, C in enumerate((1e-3, 1.0)):
        problem = Problem(X, y, C, weight, class_weight)
        problem.check(path, number, X)
        theirs = problem.model.predict_proba(problem.Z)
        assert np.allclose(path.probability(X)[number], theirs, atol=1e-4)


@pytest.mark.parametrize("shape", [(400, 20), (40, 60)])
def test_features_may_be_taken_as_they_are(shape):
    X, y = clusters(*shape)
    X *= np.linspace(0.1, 3, shape[1], dtype=np.float32)
    (path,) = fit_sweep(X, y, 3, [(everything(y), (0.01, 1.0))], standardize=False)
    for number, C in enumerate((0.01, 1.0)):
        theirs = LogisticRegression(C=C, tol=1e-10, max_iter=10_000).fit(X.astype(np.float64), y)
        assert np.allclose(path.coef[number], theirs.coef_, atol=1e-4)
        assert np.allclose(path.probability(X)[number], theirs.predict_proba(X), atol=1e-4)


def test_a_class_without_a_weight_of_its_own_weighs_one():
    X, y = clusters()
    problems = [(everything(y), (0.1,))]
    some, all_ = (
        fit_sweep(X, y, 3, problems, class_weight=given)[0]
        for given in ({1: 3.0}, {0: 1.0, 1: 3.0, 2: 1.0})
    )
    assert np.array_equal(some.coef, all_.coef)


def test_whole_weights_are_repetitions_and_zero_is_absence():
    X, y, weight = weighted()
    (path,) = fit_sweep(X, y, 3, [(everything(y), C_GRID)], sample_weight=weight)
    times = np.repeat(everything(y), weight.astype(int))
    (repeated,) = fit_sweep(X[times], y[times], 3, [(everything(times), C_GRID)])
    assert np.allclose(path.scaler.mean, repeated.scaler.mean, atol=1e-12)
    assert np.allclose(path.coef, repeated.coef, atol=1e-6)
    X[weight == 0], y[weight == 0] = 1e6, 2
    (other,) = fit_sweep(X, y, 3, [(everything(y), C_GRID)], sample_weight=weight)
    assert np.array_equal(path.coef, other.coef)


def test_a_class_that_weights_leave_nothing_of_is_not_trained_on():
    X, y = clusters()
    path = fit_sweep(X, y, 3, [(everything(y), [0.1])], sample_weight=(y != 1).astype(float))[0]
    assert (path.probability(X)[0][:, 1] == 0).all()
    Problem(X[y != 1], y[y != 1], 0.1).check(path, 0, X)


def test_classes_a_training_set_lacks_get_no_probability():
    X, _ = clusters(12, 3)
    y = np.array([0, 2] * 6)
    (path,) = fit_sweep(X, y, 4, [(np.arange(12), [0.1])])
    p = path.probability(X)
    assert p.shape == (1, 12, 4)
    assert (p[..., [1, 3]] == 0).all()
    assert np.allclose(p.sum(axis=2), 1)
    (alone,) = fit_sweep(X, np.full(12, 2), 4, [(np.arange(12), [0.1, 1.0])])
    assert (alone.probability(X) == [0, 0, 1, 0]).all()
    assert (alone.gap == 0).all()


@pytest.mark.parametrize("single", [False, True], ids=["float64", "float32 first"])
def test_training_sets_that_share_rows_are_each_fitted_as_if_alone(monkeypatch, single):
    """Folds; what two folds leave; a few rows; one that lacks a class; one with one class only."""
    if single:
        monkeypatch.setattr(training_sets, "_SMALL_CELLS", 0)
    X, y = clusters()
    fold = np.random.default_rng(2).integers(4, size=len(y))
    y[fold != 0] %= 2  # class 2 is in fold 0 alone
    sets = [np.flatnonzero(fold != i) for i in range(4)]
    sets += [np.flatnonzero(fold > 1), np.arange(15), np.flatnonzero(y == 1), everything(y)]
    strengths = [(1e-3, 1.0), (0.1,), (1e-4, 1e-2, 10.0), (1.0,), *[(0.1, 1.0)] * 4]
    together = fit_sweep(X, y, 3, list(zip(sets, strengths, strict=True)))
    for rows, C, path in zip(sets, strengths, together, strict=True):
        (alone,) = fit_sweep(X, y, 3, [(rows, C)])
        assert np.array_equal(path.values, C)
        assert np.allclose(path.scaler.mean, alone.scaler.mean, atol=1e-9)
        assert np.allclose(path.probability(X), alone.probability(X), atol=3e-3 if single else 1e-4)
        if len(np.unique(y[rows])) > 1:
            for number, one in enumerate(C):
                Problem(X[rows], y[rows], one).check(path, number, X[rows], strays=int(single))


def test_a_large_sweep_starts_in_float32_and_goes_on_where_that_does_not_carry():
    X, y = clusters(8300, 128, 4, 0.2)
    strengths = (1e-3, 1.0, 1e4)
    (path,) = fit_sweep(X, y, 4, [(everything(y), strengths)], tol=1e-9)
    assert path.gap.max() <= 1e-9
    for number, C in enumerate(strengths):
        Problem(X, y, C).check(path, number, X, tol=1e-9, strays=len(y) // 1000)


@pytest.mark.parametrize("single", [False, True], ids=["float64", "float32 first"])
def test_a_fit_cut_short_says_by_how_much(monkeypatch, single):
    if single:
        monkeypatch.setattr(training_sets, "_SMALL_CELLS", 0)
    X, y = clusters()
    few = dict.fromkeys(logistic._MOST_PASSES, 4)
    monkeypatch.setattr(logistic, "_MOST_PASSES", few)
    (path,) = fit_sweep(X, y, 3, [(everything(y), (1e-6, 0.1, 1e4))])
    assert path.gap[0] <= 1e-5
    assert (path.gap[1:] > 1e-5).all()
    for number, C in enumerate(path.values):
        Problem(X, y, C).check(path, number, X, tol=np.inf, strays=len(y))


def test_a_gap_below_rounding_is_not_claimed():
    X, y = clusters()
    (path,) = fit_sweep(X, y, 3, [(everything(y), (0.1,))], tol=1e-40)
    assert path.gap[0] > 1e-40


@pytest.mark.parametrize("single", [False, True], ids=["float64", "float32 first"])
def test_threads_change_not_a_bit(monkeypatch, single):
    if single:
        monkeypatch.setattr(training_sets, "_SMALL_CELLS", 0)
    X, y = clusters(5000, 16)
    fold = everything(y) % 3
    problems = [(np.flatnonzero(fold != i), (1e-3, 1.0)) for i in range(3)]
    one, three = (fit_sweep(X, y, 3, problems, n_threads=n) for n in (1, 3))
    for a, b in zip(one, three, strict=True):
        assert np.array_equal(a.coef, b.coef)
        assert np.array_equal(a.intercept, b.intercept)
        assert np.array_equal(a.gap, b.gap)


def test_row_order_changes_nothing_of_note():
    X, y = clusters()
    order = np.random.default_rng(4).permutation(len(y))
    a, b = (
        fit_sweep(X[rows], y[rows], 3, [(everything(y), STRENGTHS)])[0]
        for rows in (everything(y), order)
    )
    assert np.allclose(a.probability(X), b.probability(X), atol=1e-4)


def test_rows_named_in_any_order_are_the_same_set():
    X, y = clusters()
    rows = np.random.default_rng(4).permutation(len(y))[:300]
    a, b = fit_sweep(X, y, 3, [(rows, [0.1]), (np.sort(rows), [0.1])])
    assert np.array_equal(a.coef, b.coef)


@pytest.mark.parametrize("single", [False, True], ids=["float64", "float32 first"])
def test_a_long_grid_is_as_exact_as_its_values_alone(monkeypatch, single):
    if single:
        monkeypatch.setattr(training_sets, "_SMALL_CELLS", 0)
    X, y = clusters(300, 15)
    grid = np.logspace(-6, 5, 45)
    fold = everything(y) % 2
    problems = [(np.flatnonzero(fold != i), grid.tolist()) for i in range(2)]
    long = fit_sweep(X, y, 3, problems)
    for (rows, _), path in zip(problems, long, strict=True):
        assert path.gap.max() <= 1e-5
        short = fit_sweep(X, y, 3, [(rows, grid[::11].tolist())])[0]
        assert np.allclose(path.probability(X)[::11], short.probability(X), atol=5e-3)
        for number in range(0, 45, 11):
            Problem(X[rows], y[rows], grid[number]).check(path, number, X, strays=int(single))


def test_a_sweep_too_large_for_one_batch_is_solved_in_several(monkeypatch):
    X, y = clusters()
    problems = [(everything(y), STRENGTHS), (np.arange(300), STRENGTHS)]
    whole = fit_sweep(X, y, 3, problems)
    monkeypatch.setattr(logistic, "_STATE_BYTES", 1)
    for a, b in zip(whole, fit_sweep(X, y, 3, problems), strict=True):
        assert b.gap.max() <= 1e-5
        assert np.allclose(a.probability(X), b.probability(X), atol=1e-4)


def test_constant_and_hugely_offset_features_do_no_harm():
    X, y = clusters(60, 4, 2)
    odd = np.concatenate([X, np.full((60, 1), 7.0, np.float32)], axis=1)
    plain, constant = (fit_sweep(one, y, 2, [(everything(y), [1.0])])[0] for one in (X, odd))
    assert np.allclose(plain.probability(X), constant.probability(odd), atol=1e-4)
    assert constant.scaler.scale[-1] == 0
    assert (constant.coef[..., -1] == 0).all()
    odd[:, -1] = 1e9  # what did not vary in training has no say, however far it moves
    assert np.allclose(plain.probability(X), constant.probability(odd), atol=1e-4)
    shifted = X + np.array([0, 1e4, 0, 0], np.float32)
    moved = fit_sweep(shifted, y, 2, [(everything(y), [1.0])])[0]
    same = moved.probability(shifted)[0].argmax(1) == plain.probability(X)[0].argmax(1)
    assert same.mean() > 0.95


def test_a_column_constant_in_one_training_set_only_has_no_weight_there():
    X, y = clusters()
    X[:200, 3] = 5.0
    first, both = fit_sweep(X, y, 3, [(np.arange(200), [1.0]), (everything(y), [1.0])])
    assert first.scaler.scale[3] == 0
    assert (first.coef[..., 3] == 0).all()
    assert both.scaler.scale[3] > 0
    Problem(X[:200], y[:200], 1.0).check(first, 0, X[:200])


@pytest.mark.parametrize("times", [1e4, 1e8])
def test_rows_of_another_set_on_a_far_larger_scale_cost_no_digits(monkeypatch, times):
    """Rows are standardised over all sets first: float32 would leave nothing of this one's."""
    monkeypatch.setattr(training_sets, "_SMALL_CELLS", 0)
    X, y = clusters()
    X[300:, :2] *= np.float32(times)
    rows = np.arange(300)
    path, _ = fit_sweep(X, y, 3, [(rows, [10.0]), (everything(y), [10.0])], tol=1e-6)
    Problem(X[rows], y[rows], 10.0).check(path, 0, X[rows], tol=1e-6, strays=1)


@pytest.mark.slow
def test_embeddings_of_a_large_network():
    """12,400 x 2048; the gradient is taken anew, in float64, and one C compared."""
    chance = np.random.default_rng(0)
    X, y = clusters(12_400, 2048, 6, 0.1)
    X *= (np.arange(1, 2049) ** -0.5).astype(np.float32)
    X = X @ np.linalg.qr(chance.normal(size=(2048, 2048)).astype(np.float32))[0] + 3
    strengths = (1e-4, 1e-3, 1e-2)
    (path,) = fit_sweep(X, y, 6, [(everything(y), strengths)])
    assert path.gap.max() <= 1e-5
    Z = (X - path.scaler.mean) / path.scaler.scale
    for number, C in enumerate(strengths):
        coef, intercept = path.coef[number], path.intercept[number]
        log_p = log_softmax(Z @ coef.T + intercept, axis=1)
        value = -log_p[everything(y), y].sum() + (coef**2).sum() / (2 * C)
        gradient = (np.exp(log_p) - np.eye(6)[y]).T @ Z + coef / C
        assert C / 2 * (gradient**2).sum() <= 1e-5 * value
    model = LogisticRegression(C=strengths[1], tol=1e-5, max_iter=10_000).fit(Z, y)
    assert (path.logits(X)[1].argmax(axis=1) == model.predict(Z)).mean() >= 0.999


def test_the_search_shortens_the_arrays_that_have_a_row_a_problem_and_no_others():
    def evaluate(x, problem):
        value = (x**2).sum(axis=1)
        return lbfgs.Point(value, 2 * x, value, value, np.zeros_like(x), np.full_like(x, 2.0))

    search = lbfgs._Search(evaluate, np.arange(12.0).reshape(4, 3), 1e-6)
    search.scalar = np.array(7.0)
    assert search.restrict(np.array([True, False, True, False]))
    assert search.scalar == 7
    for name, value in vars(search).items():
        if isinstance(value, np.ndarray) and name != "scalar":
            assert len(value) == 2, name
    search.step()
    assert not search.restrict(np.zeros(2, bool))


@pytest.mark.parametrize("n_values", [1, 12, 16, 17, 45])
def test_long_grids_go_in_chunks_and_short_ones_together(n_values, monkeypatch):
    X, y = clusters(60, 4)
    strengths = np.logspace(-4, 0, n_values).tolist()
    sizes = []
    real = logistic._descend

    def descend(objective, set_of, C, *rest):
        sizes.append(len(C))
        return real(objective, set_of, C, *rest)

    monkeypatch.setattr(logistic, "_descend", descend)
    fit_sweep(X, y, 3, [(everything(y), strengths)])
    assert sum(sizes) == n_values
    assert len(sizes) == (1 if n_values <= 16 else -(-n_values // 8))
    assert max(sizes) - min(sizes) <= 1
