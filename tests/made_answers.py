"""Answers made up for tests: predictions of classes, numbers, label sets, in patients."""

from __future__ import annotations

import numpy as np

from embedcache.data.predictions import LabelSets, Measurements, Predictions


def made_predictions(
    sharp, *, n_patients=20, classes="abc", labels="abc", seed=0, own=0, cohort="home"
):
    """Predictions on the same images for any `sharp` and `own`, which is the model's own chance."""
    chance, model = np.random.default_rng(seed), np.random.default_rng([seed, own])
    patient = np.repeat(np.arange(n_patients), chance.integers(2, 7, n_patients))
    truth = chance.integers(len(labels), size=len(patient))
    shared = chance.normal(size=(len(patient), len(classes)))
    logits = shared + model.normal(size=shared.shape) + model.normal(size=(n_patients, 1))[patient]
    places = [classes.index(name) for name in labels]
    logits[np.arange(len(truth)), np.array(places)[truth]] += sharp
    odds = np.exp(logits)
    n = len(truth)
    return Predictions(
        role="in-domain",
        classes=tuple(classes),
        image_id=tuple(f"{cohort}{i}" for i in range(n)),
        patient_id=tuple(f"{cohort}-{i}" for i in patient),
        cohort=(cohort,) * n,
        label=tuple(labels[i] for i in truth),
        fold=patient % 3,
        probability=odds / odds.sum(axis=1, keepdims=True),
    )


def measurements(truth, value, patient_id, *, role="in-domain"):
    """A number of each image."""
    n = len(truth)
    return Measurements(
        role=role,
        image_id=tuple(map(str, range(n))),
        patient_id=tuple(patient_id),
        cohort=("home",) * n,
        fold=np.zeros(n, np.int64),
        truth=np.asarray(truth, np.float64),
        value=np.asarray(value, np.float64),
    )


def label_sets(truth, probability, names, patient_id, *, role="in-domain"):
    """Several labels of each image."""
    n = len(truth)
    return LabelSets(
        role=role,
        names=tuple(names),
        image_id=tuple(map(str, range(n))),
        patient_id=tuple(patient_id),
        cohort=("home",) * n,
        fold=np.zeros(n, np.int64),
        truth=truth,
        probability=probability,
    )
