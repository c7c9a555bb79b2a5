"""The logistic probe as scikit-learn classifiers: one C, or C chosen on folds of patients."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Final, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from embedcache.files.arrays import AnyFloats, Codes, Floats
from embedcache.probes.logistic import C_GRID, TOL, LogisticPath, fit_sweep
from embedcache.probes.seam import Problems
from embedcache.probes.selection import Rule, macro_f1, pick
from embedcache.protocol.search import ROUGH_TOL

_DTYPES: Final = (np.float64, np.float32)  # other types become the first


class _LinearClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc] # no types
    """Checks, attributes and predictions that the probes share."""

    tol: float
    class_weight: Mapping[Any, float] | str | None
    n_threads: int | None

    def decision_function(self, X: ArrayLike) -> Floats:
        """Return the logits, shape (n, n_classes); of two classes the second's, shape (n,)."""
        check_is_fitted(self)
        rows = validate_data(self, X, dtype=_DTYPES, reset=False)
        # Centred first: a large mean would swamp the digits that tell rows apart.
        logits = ((rows - self.mean_) / self.scale_) @ self.coef_.T + self.intercept_
        return np.asarray(logits[:, 0] if len(self.classes_) == 2 else logits)

    def predict_proba(self, X: ArrayLike) -> Floats:
        """Return the probability of each class, in the order of `classes_`, shape (n, n_classes).

        It is 0 for a class whose samples all have weight 0.
        """
        logits = self.decision_function(X)
        if logits.ndim == 1:
            return np.column_stack([expit(-logits), expit(logits)])
        return np.asarray(softmax(logits, axis=1))

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return the most probable class of each row, shape (n,)."""
        logits = self.decision_function(X)
        code = logits.argmax(axis=1) if logits.ndim == 2 else (logits > 0).astype(np.intp)
        return np.asarray(self.classes_[code])

    def _checked(self, X: ArrayLike, y: ArrayLike) -> tuple[AnyFloats, Codes]:
        """Return the rows, and the number of each one's class; note the classes."""
        rows, labels = validate_data(self, X, y, dtype=_DTYPES)
        check_classification_targets(labels)
        _check_positive("tol", self.tol)
        self.classes_, codes = np.unique(labels, return_inverse=True)
        self._check_classes(codes)
        return rows, codes.astype(np.int64)

    def _check_classes(self, codes: Codes) -> None:
        present = self.classes_[np.unique(codes)].tolist()
        if len(present) < 2:
            raise ValueError(f"found one class at most {present}; a probe needs samples of two")

    def _weight_by_code(self) -> dict[int, float] | str | None:
        weights = self.class_weight
        if weights is None or (isinstance(weights, str) and weights == "balanced"):
            return weights
        if isinstance(weights, str):
            raise ValueError(f"class_weight '{weights}'; it may be 'balanced', a dict or None")
        for name, weight in weights.items():
            _check_positive(f"class_weight of {name!r}", weight)
        names = enumerate(self.classes_.tolist())
        return {code: weights[name] for code, name in names if name in weights}

    def _fit(
        self,
        X: AnyFloats,
        codes: Codes,
        problems: Problems,
        tol: float,
        sample_weight: Floats | None = None,
    ) -> list[LogisticPath]:
        paths = fit_sweep(
            X,
            codes,
            len(self.classes_),
            problems,
            tol=tol,
            sample_weight=sample_weight,
            class_weight=self._weight_by_code(),
            n_threads=self.n_threads,
        )
        _warn(paths, tol)
        return paths

    def _take(self, path: LogisticPath) -> None:
        """Become the probe of a path with one C."""
        coef, intercept = path.coef[0], path.intercept[0]
        if len(coef) == 2:
            coef, intercept = coef[1:] - coef[:1], intercept[1:] - intercept[:1]
        scale = path.scaler.scale
        self.mean_, self.scale_ = path.scaler.mean, np.where(scale > 0, scale, 1.0)
        self.coef_, self.intercept_ = coef, intercept
        self.gap_, self.n_iter_ = float(path.gap[0]), int(path.n_passes[0])
        self.C_ = float(path.values[0])


