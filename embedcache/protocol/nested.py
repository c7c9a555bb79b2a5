"""The probing protocol: nested, grouped by patient, one score from pooled predictions.

For K folds of patients: the setting for testing fold i is chosen on the other K - 1 folds, each of
them held out in turn; the probe is refitted on all K - 1 with it and predicts fold i. An external
cohort is predicted by a probe fitted on all training patients, with the median of what the folds
chose, on the log scale; it has no part in any choice. Others' protocols differ in how they choose,
never in who is tested by whom; tasks differ in what is predicted, never in the loop. See
docs/protocol.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from embedcache.data.embeddings import LabelledEmbeddings, check_cohorts
from embedcache.data.folds import FoldTable, fold_gaps
from embedcache.data.predictions import Answers, Predictions
from embedcache.files.arrays import Floats
from embedcache.probes.calibration import LARGEST_TEMPERATURE, LEAST_TEMPERATURE
from embedcache.probes.families import PROBES
from embedcache.probes.logistic import LogisticPath
from embedcache.probes.multilabel import MultiLabelPath
from embedcache.protocol.choice import (
    Chosen,
    choose_as_others,
    choose_by_folds,
    choose_nested,
)
from embedcache.protocol.protocols import PROTOCOLS, check_folds, check_method, grid_of
from embedcache.protocol.task import Task
from embedcache.protocol.tasks import FIT_TOL, TASKS
from embedcache.runs.methods import ExternalBy, ProbeMethod

# Folds whose settings differ by more than this factor, four steps of the grid of C, get a note.
_UNSTABLE: Final = 101.0
_EXTERNAL_FOLD: Final = -1
_DEFAULT: Final = ProbeMethod()


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What a probe answered, and what it chose.

    Parameters
    ----------
    answers
        Answers of each cohort: in-domain first, then one an external cohort.
    fold_answers
        For each external cohort the answers of every outer fold's probe, one after the other:
        image ids stand K times, and `fold` is the number of the fold whose probe answers.
    choices
        Setting, inner score, temperature and skipped values by outer fold, setting of the final
        probe, notes.
    """

    answers: tuple[Answers, ...]
    fold_answers: tuple[Answers, ...]
    choices: dict[str, Any]


def fit_probe(
    train: LabelledEmbeddings,
    folds: FoldTable,
    external: Sequence[LabelledEmbeddings] = (),
    *,
    task: str = "classification",
    method: ProbeMethod = _DEFAULT,
) -> ProbeResult:
    """Fit, select and predict as the protocol says.

    Parameters
    ----------
    train
        Training cohort; every row labelled.
    folds
        Fold of each of its patients.
    external
        Cohorts to predict; rows whose label the training cohort lacks must be left out before.
    task
        'classification', 'regression' or 'multilabel'.
    method
        Settings of the probe and of the protocol.

    Raises
    ------
    LeakageError
        A patient of the training cohort stands in an external one.
    RunError
        A method that the task does not have, too few folds, a row without a label, or with one
        that the task or the training cohort lacks.
    """
    method = check_method(method, task)
    check_cohorts(train, external)
    train_task = TASKS[task](train, method)
    for cohort in external:
        train_task.check_labels(cohort)
    number = folds.of(train.patient_id)
    # A table may have folds without any of these images.
    numbers, fold = np.unique(number, return_inverse=True)
    check_folds(len(numbers), PROTOCOLS[method.protocol], PROBES[method.probe].setting)
    probes = _fit(train_task, fold, method)
    in_domain, temperature, notes = _in_domain(train_task, probes, number, fold)
    outside = [
        _external(train_task, cohort, probes, numbers, temperature, method.external_by)
        for cohort in external
    ]
    choices = _choices(train_task, probes, temperature, method)
    choices["notes"] = [*fold_gaps(folds.n_folds, len(numbers)), *choices["notes"], *notes]
    answers, fold_answers = [pair[0] for pair in outside], [pair[1] for pair in outside]
    return ProbeResult((in_domain, *answers), tuple(fold_answers), choices)


@dataclass(frozen=True, slots=True)
class _Probes:
    """What was chosen, and the probes that were fitted with it.

    Parameters
    ----------
    chosen
        Choice of each of the K outer folds.
    final
        Setting of the probe of all training patients.
    paths
        Probe of each outer fold, with its one setting.
    last
        Probe of all training patients.
    """

    chosen: list[Chosen]
    final: float
    paths: list[Any]
    last: Any


