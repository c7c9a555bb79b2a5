"""`folds`: the patient folds of a question."""

from __future__ import annotations

from embedcache.data.folds import FoldSize, FoldTable, fold_sizes
from embedcache.data.question import Question
from embedcache.verbs.catalog import renew_catalog
from embedcache.verbs.session import Session


def folds(session: Session, question: Question) -> tuple[FoldTable, list[FoldSize]]:
    """Return the fold of each training patient, and what each fold tests.

    Folds are assigned and stored at first use.
    """
    study = session.study(question)
    renew_catalog(session)
    cohorts = study.cohorts
    patient_id = cohorts.column("patient_id", cohorts.train)
    return study.folds, fold_sizes(study.folds, patient_id, cohorts.train_labels)
