"""Embeddings made up for tests: labelled, in patients, with classes, numbers or label sets."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from embedcache.data.embeddings import LabelledEmbeddings
from embedcache.data.folds import assign_folds
from embedcache.protocol.tasks import strata


def embeddings(n_patients=30, dim=6, classes="abc", seed=0, cohort="home", spread=1.0):
    """Two or three images a patient, classes apart, patients too."""
    chance = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(0, 1.5, (len(classes), dim))
    X, patient, label = [], [], []
    for number in range(n_patients):
        own = chance.normal(0, 0.5, dim)
        for _ in range(chance.integers(2, 4)):
            code = int(chance.integers(len(classes)))
            X.append(centres[code] + own + chance.normal(0, spread, dim))
            patient.append(f"{cohort}-{number:03d}")
            label.append(classes[code])
    n = len(X)
    return LabelledEmbeddings(
        encoder="e",
        fingerprint="f",
        X=np.array(X, np.float32),
        image_id=tuple(f"{cohort}{i:04d}" for i in range(n)),
        patient_id=tuple(patient),
        cohort=(cohort,) * n,
        label=tuple(label),
    )


def folds_of(train, n_folds=5):
    return assign_folds(train.patient_id, train.label, n_folds=n_folds)


def folds_with_a_gap(train):
    table = folds_of(train)
    return replace(
        table, n_folds=6, patients={who: f + (f > 1) for who, f in table.patients.items()}
    )


def numbers(cohort):
    """The same rows, labelled by a number near 20 that is linear in them, but for noise."""
    chance = np.random.default_rng(2)
    values = 20 + cohort.X @ chance.normal(size=cohort.X.shape[1])
    values += chance.normal(0, 0.4 * values.std(), size=len(values))
    return replace(cohort, label=tuple(f"{value:.3f}" for value in values))


def label_lists(cohort):
    """The same rows, each class written as a list of labels."""
    lists = {"a": "x|y", "b": "y", "c": "-"}
    return replace(cohort, label=tuple(lists[name] for name in cohort.label))


TASKS = {"classification": lambda cohort: cohort, "regression": numbers, "multilabel": label_lists}


def of_task(task, n_patients=30, **settings):
    """A training cohort of a task, its folds, and an external cohort."""
    train, away = (
        TASKS[task](embeddings(n, seed=seed, cohort=name, **settings))
        for n, seed, name in ((n_patients, 0, "home"), (8, 5, "away"))
    )
    return train, assign_folds(train.patient_id, strata(task, train.label)), away


def predicted(answers):
    """What was predicted of each image, shape (n, width)."""
    return answers.value[:, None] if hasattr(answers, "value") else answers.probability