def _fit(task: Task, fold: NDArray[np.int64], method: ProbeMethod) -> _Probes:
    """Choose each fold's setting, then fit all probes of the answers together."""
    chosen, final = _choose(task, fold, method)
    parts = [(np.flatnonzero(fold != place), [c.value]) for place, c in enumerate(chosen)]
    *paths, last = task.fit_to_predict([*parts, (np.arange(len(fold)), [final])])
    return _Probes(chosen, final, paths, last)


def _choose(task: Task, fold: NDArray[np.int64], method: ProbeMethod) -> tuple[list[Chosen], float]:
    """Return what each fold chose, and the setting of the probe of all training patients."""
    protocol, grid = PROTOCOLS[method.protocol], grid_of(method)
    numbers = range(int(fold.max()) + 1)
    if protocol.choice != "nested":
        by_name = np.argsort(task.train.image_id)  # so that no order of the manifest decides a draw
        *chosen, final = (
            choose_as_others(protocol, task, rows, grid, method.seed)
            for rows in (*(by_name[fold[by_name] != i] for i in numbers), by_name)
        )
        return chosen, final.value
    if protocol.official_split:
        choice = choose_by_folds(task, np.arange(len(fold)), fold, grid, method.rule)
        # Its temperature would be fitted on the very predictions that it is to correct.
        return [replace(choice, temperature=None) for _ in numbers], choice.value
    chosen = choose_nested(task, fold, grid, method.rule)
    return chosen, float(np.exp(np.median(np.log([c.value for c in chosen]))))


def _out_of_fold(task: Task, paths: Sequence[Any], fold: NDArray[np.int64]) -> Floats:
    """Return the prediction of each training image by the probe of its fold, shape (n, width)."""
    rows = [np.flatnonzero(fold == place) for place in range(len(paths))]
    parts = [task.predict(path, task.train.X[at])[0] for path, at in zip(paths, rows, strict=True)]
    inside = np.full((len(fold), parts[0].shape[1]), np.nan)
    inside[np.concatenate(rows)] = np.concatenate(parts)
    return inside


def _in_domain(
    task: Task, probes: _Probes, number: NDArray[np.int64], fold: NDArray[np.int64]
) -> tuple[Answers, float | None, list[str]]:
    """Return out-of-fold answers, and the temperature for external cohorts that is fitted on them.

    The last are notes on temperatures. `number` is the fold of each image in the
    table, `fold` its place among the folds that occur.
    """
    predicted, rows = _out_of_fold(task, probes.paths, fold), np.arange(len(fold))
    temperature = _temperatures(probes.chosen, fold)
    answers = task.answers(task.train, predicted, role="in-domain", fold=number)
    outside = None if temperature is None else task.temperature(rows, predicted, fold)
    is_perfect = bool(task.score(rows, predicted[None])[0] == 1)
    notes = list(_temperature_notes(probes.chosen, outside, is_perfect=is_perfect))
    return _with_temperature(answers, temperature), outside, notes


def _temperatures(chosen: Sequence[Chosen], fold: NDArray[np.int64]) -> Floats | None:
    """Return the temperature of each image's fold, shape (n,); None where one has none."""
    fitted = [c.temperature for c in chosen]
    return None if None in fitted else np.array(fitted, np.float64)[fold]


def _with_temperature(answers: Answers, temperature: Floats | None) -> Answers:
    """Return answers with the temperature of each image, shape (n,)."""
    if temperature is None:
        return answers
    assert isinstance(answers, Predictions)  # nothing else has a temperature
    return replace(answers, temperature=temperature)


def _external(
    task: Task,
    cohort: LabelledEmbeddings,
    probes: _Probes,
    numbers: NDArray[np.int64],
    temperature: float | None,
    external_by: ExternalBy,
) -> tuple[Answers, Answers]:
    """Return the answers to an external cohort, and those of every fold's probe."""
    of_folds = np.stack([task.predict(path, cohort.X)[0] for path in probes.paths])
    predicted = (
        of_folds.mean(axis=0) if external_by == "folds" else task.predict(probes.last, cohort.X)[0]
    )
    fold = np.full(len(cohort), _EXTERNAL_FOLD)
    answers = task.answers(cohort, predicted, role="external", fold=fold)
    of_cohort = None if temperature is None else np.full(len(cohort), temperature)
    by_folds = _by_folds(task, cohort, of_folds, numbers, probes.chosen)
    return _with_temperature(answers, of_cohort), by_folds


