"""A run's record as a row of the SQL table `runs`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from embedcache.catalog.sources import RunRow
from embedcache.runs.methods import ProbeMethod
from embedcache.runs.record import RunRecord


def run_row(record: RunRecord) -> RunRow:
    """Return the row of `runs` of a run."""
    request = record.request
    question, method = request.question.document(), request.method.document()
    probe = request.method if isinstance(request.method, ProbeMethod) else None
    settings = {
        **method,
        **request.constants,
        **question,
        "external_by": request.method.external_by,
        "n_resamples": request.n_resamples,
    }
    return RunRow(
        run_id=record.run_id,
        kind=record.kind,
        task=record.task,
        encoder=record.encoder,
        fingerprint=record.fingerprint,
        probe=None if probe is None else probe.probe,
        protocol=None if probe is None else probe.protocol,
        rule=None if probe is None else probe.rule,
        regime=record.regime,
        external_by=request.method.external_by,
        label_column=request.question.label,
        train_cohort=record.train_cohort,
        # Every question has a number of folds, also that of a run without training.
        n_folds=request.question.n_folds if request.data.folds_id else None,
        folds_id=request.data.folds_id,
        seed=request.question.seed,
        n_resamples=request.n_resamples,
        created=record.created,
        seconds=record.seconds,
        question=_json(question),
        method=_json(method),
        settings=_json(settings),
        results=_json(record.results_document()),
    )


def _json(document: Mapping[str, Any]) -> str:
    return json.dumps(document, sort_keys=True)
