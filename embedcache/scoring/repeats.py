"""The score of several repeats: the same images, answered for on other folds and by other seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from embedcache.files.arrays import Floats
from embedcache.scoring.subject import Score, Subject


def mean_score(repeats: Sequence[Subject], metric: str) -> Score:
    """Return the mean of a score over repeats, with both parts of its variance.

    The parts of the patients are means over repeats. Each repeat adds a part of its own behind
    them, so that the squares of these add up to the variance of the mean over folds and seeds.

    Parameters
    ----------
    repeats
        Subject of each repeat; all have the same units and truth.
    metric
        One of `Subject.metrics`.

    Raises
    ------
    RunError
        No such metric on these subjects.
    """
    scores = [subject.score(metric) for subject in repeats]
    first, values = scores[0], np.array([score.value for score in scores])
    of_patients = np.mean([score.parts for score in scores], axis=0)
    parts = np.concatenate([of_patients, repeat_parts(values)])
    return first._replace(value=float(values.mean()), parts=parts)


def repeat_parts(values: Floats) -> Floats:
    """Return each repeat's part in the standard error of their mean; none for one repeat.

    Parameters
    ----------
    values
        Score of each repeat, shape (repeats,).
    """
    n_repeats = len(values)
    if n_repeats < 2:
        return np.empty(0)
    return np.asarray((values - values.mean()) / math.sqrt(n_repeats * (n_repeats - 1)))
