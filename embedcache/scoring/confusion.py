"""Scores of confusion tables, shape (tables, true class, predicted class or none of them)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np

from embedcache.files.arrays import Floats
from embedcache.scoring.resampling import mean_of_defined, ratio


def f1(tables: Floats) -> Floats:
    """Return F1 a class, shape (tables, c); NaN for a class that was not drawn at all."""
    hits, actual = np.diagonal(tables, axis1=1, axis2=2), tables.sum(axis=2)
    claimed = tables.sum(axis=1)[:, :-1]
    return ratio(2 * hits, actual + claimed, actual > 0)


def recall(tables: Floats) -> Floats:
    """Return the share of each class that is recognised, shape (tables, c); NaN likewise."""
    hits, actual = np.diagonal(tables, axis1=1, axis2=2), tables.sum(axis=2)
    return ratio(hits, actual, actual > 0)


def accuracy(tables: Floats) -> Floats:
    """Return the share of all units that are right, shape (tables,)."""
    hits = np.trace(tables, axis1=1, axis2=2)
    n_units = tables.sum(axis=(1, 2))
    return ratio(hits, n_units, n_units > 0)


OF_ALL_CLASSES: Final[Mapping[str, Callable[[Floats], Floats]]] = {
    "macro_f1": lambda tables: mean_of_defined(f1(tables)),
    "balanced_accuracy": lambda tables: mean_of_defined(recall(tables)),
    "accuracy": accuracy,
}
OF_ONE_CLASS: Final[Mapping[str, Callable[[Floats], Floats]]] = {"f1": f1, "recall": recall}


def table_score(metric: str, classes: tuple[str, ...], sums: Floats) -> Floats:
    """Return one score of each confusion table, shape (tables,).

    Parameters
    ----------
    metric
        'macro_f1', 'balanced_accuracy', 'accuracy', 'f1:CLASS' or 'recall:CLASS'.
    classes
        Names of the c classes, in the order of the tables.
    sums
        Confusion tables, flat, shape (tables, c (c + 1)); the last column of each row of a table
        counts predictions of no class among them.
    """
    tables = sums.reshape(-1, len(classes), len(classes) + 1)
    if metric in OF_ALL_CLASSES:
        return OF_ALL_CLASSES[metric](tables)
    name, _, label = metric.partition(":")
    return OF_ONE_CLASS[name](tables)[:, classes.index(label)]
