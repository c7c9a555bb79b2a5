"""Which runs are repeats of one another: they differ in their seed, and so in folds, alone."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable
from contextlib import suppress
from dataclasses import replace

from embedcache.data.fold_tables import read_fold_table
from embedcache.data.folds import given_identity
from embedcache.errors import StoreCorruptError, StoreReadError
from embedcache.files.durable import canonical_json
from embedcache.runs.methods import DRAWING_PROTOCOLS, ProbeMethod
from embedcache.runs.outcome import RunOutcome
from embedcache.runs.record import RunRecord
from embedcache.workspace import Workspace


def repeat_key(record: RunRecord, given: Collection[str] = ()) -> Hashable:
    """Return what a run shares with its repeats and with no other run.

    That is the encoder, the question and the method but for the seed, and digests of the rows.
    Versions of libraries and the number of resamples play no part.

    Parameters
    ----------
    record
        Record of the run.
    given
        Names of the fold tables that were given; see `given_folds`.
    """
    request = record.request
    folds_id = request.data.folds_id if request.data.folds_id in given else None
    shared = [
        request.kind,
        request.encoder,
        request.fingerprint,
        {**request.question.document(), "seed": None},
        {**request.method.document(), "seed": None},
        replace(request.data, folds_id=folds_id, manifest="").document(),
        dict(request.constants),
    ]
    return canonical_json(shared)


def group_repeats(runs: Iterable[RunOutcome]) -> list[tuple[RunOutcome, ...]]:
    """Return runs with their repeats, by ascending seed; groups are in the order of their first."""
    groups: dict[Hashable, list[RunOutcome]] = {}
    for run in runs:
        groups.setdefault(repeat_key(run.record), []).append(run)
    return [tuple(sorted(group, key=lambda run: run.record.seed)) for group in groups.values()]


def given_folds(workspace: Workspace, records: Iterable[RunRecord]) -> frozenset[str]:
    """Return the names of the fold tables of some runs that were given, not drawn with a seed."""
    given = set()
    for folds_id in {record.request.data.folds_id for record in records} - {None}:
        with suppress(StoreCorruptError, StoreReadError):  # `verify` tells of a damaged table
            patients = read_fold_table(workspace, str(folds_id))
            if patients is not None and given_identity(patients) == folds_id:
                given.add(folds_id)
    return frozenset(given)


def is_seedless(record: RunRecord, given: Collection[str]) -> bool:
    """Tell whether a run gives the same answers with every seed.

    Nothing was trained, or a probe whose protocol draws nothing was fitted on folds that no seed
    moves: given ones, or those of a manifest column.

    Parameters
    ----------
    record
        Record of the run.
    given
        Names of the fold tables that were given; see `given_folds`.
    """
    data, question = record.request.data, record.request.question.document()
    is_fixed = data.folds_id in given or question.get("folds_by") is not None
    draws = not isinstance(record.method, ProbeMethod) or (
        record.method.protocol in DRAWING_PROTOCOLS
    )
    return record.train_cohort is None or (is_fixed and not draws)
