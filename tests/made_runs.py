"""Runs made up for tests: answers under a record, stored as `once` stores them."""

from __future__ import annotations

from embedcache.data.question import Question
from embedcache.runs.files import RunFiles
from embedcache.runs.methods import ProbeMethod, ZeroShotMethod
from embedcache.runs.record import RunRecord
from embedcache.runs.request import RunData, RunRequest
from embedcache.scoring.evaluate import SCORES, evaluate

METHODS = {
    "probe": ProbeMethod(),
    "control": ProbeMethod(),
    "zeroshot": ZeroShotMethod(({"name": "a", "prompts": ["an a"]},), 100.0),
}


def made_request(
    encoder="e", *, kind="probe", method=None, task="classification", seed=0, constants=None, **data
):
    """A request of a kind of run, on the training cohort 'home' where the kind has one."""
    train_cohort = None if kind == "zeroshot" else "home"
    return RunRequest(
        kind=kind,
        encoder=encoder,
        fingerprint=f"f00d-{encoder}",
        question=Question(task=task, train_cohort=train_cohort, external=("abroad",), seed=seed),
        method=METHODS[kind] if method is None else method,
        data=RunData(**{"train": None, "external": (), "folds_id": None, "manifest": "", **data}),
        constants={"scores": SCORES} if constants is None else constants,
        n_resamples=100,
        versions={"numpy": "0"},
    )


def made_record(request, *, run_id=None, created="2025-01-01", results=None):
    """A record of a request, not stored yet."""
    return RunRecord(
        request=request,
        results=results or {},
        notes=(),
        n_skipped=0,
        created=created,
        seconds=1.0,
        tables={},
        stored_id=run_id,
    )


def store_run(
    project, run_id, encoder, answers, *, created="2025-01-01", fold_answers=(), **request
):
    """Score some answers and store them as a run of that name."""
    record = made_record(made_request(encoder, **request), run_id=run_id, created=created)
    estimates = evaluate(answers, n_resamples=100)
    return RunFiles(project.workspace).write(
        record, answers=answers, fold_answers=fold_answers, estimates=estimates
    )
