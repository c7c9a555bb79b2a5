"""What `compare` says of scores elsewhere: drops on external cohorts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from embedcache.data.predictions import Answers, Predictions
from embedcache.runs.contenders import Contender
from embedcache.scoring.class_units import ClassUnits
from embedcache.scoring.compare import drop
from embedcache.scoring.shift import ClassShare, class_shares, prior_adjusted, take_apart
from embedcache.scoring.subject import Subject
from embedcache.verbs.compare_report import CompareOptions, Drop

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


def _units(subject: Subject) -> list[ClassUnits]:
    """Return the units of each repeat of a model."""
    assert isinstance(subject, ClassUnits)  # of predictions of classes
    return [subject]
