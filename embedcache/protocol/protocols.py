"""How a probe's setting is chosen and what is fitted with it: our protocol, and others' by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

import numpy as np

from embedcache.probes.logistic import C_GRID

Choice = Literal["nested", "random-tenth", "halving"]


@dataclass(frozen=True, slots=True)
class Protocol:
    """What is done with a training cohort.

    Parameters
    ----------
    name
        In each run's record; a change of the protocol gives it another name.
    choice
        'nested': on inner folds of patients, by macro F1. 'random-tenth': on a tenth of the
        training images, drawn at random, by accuracy. 'halving': on such a tenth too, by a search
        that halves its step around the best.
    standardise
        Whether each feature is divided by its deviation; the mean plays no part in a fit.
    grid
        Values of C, for a logistic probe; ascending. None: the probe's own.
    official_split
        Whether images whose manifest column `split` is 'train' train, and those with 'test' are
        the test, predicted by the mean of the folds' probes.
    source
        Where it is described.
    """

    name: str
    choice: Choice = "nested"
    standardise: bool = True
    grid: tuple[float, ...] | None = None
    official_split: bool = False
    source: str = ""


# CLIP searches lambda = 1 / C from 10^-6 to 10^6, at last in 8 steps a decade.
CLIP_GRID: Final = tuple(float(10.0**e) for e in np.linspace(-6, 6, 97))

PROTOCOLS: Final[Mapping[str, Protocol]] = MappingProxyType(
    {
        "default": Protocol("nested-patient-cv-2", source="docs/protocol.md"),
        "dinov2": Protocol(
            "dinov2-like-1",
            choice="random-tenth",
            standardise=False,
            grid=tuple(float(10.0**e) for e in np.linspace(-6, 5, 45)),
            source="Oquab et al. 2023, arXiv 2304.07193; dinov2/eval/log_regression.py",
        ),
        "clip": Protocol(
            "clip-like-1",
            choice="halving",
            standardise=False,
            grid=CLIP_GRID,
            source="Radford et al. 2021, arXiv 2103.00020, appendix A.3",
        ),
        "fetalclip": Protocol(
            "fetalclip-like-1",
            grid=C_GRID,
            official_split=True,
            source="Maani et al. 2025, arXiv 2502.14807: official split, five folds",
        ),
    }
)
