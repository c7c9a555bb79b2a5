"""A question asked several times: each repeat has a seed, and so folds, of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from embedcache.data.predictions import Role
from embedcache.data.question import Question
from embedcache.errors import RunError
from embedcache.runs.methods import DRAWING_PROTOCOLS, ProbeMethod
from embedcache.runs.outcome import RunOutcome
from embedcache.runs.repeats import group_repeats
from embedcache.scoring.answers import subjects_of
from embedcache.scoring.choices import Scoring
from embedcache.scoring.compare import spread
from embedcache.scoring.estimates import Estimate
from embedcache.scoring.jackknife import Spread
from embedcache.verbs.session import Session, Study


@dataclass(frozen=True, slots=True)
class RepeatedScore:
    """The score that one encoder and method is judged by, over its repeats.

    Parameters
    ----------
    encoder, fingerprint, method
        Name and fingerprint of the encoder, and the method in a few words.
    cohort, role, scoring, metric, label
        What was scored, and how; see `Estimate`.
    value
        Mean of the repeats.
    low, high
        Ends of the 95 % interval of the mean; NaN where there are fewer than two patients.
    least, most
        Range of the repeats.
    n_patients, n_images
        Numbers of patients and of images that were scored.
    run_ids
        Names of the runs, by ascending seed.
    """

    encoder: str
    fingerprint: str
    method: str
    cohort: str
    role: Role
    scoring: Scoring
    metric: str
    label: str
    value: float
    low: float
    high: float
    least: float
    most: float
    n_patients: int
    n_images: int
    run_ids: tuple[str, ...]


def repeated_studies(session: Session, question: Question, n_repeats: int) -> list[Study]:
    """Return the study of each repeat: the same images, each with the next seed.

    Raises
    ------
    RunError
        The question cannot be answered; see `Session.study`.
    """
    seeds = range(question.seed, question.seed + n_repeats)
    return [session.study(replace(question, seed=seed)) for seed in seeds]


def check_repeats_differ(studies: Sequence[Study], method: ProbeMethod) -> None:
    """Refuse repeats of a probe where no seed moves anything.

    Raises
    ------
    RunError
        There are several repeats, all have the same folds, and the protocol draws nothing.
    """
    is_fixed = len({study.folds.folds_id for study in studies}) == 1
    if len(studies) > 1 and is_fixed and method.protocol not in DRAWING_PROTOCOLS:
        column = studies[0].question.folds_by
        folds = "the folds that were given" if column is None else f"folds by '{column}'"
        raise RunError(
            f"{len(studies)} repeats of a probe would all be the same: no seed moves {folds}; "
            "leave out --repeats, or pass a number as --folds"
        )


def repeated_scores(runs: Sequence[RunOutcome]) -> Iterator[RepeatedScore]:
    """Yield the scores that runs are judged by, once for all repeats of an encoder and method."""
    for repeats in group_repeats(runs):
        record = repeats[0].record
        for headline in repeats[0].headlines:
            key = _key(headline)
            estimates = [e for run in repeats for e in run.headlines if _key(e) == key]
            mean = _spread(repeats, headline)
            yield RepeatedScore(
                encoder=record.encoder,
                fingerprint=record.fingerprint,
                method=record.label,
                cohort=headline.cohort,
                role=headline.role,
                scoring=headline.scoring,
                metric=headline.metric,
                label=headline.label,
                value=mean.value,
                low=mean.low,
                high=mean.high,
                least=min(estimate.value for estimate in estimates),
                most=max(estimate.value for estimate in estimates),
                n_patients=headline.n_patients,
                n_images=headline.n_images,
                run_ids=tuple(run.run_id for run in repeats),
            )


def _spread(repeats: Sequence[RunOutcome], score: Estimate) -> Spread:
    """Return the mean of a score over repeats, with its interval."""
    is_masked = score.scoring == "masked"
    answers = [
        cohort for run in repeats for cohort in run.answers if cohort.cohort[0] == score.cohort
    ]
    return spread(subjects_of(answers, masked=is_masked), score.metric)


def _key(score: Estimate) -> tuple[str, str, str]:
    return score.cohort, score.scoring, score.label
