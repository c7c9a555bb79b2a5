"""The score of several repeats: the same images, answered for on other folds and by other seeds.

An out-of-fold score varies with the patients that are tested and with those that train. What a
patient does as one of the tested, the jackknife sees. What he or she does to the answers for others
shows between repeats: with K folds, a split leaves any other patient q out of the training of the
model that tests p with chance 1 / K, so p's part in the score varies between repeats by about 1 / K
of what an exchange of all training patients would do, W. The jackknife holds that variance once.
Where q does to p what p does to q, as in a method that treats patients alike, the sum over all
patients has it twice. The second time is (K - 1) W, and is added here; where the two are unrelated,
the interval is too wide by it. See docs/protocol.md, 'Repeats'.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from embedcache.files.arrays import Floats
from embedcache.scoring.subject import Score, Subject


class RepeatedScore(NamedTuple):
    """The mean of a score over repeats, and its value in each, shape (repeats,)."""

    mean: Score
    values: Floats


def repeated_score(repeats: Sequence[Subject], metric: str) -> RepeatedScore:
    """Return the mean of a score over repeats, with all parts of its variance.

    The parts of the tested patients are means over repeats, and stand first; behind them stand
    those of training, none for one repeat.

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
    values = np.array([score.value for score in scores])
    parts = np.stack([score.parts for score in scores])
    n_folds = repeats[0].n_folds
    # One model tests all patients of an external cohort, and moves them together.
    others = training_parts(parts, n_folds) if n_folds > 1 else model_parts(values)
    mean = scores[0]._replace(
        value=float(values.mean()), parts=np.concatenate([parts.mean(axis=0), others])
    )
    return RepeatedScore(mean, values)


def training_parts(parts: Floats, n_folds: int) -> Floats:
    """Return the parts of the training patients in the standard error, shape (repeats x patients,).

    Parameters
    ----------
    parts
        Parts of the tested patients in each repeat, shape (repeats, patients).
    n_folds
        Number of folds, K, at least 2.
    """
    n_repeats = len(parts)
    if n_repeats < 2:
        return np.empty(0)
    return np.ravel(math.sqrt((n_folds - 1) / (n_repeats - 1)) * (parts - parts.mean(axis=0)))


def model_parts(values: Floats) -> Floats:
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
