"""A score with its interval, and what stands behind it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from embedcache.data.predictions import Role

Level = Literal["image", "patient"]


@dataclass(frozen=True, slots=True)
class Estimate:
    """One score with its interval.

    Parameters
    ----------
    cohort, role
        What was scored.
    scoring
        'all': every output allowed, one outside the cohort's classes counts as a miss; 'masked':
        only the cohort's own classes were considered.
    level
        'image', or 'patient': the mean probability over a patient's images of one class.
    metric
        One of docs/protocol.md, 'Scores'.
    label
        The class, where the metric is of one; '' where it is over all of them.
    value, low, high
        The score and its 95 % interval; NaN where there are fewer than two patients to resample.
    n_patients, n_images
        What stands behind it.
    """

    cohort: str
    role: Role
    scoring: Literal["all", "masked"]
    level: Level
    metric: str
    label: str
    value: float
    low: float
    high: float
    n_patients: int
    n_images: int
