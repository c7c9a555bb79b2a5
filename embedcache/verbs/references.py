"""Making again what runs name but that is gone: fold tables and the remembered manifest."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from embedcache.data.cohorts import cell_texts
from embedcache.data.fold_tables import read_fold_table, store_fold_table
from embedcache.data.folds import FoldTable, folds_by_value, folds_identity, given_identity
from embedcache.data.snapshots import find_snapshot
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
    table = None
    with contextlib.suppress(StoreCorruptError, StoreReadError):  # then the question is left
        table = _tested_folds(session, record, folds_id)
    if table is not None:
        store_fold_table(session.workspace, folds_id, table.patients, table.values)
    elif record.task in TASKS:
        session.study(record.question(session.workspace))


def _tested_folds(session: Session, record: RunRecord, folds_id: str) -> FoldTable | None:
    """Return the folds that a run tested its patients in; None where that is not all its table."""
    image_id: list[str] = []
    patient_id: list[str] = []
    label: list[str] = []
    folds: list[int] = []
    for answers in session.runs.answers(record.run_id):
        if answers.role == "in-domain":
            image_id += answers.image_id
            patient_id += answers.patient_id
            label += map(str, answers.targets)
            folds += answers.fold.tolist()
    question = record.request.question
    if question.folds_by is not None and image_id:
        classes = strata(question.task, label)
        table = _folds_by_column(session, record, image_id, patient_id, classes)
        return table if table is not None and table.folds_id == folds_id else None
    patients = dict(sorted(zip(patient_id, folds, strict=True)))
    identities = {given_identity(patients)}
    if question.task == "classification" and question.n_folds is not None:
        classes = strata(question.task, label)
        identities.add(folds_identity(patient_id, classes, question.n_folds, question.seed))
    if folds_id not in identities:
        return None
    return FoldTable(folds_id, len(set(folds)), question.seed, patients)


def _folds_by_column(
    session: Session,
    record: RunRecord,
    image_id: Sequence[str],
    patient_id: Sequence[str],
    label: Sequence[str],
) -> FoldTable | None:
    """Return the folds by a column of a run's own manifest; None where that is not stored."""
    manifest = find_snapshot(session.workspace, record.request.data.manifest)
    if manifest is None:
        return None
    column = str(record.request.question.folds_by)
    value_of = dict(
        zip(manifest["image_id"].to_pylist(), cell_texts(manifest[column]), strict=True)
    )
    values = [value_of[image] for image in image_id]
    return folds_by_value(patient_id, values, label, column=column)
