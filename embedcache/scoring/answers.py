"""From a model's answers to what is scored of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

from embedcache.data.predictions import Answers, Measurements, Predictions
from embedcache.errors import RunError
from embedcache.scoring.choices import Level
from embedcache.scoring.class_units import class_units
from embedcache.scoring.label_units import label_units
from embedcache.scoring.number_units import number_units
from embedcache.scoring.subject import Subject


def subject_of(answers: Answers, *, level: Level = "image", masked: bool = False) -> Subject:
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
