"""Which runs can be held against each other: those on the same images, labels and folds."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import numpy as np

from embedcache.data.predictions import Answers
from embedcache.errors import RunError, StoreCorruptError, StoreReadError
from embedcache.runs.files import RunFiles
from embedcache.runs.methods import UnknownMethod
from embedcache.runs.outcome import RunOutcome
from embedcache.runs.record import RunRecord
from embedcache.runs.request import MODEL_KINDS
from embedcache.scoring.estimates import HEADLINES, Estimate, has_metric

_log = logging.getLogger(__name__)

_ALL: Final = "all"


@dataclass(frozen=True, slots=True)
class Contender:
    """A run with what it predicted.

    Parameters
    ----------
    record
        Record of the run.
    cohorts
        Predictions by name of the cohort, that of the training cohort first; images by name.
    estimates
        Every score with its interval.
    """

    record: RunRecord
    cohorts: Mapping[str, Answers]
    estimates: tuple[Estimate, ...]

    @property
    def trained_on(self) -> str | None:
        """Cohort that the run predicted out of fold; None where it was trained on none."""
        return next((n for n, cohort in self.cohorts.items() if cohort.role == "in-domain"), None)


@dataclass(frozen=True, slots=True)
class Contest:
    """Runs that can be compared, and what on.

    Parameters
    ----------
    contenders
        Runs by the shortest name that tells each from the others.
    cohorts
        Cohorts to compare on, as the leading run predicted them.
    notes
        Runs that were left out, with the reason.
    """

    contenders: Mapping[str, Contender]
    cohorts: Mapping[str, Answers]
    notes: tuple[str, ...]


def contest_of(outcomes: Sequence[RunOutcome]) -> Contest:
    """Return the contest of runs that were just made or found again."""
    contenders = [_contender(run.record, run.answers, run.estimates) for run in outcomes]
    return _contest(contenders, lambda contender: contender.record.run_id)


def choose_runs(
    runs: RunFiles,
    models: Sequence[str] | None,
    run_ids: Sequence[str] | None,
    metric: str | None = None,
) -> Contest:
    """Return the contest of stored runs.

    The first run that was trained leads: cohorts and task are its own, and a run on other images,
    labels or folds is left out.

    Parameters
    ----------
    runs
        Stored runs.
    models
        Names of encoders; None for all. The latest run of each encoder and each method that fits
        counts; controls do not.
    run_ids
        Names of runs, instead; of controls too.
    metric
        Name of the score to compare by; None for the one that the newest run is judged by.

    Raises
    ------
    RunError
        There is no such run, or one without predictions of images.
    """
    records = _candidates(runs, models, run_ids)
    read = partial(_read_contender, runs, is_named=bool(run_ids))
    leading = _read_leader(runs, records, metric, read)
    leader = leading.record
    ordered = [leader, *(record for record in records if record is not leader)]
    same_task = [record for record in ordered if record.task == leader.task]
    others = [record for record in ordered if record.task != leader.task]
    if others and run_ids:
        raise RunError(
            f"run '{others[0].run_id}' is of {others[0].task}, '{leader.run_id}' of {leader.task}; "
            "name runs of one task"
        )
    contenders = [leading, *filter(None, map(read, same_task[1:]))]
    contest = _contest(contenders, (lambda c: c.record.run_id) if run_ids else _method_of)
    if not others:
        return contest
    tasks = ", ".join(sorted({record.task for record in others}))
    note = f"{len(others)} runs of {tasks} left out: '{leader.run_id}' is of {leader.task}"
    return replace(contest, notes=(*contest.notes, note))


def _read_contender(runs: RunFiles, record: RunRecord, *, is_named: bool) -> Contender | None:
    """Return a stored run; None, which the log says, where it is damaged and not named."""
    try:
        return _contender(record, runs.answers(record.run_id), runs.estimates(record.run_id))
    except (StoreCorruptError, StoreReadError) as error:
        if is_named:
            raise
        _log.warning("run '%s' is left out: %s", record.run_id, error)
        return None


def _read_leader(
    runs: RunFiles,
    records: list[RunRecord],
    metric: str | None,
    read: Callable[[RunRecord], Contender | None],
) -> Contender:
    """Return the run that leads; damaged ones that would, leave the records."""
    while records:
        leader = _leader(records, metric)
        contender = read(leader)
        if contender is not None:
            return contender
        records.remove(leader)
    raise RunError(
        f"{runs.folder.parent}: every run that fits is damaged; run `embedcache verify --repair`, "
        "then make them again"
    )


def _leader(records: Sequence[RunRecord], metric: str | None) -> RunRecord:
    """Return the run whose cohorts and task the contest is about."""
    # A zero-shot run has no training cohort, so it cannot say which one the contest is about.
    # A metric of other tasks alone picks the newest run of theirs.
    trained = [record for record in records if record.train_cohort] or records
    of_metric = [record for record in trained if metric is None or has_metric(record.task, metric)]
    return (of_metric or trained)[0]


def _contender(
    record: RunRecord, answers: Sequence[Answers], estimates: tuple[Estimate, ...]
) -> Contender:
    # All runs in one order of images: they are compared row by row.
    by_name = {cohort.cohort[0]: cohort.take(np.argsort(cohort.image_id)) for cohort in answers}
    return Contender(record, by_name, estimates)


def _contest(contenders: Sequence[Contender], identity: Callable[[Contender], Hashable]) -> Contest:
    """Return the contest, led by the first; of runs with one identity, the first that fits."""
    leader = contenders[0]
    fitting: dict[Hashable, Contender] = {}
    left_out: dict[Hashable, str] = {}
    for contender in contenders:
        # Newest first: where the newest does not fit, an older one of the same method may.
        key = identity(contender)
        if key in fitting:
            continue
        reason = _difference(leader, contender)
        if reason:
            note = f"{contender.record.run_id} left out: {reason} than {leader.record.run_id}"
            left_out.setdefault(key, note)
        else:
            fitting[key] = contender
    notes = tuple(note for key, note in left_out.items() if key not in fitting)
    return Contest(_named(list(fitting.values())), leader.cohorts, notes)


def _candidates(
    runs: RunFiles, models: Sequence[str] | None, run_ids: Sequence[str] | None
) -> list[RunRecord]:
    """Return the records of the runs that were asked for: as named, or the newest first."""
    if run_ids:
        return [_named_run(runs, run_id) for run_id in dict.fromkeys(run_ids)]
    records = [
        record
        for record in runs.readable_records()
        if record.kind in MODEL_KINDS and _has_predictions(record)
    ]
    if not records:
        raise RunError(
            f"{runs.folder.parent} holds no runs to compare; run `embedcache probe -m all`"
        )
    # By name among runs of one moment, so that the order is always the same.
    newest = sorted(records, key=lambda record: (record.created, record.run_id))[::-1]
    for model in models or ():
        if not any(_is_of(record, model) for record in newest):
            names = ", ".join(sorted({record.encoder for record in newest}))
            raise RunError(f"no run of '{model}'; there are runs of {names}")
    wanted = models or (_ALL,)
    return [record for record in newest if any(_is_of(record, model) for model in wanted)]


def _named_run(runs: RunFiles, run_id: str) -> RunRecord:
    if run_id not in runs:
        raise RunError(
            f"no run '{run_id}' in {runs.folder.parent}; `embedcache sql \"FROM runs\"` lists the "
            f"{len(runs.ids())} that it holds"
        )
    record = runs.record(run_id)
    if record.kind == "curve":
        raise RunError(f"run '{run_id}' is a learning curve; expected a probe or zeroshot")
    if not _has_predictions(record):
        raise RunError(
            f"run '{run_id}' is of kind '{record.kind}' and task '{record.task}', and has no "
            "predictions that this release can compare; name runs of another kind"
        )
    return record


def _has_predictions(record: RunRecord) -> bool:
    """Tell whether a run has predictions of a kind that is known here."""
    is_known = record.kind in MODEL_KINDS | {"control"} and record.task in HEADLINES
    is_known = is_known and not isinstance(record.method, UnknownMethod)
    return is_known and "predictions" in record.tables


def _is_of(record: RunRecord, model: str) -> bool:
    name, _, prefix = model.partition("@")
    # As everywhere, an underscore in a name is taken for a hyphen.
    is_same = record.encoder.replace("_", "-") == name.replace("_", "-")
    return model == _ALL or (is_same and record.fingerprint.startswith(prefix))


def _method_of(contender: Contender) -> Hashable:
    """Return what another run of the same would be a newer version of."""
    record = contender.record
    return record.encoder, record.fingerprint, record.label


def _difference(leader: Contender, other: Contender) -> str:
    """Return what keeps two runs from being compared, '' where nothing does."""
    trained_on = other.trained_on
    if trained_on and leader.trained_on not in {None, trained_on}:
        return f"trained on another cohort ('{trained_on}')"
    shared = [name for name in leader.cohorts if name in other.cohorts]
    if not shared:
        return "other cohorts"
    for name in shared:
        ours, theirs = leader.cohorts[name], other.cohorts[name]
        if ours.image_id != theirs.image_id:
            n_ours, n_theirs = len(ours.image_id), len(theirs.image_id)
            return f"other images of '{name}' ({n_theirs}, not {n_ours})"
        if (ours.patient_id, ours.targets) != (theirs.patient_id, theirs.targets):
            return f"other patients or labels in '{name}'"
        # Only in equal roles has the cohort folds to compare.
        if ours.role == theirs.role and (ours.fold != theirs.fold).any():
            return f"other folds of '{name}'"
    return ""


def _named(contenders: Sequence[Contender]) -> dict[str, Contender]:
    """Give each run the shortest name that tells it from the others."""
    schemes: tuple[Callable[[RunRecord], str], ...] = (
        lambda record: record.encoder,
        lambda record: f"{record.encoder} ({record.label})",
        lambda record: f"{record.encoder}@{record.fingerprint[:12]} ({record.label})",
        lambda record: record.run_id,
    )
    is_mixed = len({contender.record.label for contender in contenders}) > 1
    named: dict[str, Contender] = {}
    # Several methods: the encoder's name alone would not say which is which.
    for scheme in schemes[is_mixed:]:
        named = {scheme(contender.record): contender for contender in contenders}
        if len(named) == len(contenders):
            break
    return dict(sorted(named.items()))
