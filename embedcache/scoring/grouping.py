"""Many models at once: Holm's correction, mean ranks, groups that cannot be told apart."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import numpy as np

from embedcache.files.arrays import Floats


def holm(p: Sequence[float]) -> list[float]:
    """Return p values corrected for their number, step-down (Holm 1979)."""
    corrected, largest = [0.0] * len(p), 0.0
    for step, number in enumerate(np.argsort(p, kind="stable")):
        largest = max(largest, min(1.0, (len(p) - step) * p[number]))
        corrected[number] = largest
    return corrected


def alike(names: Sequence[str], different: Iterable[tuple[str, str]]) -> list[frozenset[str]]:
    """Return the largest groups in which no two differ, that of the first name first.

    Insert and absorb (Piepho 2004): a group that holds a pair that differs is split in two, each
    without one of them, and groups that lie within another go.

    Parameters
    ----------
    names
        Names of the models, best first.
    different
        Pairs of names that differ.
    """
    groups = {frozenset(names)}
    for pair in map(frozenset, different):
        parts = {part for group in groups for part in _split(group, pair)}
        groups = {group for group in parts if not any(group < other for other in parts)}
    place = {name: number for number, name in enumerate(names)}
    return sorted(groups, key=lambda group: sorted(place[name] for name in group))


def _split(group: frozenset[str], pair: frozenset[str]) -> Collection[frozenset[str]]:
    return [group - {name} for name in pair] if pair <= group else [group]


def mean_ranks(draws: Floats) -> tuple[Floats, Floats]:
    """Return mean rank and share of first places, shape (models,) each; ties share.

    Parameters
    ----------
    draws
        Score of each model in each resample, larger is better, shape (models, resamples).
    """
    above = (draws[None] > draws[:, None]).sum(axis=1)
    level = (draws[None] == draws[:, None]).sum(axis=1)
    is_best = draws == draws.max(axis=0)
    return (1 + above + (level - 1) / 2).mean(axis=1), (is_best / is_best.sum(axis=0)).mean(axis=1)
