"""The protocol for what is no single class an image: a number, or several labels.

Folds, nesting and external cohorts are those of `embedcache.protocol.nested`; what differs is what
is fitted and what a choice is judged by.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from embedcache.data.embeddings import LabelledEmbeddings, check_cohorts
from embedcache.data.folds import FoldTable, fold_gaps
from embedcache.data.labels import label_matrix, separate_labels
from embedcache.data.predictions import CALLED_FROM, LabelSets, Measurements, Role
from embedcache.errors import RunError
from embedcache.probes.families import PROBES
from embedcache.probes.multilabel import fit_multilabel
from embedcache.probes.ridge import ALPHA_GRID, fit_ridge_regression
from embedcache.probes.seam import Embeddings, Floats, Problems
from embedcache.probes.selection import pick
from embedcache.protocol.choice import certificates, fitters, gap_notes, held_out
from embedcache.protocol.protocols import PROTOCOLS

_Fit = Callable[[Problems], Sequence[Any]]
_STRATA: Final = 5  # of a target, so that each fold has low and high ones


@dataclass(frozen=True, slots=True)
class TaskResult:
    """What was predicted, in-domain first, and what was chosen."""

    predictions: tuple[Measurements, ...] | tuple[LabelSets, ...]
    choices: dict[str, Any]


def strata(task: str, label: Sequence[str]) -> list[str]:
    """Return what folds are stratified by, one an image.

    Of a number its fifth of the range of ranks; of several labels the rarest that an image has.
    """
    if task == "regression":
        values = targets(label)
        ranks = np.searchsorted(np.sort(values), values)  # equal values share one
        return [f"fifth {rank * _STRATA // len(label) + 1}" for rank in ranks.tolist()]
    sets = separate_labels(label)
    counts = {name: sum(name in own for own in sets) for own in sets for name in own}
    return [min(own, key=lambda name: (counts[name], name), default="-") for own in sets]


def targets(label: Sequence[str]) -> Floats:
    """Return labels as numbers, shape (n,).

    Raises
    ------
    RunError
        One is none; names it.
    """
    values = []
    for text in label:
        try:
            values.append(float(text))
        except ValueError:
            values.append(np.nan)
        if not np.isfinite(values[-1]):
            raise RunError(f"label '{text}' is no number; leave it out with --where")
    return np.array(values)


def fit_regression(
    train: LabelledEmbeddings, folds: FoldTable, external: Sequence[LabelledEmbeddings] = ()
) -> TaskResult:
    """Predict a number by ridge regression; alpha has the least squared error on inner folds.

    Parameters
    ----------
    train, folds, external
        As for `fit_probe`; every label is a number.

    Raises
    ------
    LeakageError, RunError
        As `fit_probe`; a label that is no number.
    """
    truth = targets(train.label)
    if np.ptp(truth) == 0:
        raise RunError(f"every training label is {train.label[0]}; there is nothing to learn")

    def error(rows: NDArray[np.intp], said: Floats) -> Floats:
        # R2, so that a tie means the same whatever the unit.
        return np.asarray(1 - ((said[..., 0] - truth[rows]) ** 2).mean(axis=1) / truth.var())

    def fit(problems: Problems) -> Sequence[Any]:
        return fit_ridge_regression(train.X, truth[:, None], problems)

    answers, choices = _nested(
        train,
        folds,
        external,
        ("alpha", ALPHA_GRID),
        fits=(fit, fit),
        predict=lambda path, X: np.asarray(path.predict(X)),
        score=error,
    )
    return TaskResult(
        tuple(
            Measurements(truth=targets(one.label), value=said[:, 0], **about)
            for one, said, about in answers
        ),
        choices,
    )


def fit_label_sets(
    train: LabelledEmbeddings,
    folds: FoldTable,
    external: Sequence[LabelledEmbeddings] = (),
    *,
    probe: str = "logistic",
) -> TaskResult:
    """Predict several labels an image, each by a probe of its own; one setting serves all of them.

    It has the best macro F1 over labels on inner folds, a label called from probability 0.5 on.

    Parameters
    ----------
    train, folds, external
        As for `fit_probe`; labels as `separate_labels` reads them.
    probe
        Name of a family; see `PROBES`.

    Raises
    ------
    LeakageError, RunError
        As `fit_probe`; a cell that is no list of labels.
    """
    sets = separate_labels(train.label)
    names = tuple(sorted(frozenset[str]().union(*sets)))
    if not names:
        raise RunError("no training image has a label; every cell is '-'")
    Y, family = label_matrix(sets, names), PROBES[probe]
    choose, fit = fitters(probe, PROTOCOLS["default"])

    def score(rows: NDArray[np.intp], said: Floats) -> Floats:
        called = said >= CALLED_FROM
        each = [
            _f1(Y[rows, number], called[..., number])
            for number in range(len(names))
            if Y[rows, number].any()
        ]
        return np.asarray(np.mean(each, axis=0))

    answers, choices = _nested(
        train,
        folds,
        external,
        (family.setting, family.grid),
        fits=(
            partial(fit_multilabel, choose, train.X, Y),
            partial(fit_multilabel, fit, train.X, Y),
        ),
        predict=lambda path, X: np.asarray(path.probability(X)),
        score=score,
    )
    return TaskResult(
        tuple(
            LabelSets(
                names=names,
                truth=label_matrix(separate_labels(one.label), names),
                probability=said,
                **about,
            )
            for one, said, about in answers
        ),
        choices,
    )


def _f1(truth: NDArray[np.bool_], called: NDArray[np.bool_]) -> Floats:
    """Return the F1 of several calls of one label, shape (m,)."""
    return np.asarray(2 * (called & truth).sum(axis=1) / (called.sum(axis=1) + truth.sum()))


def _nested(
    train: LabelledEmbeddings,
    folds: FoldTable,
    external: Sequence[LabelledEmbeddings],
    setting: tuple[str, Sequence[float]],
    *,
    fits: tuple[_Fit, _Fit],
    predict: Callable[[Any, Embeddings], Floats],
    score: Callable[[NDArray[np.intp], Floats], Floats],
) -> tuple[list[tuple[LabelledEmbeddings, Floats, dict[str, Any]]], dict[str, Any]]:
    """Return each cohort with what was predicted and what `Predictions` asks of it, and choices.

    `fits` are what fits to choose with, and to predict with.
    """
    check_cohorts(train, external)
    name, grid = setting
    number = folds.of(train.patient_id)
    numbers, fold = np.unique(number, return_inverse=True)
    if len(numbers) < 3:
        raise RunError(
            f"{len(numbers)} folds leave none to choose {name} on; pass --folds 3 or more"
        )
    chosen, scores = [], []
    for rows, said in held_out(fits[0], lambda path, at: predict(path, train.X[at]), fold, grid):
        by_value = score(rows, said)
        best = pick(by_value)
        chosen.append(float(grid[best]))
        scores.append(float(by_value[best]))
    final = float(np.exp(np.median(np.log(chosen))))
    parts = [(np.flatnonzero(fold != place), [value]) for place, value in enumerate(chosen)]
    *paths, last = fits[1]([*parts, (np.arange(len(train)), [final])])
    first = predict(last, train.X[:1])[0]
    inside = np.full((len(train), first.shape[1]), np.nan)
    for place, path in enumerate(paths):
        inside[fold == place] = predict(path, train.X[fold == place])[0]
    answers = [(train, inside, _about(train, "in-domain", number))]
    for cohort in external:
        about = _about(cohort, "external", np.full(len(cohort), -1))
        answers.append((cohort, predict(last, cohort.X)[0], about))
    gaps = [gap for path in (*paths, last) for gap in certificates(path)]
    return answers, {
        name: chosen,
        f"final_{name}": final,
        "inner_score": scores,
        "gap": gaps,
        "notes": [*fold_gaps(folds.n_folds, len(numbers)), *gap_notes(gaps)],
    }


def _about(rows: LabelledEmbeddings, role: Role, fold: NDArray[np.int64]) -> dict[str, Any]:
    return {
        "role": role,
        "image_id": rows.image_id,
        "patient_id": rows.patient_id,
        "cohort": rows.cohort,
        "fold": fold,
    }
