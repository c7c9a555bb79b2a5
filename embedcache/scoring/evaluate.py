"""Every score of a run's answers, with intervals over patients, not images.

Frames of one patient resemble each other, so an interval over images is far too narrow. The models
stay fixed, so an interval says how the score varies with the patients tested, not with those
trained on. See docs/protocol.md, 'Scores' and 'Intervals'.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import numpy as np

from embedcache.data.predictions import Answers, Predictions
from embedcache.scoring.answers import scored_views, subject_of
from embedcache.scoring.calibration import calibration_gaps, losses
from embedcache.scoring.choices import Level
from embedcache.scoring.estimates import Estimate
from embedcache.scoring.jackknife import Spread
from embedcache.scoring.operating import operating_points, rates_above, rates_out_of_fold
from embedcache.scoring.recalibration import recalibration
from embedcache.scoring.resampling import ece_interval, resample_weights
from embedcache.scoring.subject import Score, Subject

SCORES: Final = "scores-2"  # version of the scores and their intervals, in the record of a run
_THRESHOLD: Final = "threshold_at_spec95"


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
        Number of resamples of patients behind the interval of the ECE; the others draw nothing.
    seed
        Seed of these resamples.
    """
    inside = next((cohort for cohort in answers if cohort.role == "in-domain"), None)
    levels = [] if inside is None else [lev for lev, masked in scored_views(inside) if not masked]
    points = {
        level: operating_points(subject_of(inside, level=level))
        for level in levels
        if inside is not None
    }
    return [
        _estimate(cohort, level, row, masked=masked)
        for cohort in answers
        for level, masked in scored_views(cohort)
        for row in _rows(
            subject_of(cohort, level=level, masked=masked),
            {} if masked else points.get(level, {}),
            n_resamples,
            seed,
            out_of_fold=cohort is inside,
        )
        if not math.isnan(row[-1].value)  # as the specificity where there is one class only
    ]


def _rows(
    subject: Subject,
    thresholds: Mapping[str, float],
    n_resamples: int,
    seed: int,
    *,
    out_of_fold: bool,
) -> Iterator[tuple[str, str, Spread]]:
    """Yield metric, label and score with interval."""
    for score in (*subject.scores(), *_rates(subject, thresholds, out_of_fold=out_of_fold)):
        yield score.metric, score.label, score.spread
    for name, threshold in thresholds.items() if out_of_fold else ():
        yield _THRESHOLD, name, Spread(threshold, math.nan, math.nan)
    yield from _calibration(subject, n_resamples, seed)


def _rates(
    subject: Subject, thresholds: Mapping[str, float], *, out_of_fold: bool
) -> Iterator[Score]:
    for name, ranking in subject.rankings.items():
        if name not in thresholds:
            continue
        if out_of_fold:
            yield from rates_out_of_fold(ranking, name)
        else:
            yield from rates_above(ranking, name, thresholds[name])


def _calibration(
    subject: Subject, n_resamples: int, seed: int
) -> Iterator[tuple[str, str, Spread]]:
    if not subject.calibrations:
        return
    weights = resample_weights(subject.n_patients, n_resamples, seed)
    everyone = np.ones((1, subject.n_patients))
    for suffix, units in subject.calibrations.items():
        for score in losses(units):
            yield f"{score.metric}{suffix}", "", score.spread
        (gaps,), drawn = (calibration_gaps(units, w) for w in (everyone, weights))
        ends = ece_interval(gaps, drawn, units.n_patients)
        yield f"ece{suffix}", "", Spread(float(np.abs(gaps).sum()), *ends)
        for score in recalibration(units):
            yield f"{score.metric}{suffix}", score.label, score.spread


def _estimate(
    cohort: Answers, level: Level, row: tuple[str, str, Spread], *, masked: bool
) -> Estimate:
    metric, label, spread = row
    return Estimate(
        cohort=", ".join(sorted(set(cohort.cohort))),
        role=cohort.role,
        scoring="masked" if masked else "all",
        level=level,
        metric=metric,
        label=label,
        value=spread.value,
        low=spread.low,
        high=spread.high,
        n_patients=len(set(cohort.patient_id)),
        n_images=len(cohort.image_id),
    )


def notes_on_classes(answers: Sequence[Answers]) -> Iterator[str]:
    """Say which classes a cohort has from so few patients that other patients might lack them."""
    for cohort in answers:
        if not isinstance(cohort, Predictions):
            continue
        for label, share in classes_often_missing(cohort.label, cohort.patient_id).items():
            yield (
                f"'{cohort.cohort[0]}': {share:.0%} of samples of as many patients would lack "
                f"class '{label}', and have scores over other classes"
            )


def classes_often_missing(
    labels: Sequence[str], patients: Sequence[str], share: float = 0.01
) -> dict[str, float]:
    """Return the classes that many samples of patients would lack, each with the share that does.

    Of n patients, m with images of the class, that share is (1 - m / n)^n: 5 % for three patients.

    Parameters
    ----------
    labels, patients
        Class and patient of each of the n images.
    share
        Largest share of samples without a class that goes without saying, from 0 to 1.
    """
    holders: dict[str, set[str]] = {}
    for label, patient in zip(labels, patients, strict=True):
        holders.setdefault(label, set()).add(patient)
    n_patients = len(set(patients))
    missing = {c: (1 - len(holders[c]) / n_patients) ** n_patients for c in sorted(holders)}
    return {name: missed for name, missed in missing.items() if missed > share}
