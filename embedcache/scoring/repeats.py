"""The score of several repeats: the same images, answered for on other folds and by other seeds.

A score out of fold varies with the patients that are tested, with those that train, and with how
they are split. The jackknife sees the first, the repeats' scores see the last. The second is told
by what the split does to each patient's part: with K folds and patients p and q, a split decides
with 1 chance in K that q does not train the model that tests p, so that a patient's part varies
between splits by 1 / K of what a new q would change. What q does to p comes with what p does to q,
which the jackknife counts once; counted twice, as it is where the two are equal, the variance lacks
K - 1 times that between splits, and nothing where they are unrelated. `SHARED` of it is added:
see docs/protocol.md, 'Repeats', and `benchmarks/bench_level.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from embedcache.files.arrays import Floats
from embedcache.scoring.subject import Score, Subject

SHARED: Final = 0.75  # of the variance that would be lacking if what two patients do were equal


def repeated_score(repeats: Sequence[Subject], metric: str) -> Score:
    """Return the mean of a score over repeats, with all parts of its variance.

    The parts of the patients are means over repeats, and stand first; behind them stand those of
    training and of the split, none for one repeat.

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
    values, parts = np.array([score.value for score in scores]), [score.parts for score in scores]
    every_part = np.concatenate(
        [
            np.mean(parts, axis=0),
            training_parts(np.stack(parts), repeats[0].n_folds),
            split_parts(values),
        ]
    )
    return scores[0]._replace(value=float(values.mean()), parts=every_part)


def training_parts(parts: Floats, n_folds: int) -> Floats:
    """Return the parts of the training patients in the standard error, shape (repeats x patients,).

    Parameters
    ----------
    parts
        Parts of the tested patients in each repeat, shape (repeats, patients).
    n_folds
        Number of folds, K; 1 where no patient is both tested and trained on, which leaves nothing.
    """
    n_repeats = len(parts)
    if n_repeats < 2:
        return np.empty(0)
    scale = math.sqrt(SHARED * (n_folds - 1) / (n_repeats - 1))
    return np.ravel(scale * (parts - parts.mean(axis=0)))


def split_parts(values: Floats) -> Floats:
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