class LinearProbe(_LinearClassifier):
    """Multinomial logistic regression with an L2 penalty, on standardised features.

    The same as scikit-learn's `StandardScaler` and `LogisticRegression` at their optimum, which is
    reached up to a certified gap. A sample of weight 2 counts as two in the standardisation, too.

    Parameters
    ----------
    C
        Inverse strength of the penalty, above 0.
    tol
        Largest relative distance of the objective from its optimum.
    class_weight
        Weight of each class by its name, above 0, and 1 for a class without one; or 'balanced';
        None where all classes weigh the same.
    n_threads
        Number of threads; None for one a processor that this process may use.

    Attributes
    ----------
    classes_
        Names of the classes, sorted, shape (n_classes,).
    mean_, scale_
        Mean and deviation of the training rows, shape (n_features,); scale is 1 for a feature that
        does not vary.
    coef_, intercept_
        Weights and intercepts in the coordinates of (X - mean_) / scale_, not of X: shapes
        (n_classes, n_features) and (n_classes,), sums over classes 0. Of two classes only the
        second's logit over the first's, shapes (1, n_features) and (1,). The intercept is infinite
        for a class of weight 0.
    gap_
        Bound on the objective's relative distance from its optimum; above `tol` with a
        `ConvergenceWarning` only.
    n_iter_
        Number of times that the rows were read.
    C_
        Value of C.
    n_features_in_, feature_names_in_
        Number and names of the features, as scikit-learn defines them.
    """

    def __init__(
        self,
        C: float = 1.0,
        *,
        tol: float = TOL,
        class_weight: Mapping[Any, float] | str | None = None,
        n_threads: int | None = None,
    ) -> None:
        self.C = C
        self.tol = tol
        self.class_weight = class_weight
        self.n_threads = n_threads

    def fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Fit.

        Parameters
        ----------
        X
            Features, finite, shape (n, n_features).
        y
            Class of each row, shape (n,).
        sample_weight
            Weight of each row, not negative, shape (n,); None where all rows weigh the same.

        Raises
        ------
        ValueError
            Fewer than two classes of positive weight, or a parameter that is not positive.
        """
        rows, codes = self._checked(X, y)
        _check_positive("C", self.C)
        weight: Floats | None = None
        if sample_weight is not None:
            weight = _check_sample_weight(
                sample_weight, rows, dtype=np.float64, ensure_non_negative=True
            )
            self._check_classes(codes[weight > 0])
        problem = (np.arange(len(codes)), [self.C])
        self._take(*self._fit(rows, codes, [problem], self.tol, weight))
        return self


class LinearProbeCV(_LinearClassifier):
    """`LinearProbe` at the C that predicts held-out groups best.

    Every C is fitted on every fold's training rows, all together; the best by the macro F1 of the
    pooled held-out predictions is fitted again on all rows. See `embedcache.probes.selection.pick`
    for the rules. The fits that choose have a tolerance of 1e-4; unlike in the protocol, a close
    choice is not solved further, and no part of the grid is left out.

    Parameters
    ----------
    Cs
        Values of C, above 0.
    cv
        Number of folds, stratified by class, no group in two of them; fewer where there are fewer
        groups.
    rule
        'tie': the smallest C with a score within 0.001 of the best; 'one-se': within one standard
        error, over folds, of the best.
    tol, class_weight, n_threads
        Parameters of `LinearProbe`; `tol` is that of the last fit.
    random_state
        Seed of the shuffle of groups.

    Attributes
    ----------
    Cs_
        Values of C, ascending, shape (m,).
    scores_
        Macro F1 of the pooled held-out predictions by C, shape (m,).
    C_
        Value of C that was chosen.
    classes_, mean_, scale_, coef_, intercept_, gap_, n_iter_, n_features_in_, feature_names_in_
        Attributes of `LinearProbe`, of the last fit.
    """

    def __init__(
        self,
        Cs: Sequence[float] = C_GRID,
        *,
        cv: int = 5,
        rule: Rule = "tie",
        tol: float = TOL,
        class_weight: Mapping[Any, float] | str | None = None,
        n_threads: int | None = None,
        random_state: Any = 0,
    ) -> None:
        self.Cs = Cs
        self.cv = cv
        self.rule = rule
        self.tol = tol
        self.class_weight = class_weight
        self.n_threads = n_threads
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: ArrayLike, groups: ArrayLike | None = None) -> Self:
        """Choose C and fit.

        Parameters
        ----------
        X
            Features, finite, shape (n, n_features).
        y
            Class of each row, shape (n,).
        groups
            Group of each row, such as its patient, shape (n,); rows of one group are held out
            together. None where every row is a group of its own.

        Raises
        ------
        ValueError
            Fewer than two classes, groups or folds; a parameter that is not positive; no such rule.
        """
        rows, codes = self._checked(X, y)
        self.Cs_ = np.unique(np.asarray(self.Cs, np.float64))
        if not len(self.Cs_):
            raise ValueError("Cs is empty; pass at least one value of C")
        for C in self.Cs_.tolist():
            _check_positive("C", C)
        folds, everything = self._folds(codes, groups), np.arange(len(codes))
        sweep = [(np.setdiff1d(everything, held_out), self.Cs_.tolist()) for held_out in folds]
        best = self._choose(rows, codes, folds, self._fit(rows, codes, sweep, ROUGH_TOL))
        chosen = [(everything, [float(self.Cs_[best])])]
        self._take(*self._fit(rows, codes, chosen, self.tol))
        return self

    def _folds(self, codes: Codes, groups: ArrayLike | None) -> list[NDArray[np.intp]]:
        """Return the rows that are held out together, by fold."""
        group = np.arange(len(codes)) if groups is None else np.asarray(groups)
        if group.shape != codes.shape:
            raise ValueError(f"groups of shape {group.shape} for {len(codes)} rows; pass one a row")
        # scikit-learn refuses more folds than rows of the commonest class.
        n_folds = min(self.cv, len(np.unique(group)), int(np.bincount(codes).max()))
        if n_folds < 2:
            raise ValueError(
                f"{n_folds} folds leave none to choose C on; pass cv >= 2, two groups or more, and "
                "two rows of a class or more"
            )
        kind = StratifiedKFold if groups is None else StratifiedGroupKFold
        splitter = kind(n_folds, shuffle=True, random_state=self.random_state)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a rare class: some folds lack it
            parts = [held_out for _, held_out in splitter.split(codes, codes, group)]
        return [held_out for held_out in parts if len(held_out)]  # one may get no group

    def _choose(
        self,
        X: AnyFloats,
        codes: Codes,
        folds: Sequence[NDArray[np.intp]],
        paths: Sequence[LogisticPath],
    ) -> int:
        """Score every C, and return the number of the one to take."""
        predicted = np.empty((len(self.Cs_), len(codes)), np.int64)
        for rows, path in zip(folds, paths, strict=True):
            predicted[:, rows] = path.logits(X[rows]).argmax(axis=2)
        k = len(self.classes_)
        self.scores_ = macro_f1(codes, predicted, k)
        by_fold = np.column_stack([macro_f1(codes[at], predicted[:, at], k) for at in folds])
        return pick(self.scores_, by_fold, rule=self.rule)


def _check_positive(name: str, value: float) -> None:
    if not 0 < value < np.inf:
        raise ValueError(f"{name} is {value}; it must be above 0 and finite")


def _warn(paths: Sequence[LogisticPath], tol: float) -> None:
    """Warn of the fit that is furthest from its optimum, if that is too far."""
    gap = np.concatenate([path.gap for path in paths])
    C = np.concatenate([path.values for path in paths])
    worst = int(gap.argmax())
    if not gap[worst] <= tol:
        warnings.warn(
            f"{np.count_nonzero(~(gap <= tol))} of {len(gap)} fits missed tol = {tol:g}: C = "
            f"{C[worst]:g} is up to {gap[worst]:.1e} above its optimum; pass smaller C or a larger "
            "tol",
            ConvergenceWarning,
            stacklevel=4,  # where `fit` was called
        )
