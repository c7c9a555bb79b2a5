"""What every subject of a score offers, whichever task its answers belong to.

A subject is what is scored of one cohort: images, or means over each patient's images, with their
truth and what a model answered. `evaluate` and `compare` know subjects through this interface only.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import ClassVar, NamedTuple

import numpy as np

from embedcache.errors import RunError
from embedcache.files.arrays import Floats
from embedcache.scoring.calibration import ProbabilityUnits
from embedcache.scoring.ranking import Ranking
from embedcache.scoring.resampling import Weights


class ScoreDraws(NamedTuple):
    """One score of each resample.

    Parameters
    ----------
    metric
        Name of the score.
    label
        Class or label that it is of; '' where it is over all of them.
    draws
        Values, shape (resamples,); NaN where the score is not defined.
    """

    metric: str
    label: str
    draws: Floats


class Subject(ABC):
    """Units of one cohort with truth and answers, each of a patient.

    A metric is named 'NAME', or 'NAME:PART' where it is of one class or label.
    """

    __slots__ = ()

    task: ClassVar[str]
    part: ClassVar[str] = ""  # word for what a metric may be of: 'class', 'label'
    lower_is_better: ClassVar[frozenset[str]] = frozenset()  # metrics that are errors

    @property
    @abstractmethod
    def n_patients(self) -> int:
        """Number of patients."""

    @property
    @abstractmethod
    def metrics(self) -> tuple[str, ...]:
        """Metrics that are defined on this subject and that models are compared by."""

    @abstractmethod
    def score(self, metric: str, weights: Weights) -> Floats:
        """Return one score of each resample, shape (resamples,); NaN where it is not defined.

        Parameters
        ----------
        metric
            One of `metrics`.
        weights
            How often each patient is drawn, shape (resamples, patients).

        Raises
        ------
        RunError
            No such metric on this subject.
        """

    @abstractmethod
    def patient_sums(self, metric: str) -> Floats | None:
        """Return what the score is a function of when added up, shape (patients, columns).

        None for a metric that no sums over patients give.
        """

    @abstractmethod
    def score_of_sums(self, metric: str, sums: Floats) -> Floats:
        """Return the score of each row of added-up `patient_sums`, shape (rows,)."""

    @abstractmethod
    def scores(self, weights: Weights) -> Iterator[ScoreDraws]:
        """Yield every score of the answers that is a function of the weights, in written order.

        Parameters
        ----------
        weights
            How often each patient is drawn, shape (resamples, patients).
        """

    @property
    def undefined(self) -> Mapping[str, str]:
        """Metrics of the task that are not defined on this subject, each with the reason."""
        return {}

    @property
    def rankings(self) -> Mapping[str, Ranking]:
        """Ranking of each class that gets an operating point; none where the task has no such."""
        return {}

    @property
    def calibrations(self) -> Mapping[str, ProbabilityUnits]:
        """Units to score the calibration of, by the suffix of the metric; none likewise."""
        return {}

    @property
    def everyone(self) -> Floats:
        """Weights of the cohort as it is: each patient once, shape (1, patients)."""
        return np.ones((1, self.n_patients))

    def sign(self, metric: str) -> float:
        """Return 1 where a larger score is better, -1 for an error."""
        return -1.0 if metric in self.lower_is_better else 1.0


def check_metric(metric: str, subject: Subject) -> None:
    """Raise `RunError` unless a metric is defined on a subject; the message names what there is."""
    if metric in subject.metrics:
        return
    name, colon, part = metric.partition(":")
    if name in subject.undefined:
        raise RunError(subject.undefined[name])
    parts: dict[str, list[str]] = {}
    for defined in subject.metrics:
        base, _, label = defined.partition(":")
        parts.setdefault(base, []).extend([label] if label else [])
    if colon and parts.get(name):
        raise RunError(f"no {subject.part} '{part}' for {name}; there are {', '.join(parts[name])}")
    choices = [
        *(defined for defined in subject.metrics if ":" not in defined),
        *(f"{base}:{subject.part.upper()}" for base, labels in parts.items() if labels),
    ]
    raise RunError(
        f"no metric '{metric}' of {subject.task} to compare by; it may be {', '.join(choices)}"
    )
