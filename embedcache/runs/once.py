"""Making a run once: the one place that looks it up, times it, scores it and writes it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from embedcache.data.predictions import Answers
from embedcache.errors import StoreReadError
from embedcache.files.durable import utc_now
from embedcache.runs.files import RunFiles
from embedcache.runs.outcome import RunOutcome
from embedcache.runs.record import RunRecord
from embedcache.runs.request import RunRequest
from embedcache.scoring.estimates import Estimate
from embedcache.scoring.evaluate import evaluate, notes_on_classes


@dataclass(frozen=True, slots=True)
class Computed:
    """What a method gave.

    Parameters
    ----------
    answers
        Predictions of each cohort, that of the training cohort first.
    fold_answers
        Predictions of each external cohort by each fold's model; see `Predictions.fold`.
    results
        What was chosen on the way, by name, as JSON can hold it.
    notes
        What a reader of the scores must know.
    estimates
        Scores, where the method brings its own; None to score the answers.
    """

    answers: Sequence[Answers] = ()
    fold_answers: Sequence[Answers] = ()
    results: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    estimates: Sequence[Estimate] | None = None


def once(
    runs: RunFiles,
    request: RunRequest,
    compute: Callable[[], Computed],
    *,
    n_skipped: int = 0,
    notes: Sequence[str] = (),
    on_wait: Callable[[], None] = lambda: None,
) -> RunOutcome:
    """Return a run: found again, or made and stored now.

    Parameters
    ----------
    runs
        Stored runs.
    request
        What decides the run.
    compute
        Makes the run; called only where nobody made it before.
    n_skipped
        Number of images left out because they could not be read.
    notes
        What a reader of the scores must know, as far as it is known before.
    on_wait
        Called once if another process is making the same run, before waiting for that.

    Raises
    ------
    StoreWriteError
        The storage refused; the run does not exist.
    """
    run_id = request.run_id
    if run_id in runs:
        return stored(runs, run_id)
    # Looked up again under the lock: another process may have made it meanwhile.
    with runs.lock(run_id, on_wait):
        if run_id in runs:
            return stored(runs, run_id)
        return _make(runs, request, compute, n_skipped, notes)


def _make(
    runs: RunFiles,
    request: RunRequest,
    compute: Callable[[], Computed],
    n_skipped: int,
    notes: Sequence[str],
) -> RunOutcome:
    """Compute a run, score it and store it."""
    start = time.perf_counter()
    computed = compute()
    estimates = computed.estimates
    if estimates is None:
        draws = {"n_resamples": request.n_resamples, "seed": request.question.seed}
        estimates = evaluate(computed.answers, **draws)
    skipped = f"{n_skipped} images left out: they could not be read"
    record = RunRecord(
        request=request,
        results=computed.results,
        notes=(
            *notes,
            *computed.notes,
            *notes_on_classes(computed.answers),
            *([skipped] if n_skipped else []),
        ),
        n_skipped=n_skipped,
        created=utc_now(),
        seconds=round(time.perf_counter() - start, 3),
        tables={},
    )
    record = runs.write(
        record,
        answers=computed.answers,
        fold_answers=computed.fold_answers,
        estimates=estimates,
    )
    return RunOutcome(
        record=record,
        estimates=tuple(estimates),
        answers=tuple(computed.answers),
        was_cached=False,
        folder=runs.folder / record.run_id,
    )


def stored(runs: RunFiles, run_id: str) -> RunOutcome:
    """Return a run that was made before.

    Raises
    ------
    StoreCorruptError
        A file of it is missing or damaged.
    StoreReadError
        It is whole, but its record says another question than its name.
    """
    record = runs.record(run_id)
    outcome = RunOutcome(
        record=record,
        estimates=runs.estimates(run_id),
        answers=runs.answers(run_id),
        was_cached=True,
        folder=runs.folder / run_id,
    )
    # The name is a digest of the question.
    if record.request.run_id != run_id or not _is_whole(outcome):
        raise StoreReadError(
            f"{outcome.folder} is no run of that name; remove it, then make the run again"
        )
    return outcome


def _is_whole(outcome: RunOutcome) -> bool:
    """Tell whether each cohort that was predicted has the score that its task is judged by."""
    scored = {(e.role, e.cohort) for e in outcome.headlines if e.scoring == "all"}
    predicted = {(cohort.role, cohort.cohort[0]) for cohort in outcome.answers}
    return bool(outcome.estimates) and (
        scored >= predicted if predicted else outcome.record.kind == "curve"
    )
