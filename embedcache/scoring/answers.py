"""From a model's answers to what is scored of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import get_args

from embedcache.data.predictions import Answers, Measurements, Predictions
from embedcache.errors import RunError
from embedcache.scoring.choices import Level
from embedcache.scoring.class_units import ClassUnits, class_units
from embedcache.scoring.label_units import LabelUnits, label_units
from embedcache.scoring.number_units import NumberUnits, number_units
from embedcache.scoring.repeats import redrawn_folds
from embedcache.scoring.subject import Subject


def subjects_of(
    repeats: Sequence[Answers],
    *,
    level: Level = "image",
    masked: bool = False,
    n_folds: int | None = None,
) -> list[Subject]:
    """Return what is scored of one cohort's answers, by repeat.

    Parameters
    ----------
    repeats
        Answers of one model to one cohort, or to part of it, one a repeat.
    level, masked
        See `subject_of`.
    n_folds
        Number of folds that the repeats draw anew; None to count them in the answers, which has to
        be done before a part is taken.

    Raises
    ------
    RunError
        A level or a mask that the task does not have.
    """
    if n_folds is None:
        n_folds = redrawn_folds([answers.fold for answers in repeats])
    subjects = [subject_of(answers, level=level, masked=masked) for answers in repeats]
    return [replace(subject, n_folds=n_folds) for subject in subjects]


def subject_of(
    answers: Answers, *, level: Level = "image", masked: bool = False
) -> ClassUnits | NumberUnits | LabelUnits:
    """Return what is scored of one cohort's answers.

    Parameters
    ----------
    answers
        Answers of one model to one cohort.
    level
        'image', or 'patient': the mean over a patient's images; of classes, over the patient's
        images of one class.
    masked
        Whether only classes that occur among the labels are considered.

    Raises
    ------
    RunError
        A level or a mask that the task does not have.
    """
    if isinstance(answers, Predictions):
        return class_units(answers, level=level, masked=masked)
    if masked:
        raise RunError("scoring 'masked' is for one class an image; use 'all'")
    if isinstance(answers, Measurements):
        return number_units(answers, level=level)
    if level == "patient":
        raise RunError("several labels are scored by image; a patient's images differ in theirs")
    return label_units(answers)


def scored_views(answers: Answers) -> Iterator[tuple[Level, bool]]:
    """Yield each level, and whether masked, that a cohort's answers are scored at.

    Masked scores are given where the cohort has some of the model's classes, but at least two: of
    one class they would say nothing, being 1 whatever was predicted.
    """
    if not isinstance(answers, Predictions | Measurements):
        yield "image", False
        return
    for level in get_args(Level):
        yield level, False
        if isinstance(answers, Predictions) and 1 < len(answers.own_classes) < len(answers.classes):
            yield level, True
