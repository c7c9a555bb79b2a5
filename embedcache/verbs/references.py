"""Making again what runs name but that is gone: fold tables and the remembered manifest."""

from __future__ import annotations

import contextlib

from embedcache.data.fold_tables import read_fold_table, store_fold_table
from embedcache.data.folds import folds_identity, given_identity
from embedcache.errors import EmbedcacheError, StoreCorruptError, StoreReadError
from embedcache.protocol.tasks import TASKS, strata
from embedcache.runs.record import RunRecord
from embedcache.verbs.session import Session


def mend_references(session: Session) -> None:
    """Make fold tables and the remembered manifest again, as far as they can be made."""
    with contextlib.suppress(EmbedcacheError):  # without a manifest, what is gone stays so
        _ = session.snapshot
    for record in session.runs.readable_records():
        with contextlib.suppress(EmbedcacheError):  # what cannot be made stays missing
            _mend_folds(session, record)


def _mend_folds(session: Session, record: RunRecord) -> None:
    """Make the fold table of a run again, of its own predictions or else of its question."""
    folds_id = record.request.data.folds_id
    if folds_id is None or read_fold_table(session.workspace, folds_id) is not None:
        return
    patients = None
    with contextlib.suppress(StoreCorruptError, StoreReadError):  # then the question is left
        patients = _tested_patients(session, record, folds_id)
    if patients is not None:
        store_fold_table(session.workspace, folds_id, patients)
    elif record.task in TASKS:
        session.study(record.question(session.workspace))


def _tested_patients(session: Session, record: RunRecord, folds_id: str) -> dict[str, int] | None:
    """Return the fold of each patient that a run tested; None where that is not all its table."""
    patient_id: list[str] = []
    label: list[str] = []
    folds: list[int] = []
    for answers in session.runs.answers(record.run_id):
        if answers.role == "in-domain":
            patient_id += answers.patient_id
            label += map(str, answers.targets)
            folds += answers.fold.tolist()
    patients = dict(sorted(zip(patient_id, folds, strict=True)))
    question = record.request.question
    identities = {given_identity(patients)}
    if question.task == "classification" and question.n_folds is not None:
        classes = strata(question.task, label)
        identities.add(folds_identity(patient_id, classes, question.n_folds, question.seed))
    return patients if folds_id in identities else None
