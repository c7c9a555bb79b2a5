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
from numpy.typing import NDArray

from embedcache.files.arrays import Floats
from embedcache.scoring.jackknife import NO_ERROR, Error, Spread, joint_error, spread_with
from embedcache.scoring.subject import Score, Subject


class RepeatedScore(NamedTuple):
    """The mean of a score over repeats.

    Parameters
    ----------
    mean
        The mean, with the means of the patients' parts as those who are tested.
    values
        Score of each repeat, shape (repeats,).
    others
        Parts of what repeats draw anew in the standard error: see `parts_of_repeats`.
    """

    mean: Score
    values: Floats
    others: Floats

    @property
    def error(self) -> Error:
        """The error of the mean."""
        return joint_error(self.mean.error, error_of_repeats(self.others, len(self.values)))

    @property
    def spread(self) -> Spread:
        """The mean with its interval."""
        return spread_with(self.mean.value, self.error, self.mean.n_holders, self.mean.bounds)


def repeated_score(repeats: Sequence[Subject], metric: str) -> RepeatedScore:
    """Return the mean of a score over repeats.

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
    mean = scores[0]._replace(value=float(values.mean()), parts=parts.mean(axis=0))
    return RepeatedScore(mean, values, parts_of_repeats(parts, values, repeats[0].n_folds))


def parts_of_repeats(parts: Floats, values: Floats, n_folds: int) -> Floats:
    """Return the parts of what repeats draw anew, whose squares add up to its variance.

    Of folds that are drawn anew, these are the training patients' parts, one a repeat and patient.
    Where one model tests all patients, as of an external cohort, or the folds stay and only seeds
    move, they are the repeats' own: all patients of a model move together. None for one repeat.

    Parameters
    ----------
    parts
        Parts of the tested patients in each repeat, shape (repeats, patients).
    values
        Score of each repeat, shape (repeats,).
    n_folds
        Number of folds that repeats draw anew, K; 1 for none.
    """
    n_repeats = len(values)
    if n_repeats < 2:
        return np.empty(0)
    if n_folds > 1:
        scale = math.sqrt((n_folds - 1) / (n_repeats - 1))
        return np.ravel(scale * (parts - parts.mean(axis=0)))
    return np.asarray((values - values.mean()) / math.sqrt(n_repeats * (n_repeats - 1)))


def error_of_repeats(others: Floats, n_repeats: int) -> Error:
    """Return the error by what repeats draw anew, with (R - 1) / R degrees of freedom a part."""
    if not len(others):
        return NO_ERROR
    return Error(float((others**2).sum()), len(others) * (n_repeats - 1) / n_repeats)


def redrawn_folds(folds: Sequence[NDArray[np.int64]]) -> int:
    """Return the number of folds that repeats draw anew, 1 where they do not.

    Parameters
    ----------
    folds
        Fold of each image of the whole cohort, by repeat, shape (images,) each.
    """
    is_fixed = len(folds) > 1 and all(np.array_equal(fold, folds[0]) for fold in folds)
    return 1 if is_fixed else len(np.unique(folds[0]))
