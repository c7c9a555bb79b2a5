"""Which stored runs a comparison is asked to be about, and which of them leads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from embedcache.errors import RunError
from embedcache.runs.files import RunFiles
from embedcache.runs.methods import UnknownMethod
from embedcache.runs.record import RunRecord
from embedcache.runs.request import MODEL_KINDS
from embedcache.scoring.estimates import HEADLINES, has_metric

_ALL: Final = "all"


def candidates(
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


def leading_record(records: Sequence[RunRecord], metric: str | None) -> RunRecord:
    """Return the run whose cohorts and task the contest is about."""
    # A zero-shot run has no training cohort, so it cannot say which one the contest is about.
    # A metric of other tasks alone picks the newest run of theirs.
    trained = [record for record in records if record.train_cohort] or records
    of_metric = [record for record in trained if metric is None or has_metric(record.task, metric)]
    return (of_metric or trained)[0]
