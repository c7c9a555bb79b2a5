"""What trained folds gave, as the answers and the results of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from embedcache.data.embeddings import LabelledEmbeddings
from embedcache.data.predictions import Predictions, Role
from embedcache.finetune.material import Material

if TYPE_CHECKING:
    from embedcache.finetune.jobs import FoldResult


def answers_of(material: Material, results: Sequence[FoldResult]) -> list[Predictions]:
    """Return out-of-fold predictions, and for external cohorts the mean of the folds'.

    Parameters
    ----------
    material
        Images with their labels and patients, the training cohort first.
    results
        Result of each fold, its own patients' predictions first.
    """
    train, *external = material.cohorts
    fold = material.fold
    inside = np.full((len(train), len(material.classes)), np.nan)
    for result in results:
        inside[fold == result.fold] = result.probability[0]
    answers = [_predictions(material, train, fold, inside, "in-domain")]
    for number, cohort in enumerate(external, 1):
        mean = np.mean([result.probability[number] for result in results], axis=0)
        no_fold = np.full(len(cohort), -1)
        answers.append(_predictions(material, cohort, no_fold, mean, "external"))
    return answers


def fold_answers_of(material: Material, results: Sequence[FoldResult]) -> list[Predictions]:
    """Return what each fold's model predicts of each external cohort; see `answers_of`."""
    answers = []
    for number, cohort in enumerate(material.cohorts[1:], 1):
        rows = cohort.take(np.tile(np.arange(len(cohort)), len(results)))
        fold = np.repeat([result.fold for result in results], len(cohort))
        probability = np.concatenate([result.probability[number] for result in results])
        answers.append(_predictions(material, rows, fold, probability, "external"))
    return answers


def results_of(results: Sequence[FoldResult]) -> dict[str, Any]:
    """Return what a run's record says of its folds."""
    return {
        "best_epoch": [result.best_epoch for result in results],
        "validation_macro_f1": [r.epochs[r.best_epoch - 1].macro_f1 for r in results],
        "epochs": [[asdict(epoch) for epoch in result.epochs] for result in results],
        "cost": [result.cost for result in results],
    }


def _predictions(
    material: Material,
    rows: LabelledEmbeddings,
    fold: NDArray[np.int64],
    probability: NDArray[np.float64],
    role: Role,
) -> Predictions:
    return Predictions(
        role=role,
        classes=material.classes,
        image_id=rows.image_id,
        patient_id=rows.patient_id,
        cohort=rows.cohort,
        label=rows.label,
        fold=fold,
        probability=probability,
    )
