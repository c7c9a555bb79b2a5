"""A score with its interval, what stands behind it, and the score that a task is judged by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from embedcache.data.predictions import Role
from embedcache.scoring.choices import Level, Scoring

# The score over images that the answers to a task are judged by.
HEADLINES: Final[Mapping[str, str]] = MappingProxyType(
    {"classification": "macro_f1", "regression": "r2", "multilabel": "macro_f1"}
)

# Scores that models are compared by, by task; those of one class or label have ':NAME' behind.
METRICS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "classification": ("macro_f1", "balanced_accuracy", "accuracy", "auroc", "f1", "recall"),
        "regression": ("mae", "rmse", "r2", "pearson"),
        "multilabel": (
            "macro_f1",
            "macro_auroc",
            "mean_average_precision",
            "f1",
            "auroc",
            "average_precision",
        ),
    }
)


def has_metric(task: str, metric: str) -> bool:
    """Return whether models of a task are compared by a score of this name."""
    return metric.partition(":")[0] in METRICS.get(task, ())


@dataclass(frozen=True, slots=True)
class Estimate:
    """One score with its interval.

    Parameters
    ----------
    cohort, role
        Name of the cohort that was scored, and its part in the run.
    scoring
        'all': every output allowed, one outside the cohort's classes counts as a miss; 'masked':
        only the cohort's own classes were considered.
    level
        'image', or 'patient': the mean over a patient's images (of classes: over those of one
        class).
    metric
        Name of the score; see docs/protocol.md, 'Scores'.
    label
        Class or label that the score is of; '' where it is over all of them.
    value
        Score of the cohort as it is.
    low, high
        Ends of the 95 % interval; NaN where there are fewer than two patients.
    n_patients, n_images
        Numbers of patients and of images that were scored.
    """

    cohort: str
    role: Role
    scoring: Scoring
    level: Level
    metric: str
    label: str
    value: float
    low: float
    high: float
    n_patients: int
    n_images: int
