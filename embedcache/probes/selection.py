"""How a hyperparameter is chosen: the score of held-out predictions, and who wins a near tie."""

from __future__ import annotations

from typing import Any, Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from embedcache.files.arrays import Floats

Integers = NDArray[np.integer[Any]]
Rule = Literal["tie", "one-se"]

# Scores this close are a tie, and a tie goes to the smoother probe.
TIE: Final = 0.001
# Values past the best one after which no better one is looked for.
PAST: Final = 2


def macro_f1(truth: Integers, predicted: Integers, n_classes: int) -> Floats:
    """Return the macro F1 of several predictions of the same rows, shape (m,).

    Parameters
    ----------
    truth
        Class of each row, 0 to n_classes - 1, shape (n,). The mean is over the classes that occur
        in it.
    predicted
        Class that each of m predictions gives each row, shape (m, n). A class that no row belongs
        to is wrong, and has no F1 of its own.
    n_classes
        Number of classes.
    """
    m, k = len(predicted), n_classes
    hits, claimed = np.empty((2, m, k))
    for row, codes in enumerate(predicted):
        claimed[row] = np.bincount(codes, minlength=k)
        hits[row] = np.bincount(codes[codes == truth], minlength=k)
    actual = np.bincount(truth, minlength=k)
    occurs = actual > 0
    f1 = 2 * hits[:, occurs] / (claimed + actual)[:, occurs]
    return np.asarray(f1.mean(axis=1))


def pick(scores: Floats, fold_scores: Floats | None = None, *, rule: Rule = "tie") -> int:
    """Return the number of the value to take: the first that is as good as the best.

    Parameters
    ----------
    scores
        Score of each value, larger is better, shape (m,); the smoothest probe first.
    fold_scores
        Score of each value by fold, shape (m, K), K >= 2; needed by 'one-se'.
    rule
        Distance from the best that is as good: 'tie' for `TIE`; 'one-se' for the standard error of
        the best value's mean over folds (Breiman et al. 1984, Classification and Regression Trees,
        section 3.4.3).

    Raises
    ------
    ValueError
        No such rule, or 'one-se' without the scores of at least two folds.
    """
    best = int(np.argmax(scores))
    return int(np.argmax(scores >= scores[best] - _slack(best, fold_scores, rule)))


def close_values(
    scores: Floats, fold_scores: Floats | None = None, *, rule: Rule = "tie", reach: float
) -> NDArray[np.intp]:
    """Return the values that `pick` might choose between, were scores off by a little.

    None where even then it would choose the same.

    Parameters
    ----------
    scores, fold_scores, rule
        See `pick`.
    reach
        The most by which the difference of two scores is off.
    """
    best = int(np.argmax(scores))
    slack = _slack(best, fold_scores, rule)
    first, *others = np.flatnonzero(scores >= scores[best] - slack - reach)
    if not others or scores[first] >= scores[others].max() - slack + reach:
        return np.empty(0, np.intp)
    return np.array([first, *others])


def _slack(best: int, fold_scores: Floats | None, rule: Rule) -> float:
    if rule not in get_args(Rule):
        raise ValueError(f"no rule '{rule}'; it may be {', '.join(get_args(Rule))}")
    return TIE if rule == "tie" else _standard_error(fold_scores, best)


def past_best(scores: Floats, losses: Floats, *, reach: float = 0.0) -> bool:
    """Return whether larger values than those of an ascending grid can be left out.

    That is where the last `PAST` values are worse than those before them by both measures: by the
    score, which is what counts but rises and falls by chance, and by the loss, which is smooth.

    Parameters
    ----------
    scores
        Score of each value fitted so far, larger is better, shape (m,).
    losses
        Loss of each on the same rows, shape (m,).
    reach
        What a score has to be worse by beside `TIE`.
    """
    if len(scores) <= PAST:
        return False
    falls = scores[-PAST:] < scores[:-PAST].max() - TIE - reach
    rises = losses[-PAST:] > losses[:-PAST].min()
    return bool(falls.all() and rises.all())


def _standard_error(fold_scores: Floats | None, best: int) -> float:
    n_folds = 0 if fold_scores is None else fold_scores.shape[1]
    if fold_scores is None or n_folds < 2:
        raise ValueError(f"rule 'one-se' needs the scores of 2 folds or more, not of {n_folds}")
    return float(fold_scores[best].std(ddof=1) / np.sqrt(n_folds))
