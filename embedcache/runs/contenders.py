"""Which runs can be held against each other: those on the same images, labels and folds."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np

from embedcache.data.predictions import Answers
from embedcache.errors import RunError, StoreCorruptError, StoreReadError
from embedcache.runs.candidates import candidates, leading_record
from embedcache.runs.files import RunFiles
from embedcache.runs.outcome import RunOutcome
from embedcache.runs.record import RunRecord, command_lines
from embedcache.runs.repeats import given_folds, is_seedless, repeat_key
from embedcache.scoring.estimates import Estimate

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Contender:
    """One encoder and method, with what its repeats predicted.

    Parameters
    ----------
    records
        Record of each run, by ascending seed; of one alone where no seed moves the answers.
    cohorts
        Predictions of each repeat by name of the cohort, that of the training cohort first; images
        by name, repeats by ascending seed. All contenders of a contest have equally many.
    estimates
        Every score of the first run with its interval.
    """

    records: tuple[RunRecord, ...]
    cohorts: Mapping[str, tuple[Answers, ...]]
    estimates: tuple[Estimate, ...]

    @property
    def record(self) -> RunRecord:
        """Record of the run with the least seed."""
        return self.records[0]

    @property
    def run_ids(self) -> tuple[str, ...]:
        """Name of each run, by ascending seed."""
        return tuple(record.run_id for record in self.records)

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seed of each run, ascending."""
        return tuple(record.seed for record in self.records)

    @property
    def trained_on(self) -> str | None:
        """Cohort that the runs predicted out of fold; None where they were trained on none."""
        return _trained_on({name: repeats[0] for name, repeats in self.cohorts.items()})


@dataclass(frozen=True, slots=True)
class Contest:
    """Contenders, and what they can be compared on.

    Parameters
    ----------
    contenders
        Contenders by the shortest name that tells each from the others.
    cohorts
        Cohorts to compare on, as the leading run predicted them.
    notes
        Runs that were left out, with the reason.
    """

    contenders: Mapping[str, Contender]
    cohorts: Mapping[str, Answers]
    notes: tuple[str, ...]


class _Run(NamedTuple):
    """A run that was read: its record, its predictions by cohort, and its scores."""

    record: RunRecord
    cohorts: Mapping[str, Answers]
    estimates: tuple[Estimate, ...]


# A contender before it is known which seeds all of them have: its runs by seed, the one that leads
# first. The seed is None of a run whose answers no seed moves: it stands beside any seed.
_Entrant = Mapping[int | None, _Run]


def contest_of(outcomes: Sequence[RunOutcome]) -> Contest:
    """Return the contest of runs that were just made or found again; the first of them leads."""
    runs = {run.run_id: _run(run.record, run.answers, run.estimates) for run in outcomes}
    records = [run.record for run in runs.values()]
    return _contest(records, lambda record: runs[record.run_id], _name_of)


def choose_runs(
    runs: RunFiles,
    models: Sequence[str] | None,
    run_ids: Sequence[str] | None,
    metric: str | None = None,
) -> Contest:
    """Return the contest of stored runs.

    The first run that was trained leads: cohorts and task are its own, and a run on other images,
    labels or folds is left out. Of repeats those count whose seed and folds all contenders have.

    Parameters
    ----------
    runs
        Stored runs.
    models
        Names of encoders; None for all. The latest run of each encoder and method that fits counts,
        with its repeats; controls do not.
    run_ids
        Names of runs, instead; of controls too.
    metric
        Name of the score to compare by; None for the one that the newest run is judged by.

    Raises
    ------
    RunError
        There is no such run, or one without predictions of images.
    """
    records = candidates(runs, models, run_ids)
    read = partial(_read_run, runs, is_named=bool(run_ids))
    leading = _read_leader(runs, records, metric, read)
    leader = leading.record
    same_task = [leader, *(r for r in records if r is not leader and r.task == leader.task)]
    others = [record for record in records if record.task != leader.task]
    if others and run_ids:
        raise RunError(
            f"run '{others[0].run_id}' is of {others[0].task}, '{leader.run_id}' of {leader.task}; "
            "name runs of one task"
        )
    contest = _contest(
        same_task,
        lambda record: leading if record is leader else read(record),
        _name_of if run_ids else _method_of,
        given_folds(runs.workspace, same_task),
    )
    if not others:
        return contest
    tasks = ", ".join(sorted({record.task for record in others}))
    note = f"{len(others)} runs of {tasks} left out: '{leader.run_id}' is of {leader.task}"
    return replace(contest, notes=(*contest.notes, note))


