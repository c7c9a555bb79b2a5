"""What `compare` says of scores elsewhere: on external cohorts, and in subgroups of a cohort."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from embedcache.data.predictions import Answers, Predictions
from embedcache.errors import RunError
from embedcache.runs.contenders import Contender
from embedcache.scoring.class_units import ClassUnits
from embedcache.scoring.compare import drop
from embedcache.scoring.shift import ClassShare, class_shares, prior_adjusted, take_apart
from embedcache.scoring.subgroups import Side, Subgroup, shortfalls
from embedcache.scoring.subject import Subject, check_metric
from embedcache.verbs.compare_report import CompareOptions, Drop, Subgroups

ToSubjects = Callable[[Sequence[Answers]], Sequence[Subject]]  # of answers by repeat
# Class shares have no hold on them, or little: they stand beside a drop of F1.
_BY_METRIC: Final[tuple[str, ...]] = ("balanced_accuracy", "auroc")


def drop_of(
    name: str,
    contender: Contender,
    cohort: str,
    metric: str,
    options: CompareOptions,
    to_subjects: ToSubjects,
) -> Drop:
    """Return what a run loses on an external cohort; of classes, over those that occur there.

    Parameters
    ----------
    name, contender
        Name of the run, and the run, which was trained on another cohort.
    cohort
        Name of the external cohort.
    metric
        Name of the score.
    options
        What is asked of the comparison.
    to_subjects
        Function that makes of answers what is scored.
    """
    trained, outside = contender.cohorts[str(contender.trained_on)], contender.cohorts[cohort]
    at_home, there = _of_classes(trained), _of_classes(outside)
    if not at_home or not there:
        return Drop(name, cohort, drop(to_subjects(trained), to_subjects(outside), metric))
    rows = np.flatnonzero(np.isin(at_home[0].label, there[0].own_classes))
    inside = to_subjects([answers.take(rows) for answers in at_home])
    away = to_subjects(there)
    names = {metric, *_BY_METRIC}.intersection(away[0].metrics)
    by_metric = {name: drop(inside, away, name) for name in sorted(names)}
    if metric.partition(":")[0] == "auroc":  # which is of no confusion table
        return Drop(name, cohort, by_metric[metric], by_metric=by_metric)
    home = class_shares(at_home[0])
    # A training that weighs classes alike has seen them as if they were equally frequent.
    is_even = contender.record.method.weighs_classes_alike
    prior, masked = np.full(len(home), 1 / len(home)) if is_even else home, options.masks(there[0])
    adjusted, estimated = zip(
        *(prior_adjusted(answers, prior, masked=masked) for answers in there), strict=True
    )
    shift = take_apart(_units(inside), _units(away), _units(to_subjects(adjusted)), metric)
    columns = home, class_shares(there[0]), np.mean(estimated, axis=0)
    shares = map(ClassShare, at_home[0].classes, *(column.tolist() for column in columns))
    return Drop(name, cohort, by_metric[metric], shift, by_metric, tuple(shares))


def _of_classes(repeats: Sequence[Answers]) -> list[Predictions]:
    """Return answers of classes; none of another task."""
    return [answers for answers in repeats if isinstance(answers, Predictions)]


def _units(subjects: Sequence[Subject]) -> list[ClassUnits]:
    return [subject for subject in subjects if isinstance(subject, ClassUnits)]


def subgroups_of(
    name: str,
    repeats: Sequence[Answers],
    value: NDArray[np.str_],
    metric: str,
    options: CompareOptions,
    to_subjects: ToSubjects,
) -> Subgroups:
    """Return how far each value of a column is behind all other images of a cohort.

    Parameters
    ----------
    name
        Name of the run.
    repeats
        What it answered for the cohort, by repeat.
    value
        Value of each image in the column, two or more in all, shape (n,).
    metric
        Name of the score; of classes, it is over those that occur on both sides.
    options
        What is asked of the comparison.
    to_subjects
        Function that makes of answers what is scored.
    """
    patients = np.unique(repeats[0].patient_id)
    subgroups: list[Subgroup] = []
    reasons: dict[str, str] = {}
    for subgroup in np.unique(value):
        is_member, classes = _sides(repeats[0], value == subgroup)
        sides = [[answers.take(rows) for answers in repeats] for rows in is_member]
        refusals = [undefined(side, metric, to_subjects) for side in sides]
        if any(refusals):
            reasons[str(subgroup)] = next(filter(None, refusals))
            continue
        members, rest = (
            Side(to_subjects(side), np.searchsorted(patients, np.unique(side[0].patient_id)))
            for side in sides
        )
        subgroups.append(Subgroup(str(subgroup), classes, members, rest))
    rows, largest = shortfalls(
        subgroups,
        metric,
        len(patients),
        n_values=len(np.unique(value)),
        n_draws=options.n_resamples,
        seed=options.seed,
    )
    worst = None if largest is None else rows[0].subgroup
    return Subgroups(name, repeats[0].cohort[0], rows, worst, largest, reasons)


def _sides(
    answers: Answers, is_member: NDArray[np.bool_]
) -> tuple[list[NDArray[np.intp]], tuple[str, ...]]:
    """Return the rows of a subgroup, those of the rest, and the classes that both have.

    Images of a class that only one side has would be scored against nothing, and are left out.
    """
    parts = [np.flatnonzero(is_member), np.flatnonzero(~is_member)]
    if not isinstance(answers, Predictions):
        return parts, ()
    label = np.array(answers.label)
    shared = np.intersect1d(label[parts[0]], label[parts[1]])
    return [rows[np.isin(label[rows], shared)] for rows in parts], tuple(shared.tolist())


def undefined(repeats: Sequence[Answers], metric: str, to_subjects: ToSubjects) -> str | None:
    """Return why a score is not defined on some images; None where it is."""
    if not repeats[0].image_id:
        return "it shares no class with the rest"
    subjects = to_subjects(repeats)
    try:
        check_metric(metric, subjects[0])
    except RunError as error:
        return str(error)
    is_nan = any(np.isnan(subject.score(metric).value) for subject in subjects)
    return f"{metric} is not defined on these images" if is_nan else None
