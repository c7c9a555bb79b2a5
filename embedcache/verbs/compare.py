"""`compare`: stored runs against each other, on the same images and folds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Final, Literal

import numpy as np

from embedcache.data.predictions import Predictions, Role
from embedcache.runs import files as run_files
from embedcache.runs.contenders import Contender, choose_runs
from embedcache.scoring.calibration import Bin, reliability
from embedcache.scoring.class_units import ClassUnits, class_units
from embedcache.scoring.compare import Comparison, compare, drop, spread
from embedcache.scoring.estimates import Estimate, Level
from embedcache.scoring.resampling import Spread
from embedcache.scoring.subject import check_metric
from embedcache.verbs import state
from embedcache.verbs.cohorts import label_column
from embedcache.workspace import Workspace

CALIBRATION: Final = tuple(
    f"{name}{suffix}" for name in ("log_loss", "brier", "ece") for suffix in ("", "_calibrated")
)
OPERATING: Final = tuple(
    f"{name}_at_spec95" for name in ("threshold", "sensitivity", "specificity")
)
# What a score over all classes is within one of them.
_OF_CLASS: Final = {
    "macro_f1": "f1",
    "balanced_accuracy": "recall",
    "accuracy": "recall",
    "auroc": "auroc",
}


@dataclass(frozen=True, slots=True)
class CompareOptions:
    """What to compare, and how.

    Parameters
    ----------
    models
        Encoders, `name` or `name@fingerprint`; None is every one with a run.
    runs
        Ids of runs; None is the latest run of each encoder and kind of probe.
    metric
        As for `scores.score`.
    level, scoring
        As for `Estimate`.
    by
        'class' or a manifest column: the metric within each of its values too.
    n_resamples, seed
        Of bootstrap and permutation.
    """

    models: tuple[str, ...] | None = None
    runs: tuple[str, ...] | None = None
    metric: str = "macro_f1"
    level: Level = "image"
    scoring: Literal["all", "masked"] = "all"
    by: str | None = None
    n_resamples: int = 10_000
    seed: int = 0


@dataclass(frozen=True, slots=True)
class CohortComparison:
    """All runs on one cohort."""

    cohort: str
    role: Role
    classes: tuple[str, ...]
    n_patients: int
    n_images: int
    comparison: Comparison


@dataclass(frozen=True, slots=True)
class Drop:
    """What a run loses on an external cohort, both scored over that cohort's classes."""

    name: str
    cohort: str
    drop: Spread


@dataclass(frozen=True, slots=True)
class Part:
    """A run's score within one value of a column, or of one class."""

    name: str
    cohort: str
    part: str
    n_patients: int
    n_images: int
    score: Spread


@dataclass(frozen=True, slots=True)
class Calibration:
    """How far a run's probabilities can be believed on one cohort.

    Parameters
    ----------
    temperature
        Median over the images; None where none was fitted.
    bins
        Of the reliability diagram, before any temperature.
    """

    name: str
    cohort: str
    temperature: float | None
    bins: tuple[Bin, ...]


@dataclass(frozen=True, slots=True)
class CompareReport:
    """Runs against each other.

    Parameters
    ----------
    options
        What was asked.
    runs
        Id of each run by the name that it has here.
    cohorts, drops, parts, calibration
        See there; `parts` is empty unless `by` was asked for.
    estimates
        Scores of calibration and of operating points, by name, as stored with the runs.
    notes
        Which runs and cohorts were left out, and why.
    """

    options: CompareOptions
    runs: dict[str, str]
    cohorts: tuple[CohortComparison, ...]
    drops: tuple[Drop, ...]
    parts: tuple[Part, ...]
    calibration: tuple[Calibration, ...]
    estimates: dict[str, tuple[Estimate, ...]]
    notes: tuple[str, ...]


def compare_runs(workspace: Workspace, options: CompareOptions) -> CompareReport:
    """Compare stored runs; fits and stores nothing.

    Raises
    ------
    RunError
        There is no such run, metric or class.
    ManifestError
        `by` is no column of the manifest.
    """
    models, cohorts, notes = choose_runs(workspace, options.models, options.runs)
    if not any(_applies(options.metric, one) for one in cohorts.values()):
        check_metric(options.metric, class_units(next(iter(cohorts.values()))))
    fit = [name for name, one in cohorts.items() if _applies(options.metric, one)]
    notes += [
        f"'{name}' left out: {options.metric} is not defined on its classes"
        for name in cohorts
        if name not in fit
    ]
    values = _values(workspace, options.by)
    return CompareReport(
        options=options,
        runs={name: one.run_id for name, one in models.items()},
        cohorts=tuple(_compare_on(cohorts[name], models, options) for name in fit),
        drops=tuple(chain.from_iterable(_drops(models, name, options) for name in fit)),
        parts=tuple(chain.from_iterable(_parts(models, name, values, options) for name in fit)),
        calibration=tuple(_calibrations(models, options)),
        estimates={
            name: tuple(_stored_estimates(workspace, one, options)) for name, one in models.items()
        },
        notes=tuple(notes),
    )


