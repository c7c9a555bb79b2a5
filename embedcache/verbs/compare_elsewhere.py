"""What `compare` says of scores elsewhere: on external cohorts, and in groups within a cohort."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from embedcache.data.predictions import Answers, Predictions
from embedcache.errors import RunError
from embedcache.runs.contenders import Contender
from embedcache.scoring.class_units import ClassUnits
from embedcache.scoring.compare import drop
from embedcache.scoring.shift import ClassShare, class_shares, prior_adjusted, take_apart
from embedcache.scoring.subgroups import Group, Side, gaps
from embedcache.scoring.subject import Subject, check_metric
from embedcache.verbs.compare_report import CompareOptions, Drop, Gaps

ToSubject = Callable[[Answers], Subject]
# Class shares have no hold on them, or little: they stand beside a drop of F1.
_BY_METRIC: Final[tuple[str, ...]] = ("balanced_accuracy", "auroc")


def drop_of(
    name: str,
    contender: Contender,
    cohort: str,
    metric: str,
    options: CompareOptions,
    to_subject: ToSubject,
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
    to_subject
        Function that makes of a cohort's answers what is scored.
    """
    draws = {"n_resamples": options.n_resamples, "seed": options.seed}
    trained, outside = contender.cohorts[str(contender.trained_on)], contender.cohorts[cohort]
    if not isinstance(trained, Predictions) or not isinstance(outside, Predictions):
        return Drop(name, cohort, drop(to_subject(trained), to_subject(outside), metric, **draws))
    inside = trained.take(np.flatnonzero(np.isin(trained.label, outside.own_classes)))
    at_home, there = to_subject(inside), to_subject(outside)
    names = {metric, *_BY_METRIC}.intersection(there.metrics)
    by_metric = {name: drop(at_home, there, name, **draws) for name in sorted(names)}
    lost = by_metric[metric]
    if there.patient_sums(metric) is None:
        return Drop(name, cohort, lost, by_metric=by_metric)
    home = class_shares(trained)
    # A training that weighs classes alike has seen them as if they were equally frequent.
    is_even = contender.record.method.weighs_classes_alike
    prior = np.full(len(home), 1 / len(home)) if is_even else home
    adjusted, estimated = prior_adjusted(outside, prior, masked=options.masks(outside))
    corrected = _units(to_subject(adjusted))
    shift = take_apart(_units(at_home), _units(there), corrected, metric, **draws)
    columns = home.tolist(), class_shares(outside).tolist(), estimated.tolist()
    shares = tuple(map(ClassShare, trained.classes, *columns))
    return Drop(name, cohort, lost, shift, by_metric, shares)


def gaps_of(
    name: str,
    answers: Answers,
    value: NDArray[np.str_],
    metric: str,
    options: CompareOptions,
    to_subject: ToSubject,
) -> Gaps:
    """Return how far each value of a column is behind all other images of a cohort.

    Parameters
    ----------
    name
        Name of the run.
    answers
        What it answered for the cohort.
    value
        Value of each image in the column, two or more in all, shape (n,).
    metric
        Name of the score; of classes, it is over those that occur on both sides.
    options
        What is asked of the comparison.
    to_subject
        Function that makes of a cohort's answers what is scored.
    """
    patients = np.unique(answers.patient_id)
    groups: list[Group] = []
    reasons: dict[str, str] = {}
    for group in np.unique(value):
        parts = [answers.take(np.flatnonzero(is_in)) for is_in in (value == group, value != group)]
        sides, classes = _of_shared_classes(*parts)
        refusals = [undefined(side, metric, to_subject) for side in sides]
        if any(refusals):
            reasons[str(group)] = next(filter(None, refusals))
            continue
        members, rest = (
            Side(to_subject(side), np.searchsorted(patients, np.unique(side.patient_id)))
            for side in sides
        )
        groups.append(Group(str(group), classes, members, rest))
    draws = {"n_resamples": options.n_resamples, "seed": options.seed}
    rows, largest = gaps(groups, metric, len(patients), **draws)
    worst = None if largest is None else rows[0].group
    return Gaps(name, answers.cohort[0], rows, worst, largest, reasons)


def _of_shared_classes(
    members: Answers, rest: Answers
) -> tuple[tuple[Answers, Answers], tuple[str, ...]]:
    """Return both sides without images of classes that only one of them has, and the classes."""
    if not isinstance(members, Predictions) or not isinstance(rest, Predictions):
        return (members, rest), ()
    shared = [name for name in members.own_classes if name in rest.own_classes]
    sides = [side.take(np.flatnonzero(np.isin(side.label, shared))) for side in (members, rest)]
    return (sides[0], sides[1]), tuple(shared)


def undefined(answers: Answers, metric: str, to_subject: ToSubject) -> str | None:
    """Return why a score is not defined on some images; None where it is."""
    if not answers.image_id:
        return "it shares no class with the rest"
    subject = to_subject(answers)
    try:
        check_metric(metric, subject)
    except RunError as error:
        return str(error)
    is_nan = np.isnan(subject.score(metric, subject.everyone)[0])
    return f"{metric} is not defined on these images" if is_nan else None


def _units(subject: Subject) -> list[ClassUnits]:
    """Return the units of each repeat of a model."""
    assert isinstance(subject, ClassUnits)  # of predictions of classes
    return [subject]