def _read_run(runs: RunFiles, record: RunRecord, *, is_named: bool) -> _Run | None:
    """Return a stored run; None, which the log says, where it is damaged and not named."""
    try:
        return _run(record, runs.answers(record.run_id), runs.estimates(record.run_id))
    except (StoreCorruptError, StoreReadError) as error:
        if is_named:
            raise
        _log.warning("run '%s' is left out: %s", record.run_id, error)
        return None


def _run(record: RunRecord, answers: Sequence[Answers], estimates: tuple[Estimate, ...]) -> _Run:
    # All runs in one order of images: they are compared row by row.
    by_name = {cohort.cohort[0]: cohort.take(np.argsort(cohort.image_id)) for cohort in answers}
    return _Run(record, by_name, estimates)


def _read_leader(
    runs: RunFiles,
    records: list[RunRecord],
    metric: str | None,
    read: Callable[[RunRecord], _Run | None],
) -> _Run:
    """Return the run that leads; damaged ones that would, leave the records."""
    while records:
        leader = leading_record(records, metric)
        run = read(leader)
        if run is not None:
            return run
        records.remove(leader)
    raise RunError(
        f"{runs.folder.parent}: every run that fits is damaged; run `embedcache verify --repair`, "
        "then make them again"
    )


def _contest(
    records: Sequence[RunRecord],
    read: Callable[[RunRecord], _Run | None],
    identity: Callable[[RunRecord], Hashable],
    given: Collection[str] = (),
) -> Contest:
    """Return the contest of some runs, led by the first.

    Parameters
    ----------
    records
        Records of the runs; where several have one identity, the first that fits counts.
    read
        Function that returns a run; None for a damaged one.
    identity
        Function that returns what another run of the same would be another version of.
    given
        Names of the fold tables that were given; see `given_folds`.
    """
    entrants: dict[Hashable, _Entrant] = {}
    left_out: dict[Hashable, str] = {}
    leader: _Entrant = {}
    seeds: set[int | None] = {None}  # those that all entrants have; so far any
    for repeats in _grouped(records, given):
        # Newest first: where the newest does not fit, an older one of the same method may.
        key = identity(next(iter(repeats.values())))
        if key in entrants:
            continue
        entrant = {seed: run for seed, record in repeats.items() if (run := read(record))}
        if not entrant:
            continue
        leader = leader or entrant
        shared, reason = _shared_seeds(leader, entrant, seeds)
        if shared:
            entrants[key], seeds = entrant, shared
        else:
            ours, theirs = (_first(runs).record.run_id for runs in (leader, entrant))
            left_out.setdefault(key, f"{theirs} left out: {reason} than {ours}")
    notes = [note for key, note in left_out.items() if key not in entrants]
    named, more = _contenders(list(entrants.values()), seeds)
    return Contest(named, _first(leader).cohorts, (*notes, *more, *_version_notes(named)))


def _contenders(
    entrants: Sequence[_Entrant], seeds: Collection[int | None]
) -> tuple[dict[str, Contender], list[str]]:
    """Return entrants by name, with their repeats of some seeds, and a note on other repeats."""
    contenders = [_contender(entrant, seeds) for entrant in entrants]
    n_left = {
        contender.record.run_id: len(entrant) - len(contender.records)
        for entrant, contender in zip(entrants, contenders, strict=True)
    }
    named = _named(contenders)
    parts = [f"{n} of {name}" for name, c in named.items() if (n := n_left[c.record.run_id])]
    if not parts:
        return named, []
    note = f"repeats left out, for not every run has their folds: {', '.join(parts)}"
    every = {seed for entrant in entrants for seed in entrant if seed is not None}
    lacking = [
        contender.record
        for entrant, contender in zip(entrants, contenders, strict=True)
        if None not in entrant and every - entrant.keys()
    ]
    if lacking:
        first, n_repeats = min(every), max(every) - min(every) + 1
        options = f"{f' --seed {first}' if first else ''} --repeats {n_repeats}"
        note += f"; {command_lines(lacking, options)} makes those that are missing"
    return named, [note]