def _applies(metric: str, predictions: Predictions) -> bool:
    return metric in class_units(predictions).metrics


def _units(predictions: Predictions, options: CompareOptions) -> ClassUnits:
    masked = options.scoring == "masked" and len(predictions.own_classes) > 1
    return class_units(predictions, level=options.level, masked=masked)


def _on(
    models: Mapping[str, Contender], cohort: str
) -> Iterator[tuple[str, Contender, Predictions]]:
    for name, one in models.items():
        if cohort in one.cohorts:
            yield name, one, one.cohorts[cohort]


def _compare_on(
    some: Predictions, models: Mapping[str, Contender], options: CompareOptions
) -> CohortComparison:
    cohort = some.cohort[0]
    units = {name: _units(said, options) for name, _, said in _on(models, cohort)}
    return CohortComparison(
        cohort=cohort,
        role=some.role,
        classes=some.own_classes,
        n_patients=len(set(some.patient_id)),
        n_images=len(some.image_id),
        comparison=compare(
            units, options.metric, n_resamples=options.n_resamples, seed=options.seed
        ),
    )


def _drops(models: Mapping[str, Contender], cohort: str, options: CompareOptions) -> Iterator[Drop]:
    """Yield the drop of each run from its training cohort, over the classes of the other."""
    for name, one, outside in _on(models, cohort):
        if one.trained_on in {None, cohort}:
            continue
        inside = one.cohorts[str(one.trained_on)]
        rows = np.flatnonzero(np.isin(inside.label, outside.own_classes))
        yield Drop(
            name,
            cohort,
            drop(
                _units(inside.take(rows), options),
                _units(outside, options),
                options.metric,
                n_resamples=options.n_resamples,
                seed=options.seed,
            ),
        )


def _values(workspace: Workspace, column: str | None) -> dict[str, str]:
    """Return the value of each image in a manifest column."""
    if column in {None, "class"}:
        return {}
    images = state.load_images(workspace)
    return dict(
        zip(images.table["image_id"].to_pylist(), label_column(images, str(column)), strict=True)
    )


def _parts(
    models: Mapping[str, Contender],
    cohort: str,
    values: Mapping[str, str],
    options: CompareOptions,
) -> Iterator[Part]:
    if options.by is None:
        return
    for name, _, said in _on(models, cohort):
        if options.by == "class":
            metric = _OF_CLASS.get(options.metric, options.metric.partition(":")[0])
            for label in said.own_classes:
                rows = np.flatnonzero(np.array(said.label) == label)
                yield _part(name, label, said, said.take(rows), f"{metric}:{label}", options)
            continue
        column = np.array([values.get(image, "") for image in said.image_id])
        for value in np.unique(column):
            some = said.take(np.flatnonzero(column == value))
            if _applies(options.metric, some):
                yield _part(name, value or "(none)", some, some, options.metric, options)


def _part(
    name: str,
    part: str,
    scored: Predictions,
    counted: Predictions,
    metric: str,
    options: CompareOptions,
) -> Part:
    return Part(
        name=name,
        cohort=scored.cohort[0],
        part=str(part),
        n_patients=len(set(counted.patient_id)),
        n_images=len(counted.image_id),
        score=spread(
            _units(scored, options), metric, n_resamples=options.n_resamples, seed=options.seed
        ),
    )


def _calibrations(
    models: Mapping[str, Contender], options: CompareOptions
) -> Iterator[Calibration]:
    for name, one in models.items():
        for cohort, said in one.cohorts.items():
            fitted = None if said.temperature is None else float(np.nanmedian(said.temperature))
            yield Calibration(name, cohort, fitted, tuple(reliability(_units(said, options))))


def _stored_estimates(
    workspace: Workspace, one: Contender, options: CompareOptions
) -> Iterator[Estimate]:
    """Yield the scores that were stored with the run and that are not computed here."""
    table = run_files.read_run_table(workspace.runs / one.run_id, "metrics")
    rows = [r for r in table.drop_columns(["run_id"]).to_pylist() if r["level"] == options.level]
    # A cohort with all classes has no masked scores, and no cohort has masked operating points.
    masked = {r["cohort"] for r in rows if r["scoring"] == options.scoring == "masked"}
    for row in rows:
        scoring = "masked" if row["cohort"] in masked else "all"
        is_wanted = row["metric"] in CALIBRATION and row["scoring"] == scoring
        if is_wanted or row["metric"] in OPERATING:
            yield Estimate(**{**row, "label": row["label"] or ""})