def _by_folds(
    task: Task,
    cohort: LabelledEmbeddings,
    predicted: Floats,
    numbers: NDArray[np.int64],
    chosen: Sequence[Chosen],
) -> Answers:
    """Return the answers of every fold's probe, given predictions of shape (K, n, width)."""
    n_folds, n, width = predicted.shape
    place = np.repeat(np.arange(n_folds), n)
    # Answers need no embeddings, and K copies of them would be large.
    repeated = replace(cohort, X=cohort.X[:, :0]).take(np.tile(np.arange(n), n_folds))
    flat = predicted.reshape(n_folds * n, width)
    answers = task.answers(repeated, flat, role="external", fold=numbers[place])
    return _with_temperature(answers, _temperatures(chosen, place))


def _choices(
    task: Task, probes: _Probes, temperature: float | None, method: ProbeMethod
) -> dict[str, Any]:
    """Return what was chosen by fold and for all training patients, as a record keeps it."""
    setting, values = PROBES[method.probe].setting, [c.value for c in probes.chosen]
    temperatures = {
        "temperature": [c.temperature for c in probes.chosen],
        "external_temperature": temperature,
    }
    gaps = [gap for path in (*probes.paths, probes.last) for gap in _certificates(path)]
    return {
        setting: values,
        f"final_{setting}": probes.final,
        "inner_score": [c.score for c in probes.chosen],
        **(temperatures if task.is_calibrated else {}),
        f"skipped_{setting}": [list(c.skipped) for c in probes.chosen],
        "gap": gaps,
        "notes": [*_notes(values, method), *_gap_notes(gaps)],
    }


def _certificates(path: Any) -> Iterator[float]:
    """Yield the certificate of each logistic probe on a path of one value."""
    for probe in path.paths if isinstance(path, MultiLabelPath) else (path,):
        if isinstance(probe, LogisticPath):
            yield float(probe.gap[0])


def _gap_notes(gaps: Sequence[float]) -> Iterator[str]:
    if gaps and max(gaps) > FIT_TOL:
        yield (
            f"a probe is certified to {max(gaps):.1e} of its optimum only, not to {FIT_TOL:g}; "
            "smaller C are easier"
        )


def _temperature_notes(
    chosen: Sequence[Chosen], external: float | None, *, is_perfect: bool
) -> Iterator[str]:
    """Yield what the data did not decide about a temperature."""
    pairs = [(c.temperature, c.score == 1) for c in chosen] + [(external, is_perfect)]
    fitted = [(value, is_right) for value, is_right in pairs if value is not None]
    n_right = sum(is_right for _, is_right in fitted)
    if n_right:
        yield (
            f"{n_right} of {len(fitted)} temperatures rest on the smoothing of targets: every "
            "held-out image was right"
        )
    ends = 1.01 * LEAST_TEMPERATURE, LARGEST_TEMPERATURE / 1.01
    n_bound = sum(not ends[0] < value < ends[1] for value, _ in fitted)
    if n_bound:
        yield (
            f"{n_bound} of {len(fitted)} temperatures are at a bound, {LEAST_TEMPERATURE:g} or "
            f"{LARGEST_TEMPERATURE:g}"
        )


def _notes(chosen: Sequence[float], method: ProbeMethod) -> Iterator[str]:
    grid, setting = grid_of(method), PROBES[method.probe].setting
    if PROTOCOLS[method.protocol].official_split:
        yield "in-domain scores are of the folds that chose the setting, so they are optimistic"
    n_edge = sum(value in {grid[0], grid[-1]} for value in chosen)
    if n_edge and len(grid) > 1:
        yield f"{setting} chosen at the edge of its grid in {n_edge} of {len(chosen)} folds"
    low, high = min(chosen), max(chosen)
    if method.probe == "logistic" and high > _UNSTABLE * low:
        yield f"C chosen from {low:.3g} to {high:.3g}, by fold: the choice is unstable"
