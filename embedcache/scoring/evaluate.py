"""Every score of a run's answers, with intervals that resample patients, not images.

Frames of one patient resemble each other, so an interval over images is far too narrow. A resample
draws patients with replacement and takes all of a drawn patient's images (the cluster bootstrap;
Davison and Hinkley 1997, section 3.8). The models stay fixed, so an interval says how the score
varies with the patients tested, not with those trained on. See docs/protocol.md, 'Scores'.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np

from embedcache.data.predictions import Answers
from embedcache.scoring.answers import scored_views, subject_of
from embedcache.scoring.calibration import ProbabilityUnits, calibration_gaps, losses
from embedcache.scoring.choices import Level
from embedcache.scoring.estimates import Estimate
from embedcache.scoring.ranking import rates_above, threshold_at
from embedcache.scoring.resampling import Weights, ece_interval, interval, resample_weights
from embedcache.scoring.subject import ScoreDraws, Subject

SPECIFICITY: Final = 0.95
_THRESHOLD: Final = "threshold_at_spec95"


class _Row(NamedTuple):
    metric: str
    label: str
    value: float
    low: float
    high: float


def evaluate(
    answers: Sequence[Answers], *, n_resamples: int = 10_000, seed: int = 0
) -> list[Estimate]:
    """Return every score of a run, with its interval, by image and, where defined, by patient.

    Scores of classes run over those that occur in the cohort. Where these are fewer than the
    model's, each is given twice, 'all' and 'masked'; see `Estimate`. Operating points are chosen on
    the in-domain answers and applied to the other cohorts as they are; without in-domain answers
    there are none. A score that is not defined, such as R2 where the truth does not vary, is left
    out.

    Parameters
    ----------
    answers
        Answers to one task, one of each cohort, those of the training cohort out of fold.
    n_resamples
        Number of resamples of patients.
    seed
        Seed of the bootstrap; the draws depend on the number of patients and the seed alone, so
        two encoders on the same patients share them.
    """
    inside = next((cohort for cohort in answers if cohort.role == "in-domain"), None)
    levels = [] if inside is None else [lev for lev, masked in scored_views(inside) if not masked]
    points = {
        level: operating_points(subject_of(inside, level=level))
        for level in levels
        if inside is not None
    }
    estimates = []
    for cohort in answers:
        weights = resample_weights(len(set(cohort.patient_id)), n_resamples, seed)
        for level, masked in scored_views(cohort):
            subject = subject_of(cohort, level=level, masked=masked)
            thresholds = {} if masked else points.get(level, {})
            rows = [*_rows(subject, weights, thresholds)]
            if cohort is inside:
                rows += [
                    _Row(_THRESHOLD, c, at, math.nan, math.nan) for c, at in thresholds.items()
                ]
            for suffix, units in subject.calibrations.items():
                rows += _calibration(units, weights, suffix)
            estimates += [_estimate(cohort, level, row, masked=masked) for row in rows]
    return estimates


def operating_points(subject: Subject) -> dict[str, float]:
    """Return the threshold of each class at which 95 % of the rest is refused."""
    thresholds = {n: threshold_at(r, SPECIFICITY) for n, r in subject.rankings.items()}
    return {name: threshold for name, threshold in thresholds.items() if threshold is not None}


def _rows(subject: Subject, weights: Weights, thresholds: Mapping[str, float]) -> Iterator[_Row]:
    whole, draws = (
        [*subject.scores(w), *_rates(subject, w, thresholds)] for w in (subject.everyone, weights)
    )
    for (metric, label, (value,)), (_, _, drawn) in zip(whole, draws, strict=True):
        if not math.isnan(value):  # as the specificity where there is one class only
            yield _Row(metric, label, float(value), *interval(drawn, subject.n_patients))


def _rates(
    subject: Subject, weights: Weights, thresholds: Mapping[str, float]
) -> Iterator[ScoreDraws]:
    for name, ranking in subject.rankings.items():
        if name in thresholds:
            sensitivity, specificity = rates_above(ranking, thresholds[name], weights)
            yield ScoreDraws("sensitivity_at_spec95", name, sensitivity)
            yield ScoreDraws("specificity_at_spec95", name, specificity)


def _calibration(units: ProbabilityUnits, weights: Weights, suffix: str) -> Iterator[_Row]:
    everyone = np.ones((1, units.n_patients))
    whole, draws = losses(units, everyone), losses(units, weights)
    for metric, (value,), drawn in zip(("log_loss", "brier"), whole, draws, strict=True):
        ends = interval(drawn, units.n_patients)
        yield _Row(f"{metric}{suffix}", "", float(value), *ends)
    (gaps,), drawn = (calibration_gaps(units, w) for w in (everyone, weights))
    ends = ece_interval(gaps, drawn, units.n_patients)
    yield _Row(f"ece{suffix}", "", float(np.abs(gaps).sum()), *ends)


def _estimate(cohort: Answers, level: Level, row: _Row, *, masked: bool) -> Estimate:
    return Estimate(
        cohort=", ".join(sorted(set(cohort.cohort))),
        role=cohort.role,
        scoring="masked" if masked else "all",
        level=level,
        metric=row.metric,
        label=row.label,
        value=row.value,
        low=row.low,
        high=row.high,
        n_patients=len(set(cohort.patient_id)),
        n_images=len(cohort.image_id),
    )