def _version_notes(contenders: Mapping[str, Contender]) -> Iterator[str]:
    """Yield a note on each protocol that stands there in several versions."""
    by_protocol: dict[Hashable, dict[str, list[str]]] = {}
    for name, contender in contenders.items():
        method = contender.record.method
        protocol = method.tag, getattr(method, "protocol", None)
        version = str(contender.record.request.constants.get("protocol", "none"))
        by_protocol.setdefault(protocol, {}).setdefault(version, []).append(name)
    for versions in by_protocol.values():
        if len(versions) > 1:
            parts = [f"{version} of {', '.join(names)}" for version, names in versions.items()]
            yield (
                f"runs by several versions of a protocol: {'; '.join(sorted(parts))}; make the "
                "older ones again"
            )


def _grouped(
    records: Iterable[RunRecord], given: Collection[str]
) -> list[dict[int | None, RunRecord]]:
    """Return runs with their repeats by seed, in the order of the first; see `_Entrant`.

    Of two runs that differ in nothing, the later one is in a group of its own.
    """
    groups: dict[Hashable, dict[int | None, RunRecord]] = {}
    for record in records:
        seed = None if is_seedless(record, given) else record.seed
        key, number = repeat_key(record, given), 0
        while seed in groups.setdefault((key, number), {}):
            number += 1
        groups[key, number][seed] = record
    return list(groups.values())


def _shared_seeds(
    leader: _Entrant, entrant: _Entrant, seeds: set[int | None]
) -> tuple[set[int | None], str]:
    """Return those seeds at which an entrant can be compared, and the reason where there is none.

    Parameters
    ----------
    leader, entrant
        The entrant that leads, and the one in question.
    seeds
        Seeds that all entrants so far share; None alone for any.
    """
    if seeds == {None}:
        common = set(entrant)
    else:
        common = seeds if None in entrant else seeds & entrant.keys()
    reasons = {
        seed: _difference(_first(leader), _at(leader, seed), _at(entrant, seed)) for seed in common
    }
    shared = {seed for seed, reason in reasons.items() if not reason}
    reasons = reasons or {None: _difference(_first(leader), _first(leader), _first(entrant))}
    return shared, next(filter(None, reasons.values()), "other seeds")


def _first(entrant: _Entrant) -> _Run:
    return next(iter(entrant.values()))


def _at(entrant: _Entrant, seed: int | None) -> _Run:
    """Return the run of a seed, or the one that stands beside any."""
    return entrant[seed] if seed in entrant else entrant[None]


def _contender(entrant: _Entrant, seeds: Collection[int | None]) -> Contender:
    """Return an entrant with its repeats of some seeds."""
    runs = [_at(entrant, seed) for seed in sorted(seeds, key=lambda seed: seed or 0)]
    names = [name for name in runs[0].cohorts if all(name in run.cohorts for run in runs)]
    return Contender(
        tuple(run.record for run in (runs[:1] if None in entrant else runs)),
        {name: tuple(run.cohorts[name] for run in runs) for name in names},
        runs[0].estimates,
    )


def _name_of(record: RunRecord) -> Hashable:
    return record.run_id


def _method_of(record: RunRecord) -> Hashable:
    """Return what another run of the same would be a newer version of."""
    return record.encoder, record.fingerprint, record.label


def _trained_on(cohorts: Mapping[str, Answers]) -> str | None:
    return next((name for name, cohort in cohorts.items() if cohort.role == "in-domain"), None)


def _difference(leading: _Run, beside: _Run, other: _Run) -> str:
    """Return what keeps a run from being compared, '' where nothing does.

    Parameters
    ----------
    leading
        Run that gives cohorts, images, patients and labels.
    beside
        Run of the leader's that has the seed in question: it gives the folds.
    other
        Run in question.
    """
    trained_on = _trained_on(other.cohorts)
    if trained_on and _trained_on(leading.cohorts) not in {None, trained_on}:
        return f"trained on another cohort ('{trained_on}')"
    shared = [name for name in leading.cohorts if name in other.cohorts]
    if not shared:
        return "other cohorts"
    for name in shared:
        ours, theirs = leading.cohorts[name], other.cohorts[name]
        if ours.image_id != theirs.image_id:
            n_ours, n_theirs = len(ours.image_id), len(theirs.image_id)
            return f"other images of '{name}' ({n_theirs}, not {n_ours})"
        if (ours.patient_id, ours.targets) != (theirs.patient_id, theirs.targets):
            return f"other patients or labels in '{name}'"
        # Only in equal roles has the cohort folds to compare.
        tested = beside.cohorts.get(name, ours)
        if tested.role == theirs.role and not np.array_equal(tested.fold, theirs.fold):
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
