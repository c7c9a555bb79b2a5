"""The probing protocol: nested, grouped by patient, one score from pooled predictions.

For K folds of patients: the strength C for testing fold i is chosen on the other K - 1 folds, each
of them held out in turn; the probe is refitted on all K - 1 with that C and predicts fold i. What
is fitted without folds i and j serves both outer fold i and outer fold j, so K (K - 1) / 2 training
sets do the whole selection. An external cohort is predicted by a probe fitted on all training
patients, with the median of the chosen C; it has no part in any choice. See docs/protocol.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import f1_score

from embedcache.embeddings import LabelledEmbeddings
from embedcache.errors import LeakageError, RunError
from embedcache.folds import FoldTable
from embedcache.probes.logistic import C_GRID, SWEEP_TOL, LinearProbe, fit_sweep
from embedcache.runs import Predictions

# Named in each run's record; a change of the protocol gives it another name.
PROTOCOL: Final = "nested-patient-cv-1"
# Inner scores this close are a tie, and a tie goes to the smoother probe.
TIE: Final = 0.001
# Folds whose C differ by more than this factor, four steps of the grid, are worth a note.
_UNSTABLE: Final = 101.0


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What a probe predicted, and what it chose.

    Parameters
    ----------
    predictions
        In-domain first, then one an external cohort.
    probe
        The probe fitted on all training patients.
    choices
        C and inner score by outer fold, C of the final probe, notes.
    """

    predictions: tuple[Predictions, ...]
    probe: LinearProbe
    choices: dict[str, Any]


def fit_probe(
    train: LabelledEmbeddings,
    folds: FoldTable,
    external: Sequence[LabelledEmbeddings] = (),
    *,
    c_grid: Sequence[float] = C_GRID,
) -> ProbeResult:
    """Fit, select and predict as the protocol says.

    Parameters
    ----------
    train
        The training cohort; every row labelled.
    folds
        The fold of each of its patients.
    external
        Cohorts to predict; rows whose label the training cohort lacks must be left out before.
    c_grid
        Values of C to choose from, ascending.

    Raises
    ------
    LeakageError
        A patient of the training cohort stands in an external one.
    RunError
        A row without a label, or with one that the training cohort lacks.
    """
    classes = tuple(sorted(set(train.label)))
    _check(train, external, classes)
    if folds.n_folds < 3 and len(c_grid) > 1:
        raise RunError(f"{folds.n_folds} folds leave none to choose C on; pass --folds 3 or more")
    y = np.searchsorted(classes, train.label).astype(np.int64)
    fold = folds.of(train.patient_id)
    chosen, inner_scores = _choose(train.X, y, fold, folds.n_folds, len(classes), c_grid)
    final_c = float(np.exp(np.median(np.log(chosen))))
    everything = np.arange(len(y))
    parts = [(np.flatnonzero(fold != number), [C]) for number, C in enumerate(chosen)]
    fitted = fit_sweep(train.X, y, len(classes), [*parts, (everything, [final_c])])
    probes, final = [probe for (probe,) in fitted[:-1]], fitted[-1][0]

    probability = np.empty((len(y), len(classes)))
    for number, probe in enumerate(probes):
        probability[fold == number] = probe.probability(train.X[fold == number])
    inside = _predictions(train, classes, fold, probability, "in-domain")
    outside = [
        _predictions(
            cohort, classes, np.full(len(cohort), -1), final.probability(cohort.X), "external"
        )
        for cohort in external
    ]
    return ProbeResult(
        predictions=(inside, *outside),
        probe=final,
        choices={
            "C": chosen,
            "final_C": final_c,
            "inner_macro_f1": inner_scores,
            "notes": list(_notes(chosen, c_grid)),
        },
    )


def _notes(chosen: Sequence[float], c_grid: Sequence[float]) -> Iterator[str]:
    n_edge = sum(C in {min(c_grid), max(c_grid)} for C in chosen)
    if n_edge and len(c_grid) > 1:
        yield f"C chosen at the edge of its grid in {n_edge} folds"
    low, high = min(chosen), max(chosen)
    if high > _UNSTABLE * low:
        yield f"C chosen from {low:.3g} to {high:.3g}, by fold: the choice is unstable"


def _check(
    train: LabelledEmbeddings, external: Sequence[LabelledEmbeddings], classes: tuple[str, ...]
) -> None:
    if "" in classes:
        raise RunError("training images without a label; leave them out before fitting")
    patients = set(train.patient_id)
    for cohort in external:
        shared = sorted(patients & set(cohort.patient_id))
        if shared:
            raise LeakageError(
                f"patient '{shared[0]}' is in the training cohort and in external cohort "
                f"'{cohort.cohort[0]}' ({len(shared)} patients are); give patients ids that are "
                "unique over cohorts, or leave them out with --where"
            )
        strange = sorted(set(cohort.label) - set(classes))
        if strange:
            raise RunError(f"external label '{strange[0]}' is none of {', '.join(classes)}")


def _predictions(
    cohort: LabelledEmbeddings,
    classes: tuple[str, ...],
    fold: NDArray[np.int64],
    probability: NDArray[np.float64],
    role: Any,
) -> Predictions:
    return Predictions(
        role=role,
        classes=classes,
        image_id=cohort.image_id,
        patient_id=cohort.patient_id,
        cohort=cohort.cohort,
        label=cohort.label,
        fold=fold,
        probability=probability,
    )


def _choose(
    X: NDArray[np.float32],
    y: NDArray[np.int64],
    fold: NDArray[np.int64],
    n_folds: int,
    n_classes: int,
    c_grid: Sequence[float],
) -> tuple[list[float], list[float]]:
    """Return the C chosen for each outer fold, and its inner macro F1.

    Pooled inner predictions: every training image of an outer fold is predicted once, by the probe
    that saw neither its fold nor the outer one.
    """
    pairs = list(combinations(range(n_folds), 2))
    sets = [(np.flatnonzero((fold != i) & (fold != j)), c_grid) for i, j in pairs]
    probes = dict(zip(pairs, fit_sweep(X, y, n_classes, sets, tol=SWEEP_TOL), strict=True))
    labels = np.arange(n_classes)
    chosen, scores = [], []
    for outer in range(n_folds):
        predicted = np.full((len(c_grid), len(y)), -1, np.int64)
        for inner in set(range(n_folds)) - {outer}:
            held_out = np.flatnonzero(fold == inner)
            for number, probe in enumerate(probes[min(outer, inner), max(outer, inner)]):
                predicted[number, held_out] = probe.probability(X[held_out]).argmax(axis=1)
        rows = fold != outer
        present = labels[np.isin(labels, y[rows])]
        by_c = [
            float(f1_score(y[rows], one[rows], labels=present, average="macro", zero_division=0.0))
            for one in predicted
        ]
        best = next(i for i, score in enumerate(by_c) if score >= max(by_c) - TIE)
        chosen.append(float(c_grid[best]))
        scores.append(by_c[best])
    return chosen, scores
