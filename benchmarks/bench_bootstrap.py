"""Scores with their intervals: what they cost, against loops over scikit-learn.

    python benchmarks/bench_bootstrap.py

Simulated predictions of the size of FETAL_PLANES_DB: 12,400 images of 1,792 patients, six classes.
CPU seconds on one thread. An interval is made of the score without each patient: one loop leaves
out each patient, and is the same answer; the other draws 10,000 resamples. Loops are measured on a
few patients or resamples and scaled.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import math
import resource
import time
from dataclasses import replace

import numpy as np
from common import print_machine
from sklearn.metrics import f1_score, roc_auc_score

from embedcache.data.predictions import Predictions
from embedcache.scoring.answers import subject_of
from embedcache.scoring.compare import compare
from embedcache.scoring.evaluate import evaluate

N_IMAGES, N_PATIENTS, N_MODELS, N_RESAMPLES = 12_400, 1_792, 7, 10_000
CLASSES = tuple("abcdef")


def models():
    """Return the predictions of each model on the same images."""
    chance = np.random.default_rng(0)
    some = chance.integers(N_PATIENTS, size=N_IMAGES - N_PATIENTS)
    patient = np.sort(np.r_[np.arange(N_PATIENTS), some])
    mix = chance.dirichlet([0.7] * len(CLASSES), size=N_PATIENTS)[patient].cumsum(axis=1)
    truth = (chance.random(N_IMAGES)[:, None] > mix).sum(axis=1).clip(0, len(CLASSES) - 1)
    for _ in range(N_MODELS):
        odds = np.exp(chance.normal(size=mix.shape) + 2 * np.eye(len(CLASSES))[truth])
        yield Predictions(
            role="in-domain",
            classes=CLASSES,
            image_id=tuple(map(str, range(N_IMAGES))),
            patient_id=tuple(f"P{number}" for number in patient),
            cohort=("spain",) * N_IMAGES,
            label=tuple(CLASSES[code] for code in truth),
            fold=patient % 5,
            probability=odds / odds.sum(axis=1, keepdims=True),
        )


def timed(call):
    start = time.process_time()
    answer = call()
    return time.process_time() - start, answer


def scores_of_samples(one, measure, samples):
    """Return a score of the images of each sample of patients, as one would write it."""
    patient = np.unique(one.patient_id, return_inverse=True)[1]
    rows = [np.flatnonzero(patient == number) for number in range(N_PATIENTS)]
    truth, predicted = one.codes(), one.predicted()
    drawn = (np.concatenate([rows[i] for i in sample]) for sample in samples)
    return [measure(truth[r], predicted[r], one.probability[r]) for r in drawn]


def macro_f1(truth, predicted, _):
    return f1_score(truth, predicted, average="macro")


def auroc(truth, _, probability):
    return roc_auc_score(truth, probability, multi_class="ovr", average="macro")


def against_loops(name, answers, metric, measure, n_samples):
    """Print our seconds for a score with its interval, those of both loops, and the ratios."""
    units = [subject_of(one) for one in answers]
    ours, _ = timed(lambda: [one.score(metric).spread for one in units])
    everyone, chance = np.arange(N_PATIENTS), np.random.default_rng(0)
    left_out = [np.delete(everyone, patient) for patient in range(n_samples)]
    resamples = chance.integers(N_PATIENTS, size=(n_samples, N_PATIENTS))
    seconds, theirs = timed(lambda: scores_of_samples(answers[0], measure, left_out))
    of_resamples, _ = timed(lambda: scores_of_samples(answers[0], measure, resamples))
    cells = [
        each * len(units) * n / n_samples
        for each, n in ((seconds, N_PATIENTS), (of_resamples, N_RESAMPLES))
    ]
    print(f"  {name:30}{ours:8.3f}{''.join(f'{c:10.0f}{c / ours:8.0f} x' for c in cells)}")
    # Parts are the scores without each patient, up to a constant and a factor.
    parts = units[0].score(metric).parts[:n_samples] * -math.sqrt(N_PATIENTS / (N_PATIENTS - 1))
    return np.abs((parts - parts[0]) - (np.array(theirs) - theirs[0])).max()


def main() -> None:
    print_machine("numpy", "scikit-learn")
    answers = list(models())
    print(
        f"{N_IMAGES} images of {N_PATIENTS} patients, {len(CLASSES)} classes, {N_MODELS} models; "
        f"CPU s on one thread"
    )
    print(f"  {'':30}{'ours':>8}{'without each':>20}{f'{N_RESAMPLES} resamples':>20}")
    outside = [replace(one, role="external", fold=np.full(N_IMAGES, -1)) for one in answers]
    apart = (
        against_loops("macro F1, 7 models", answers, "macro_f1", macro_f1, 40),
        against_loops("macro AUROC, 1 model", outside[:1], "auroc", auroc, 20),
    )
    subjects = {f"model {number}": [subject_of(one)] for number, one in enumerate(answers)}
    warm = replace(answers[0], temperature=np.full(N_IMAGES, 1.3))
    for name, call in {
        "compare by macro F1, 21 pairs": lambda: compare(subjects, "macro_f1"),
        "compare by AUROC, 21 pairs": lambda: compare(subjects, "auroc"),
        "every score of a model": lambda: evaluate([warm]),
    }.items():
        print(f"  {name:30}{timed(call)[0]:8.3f}")
    print("  columns: ours; scikit-learn without each patient, and on resamples, both scaled")
    print(f"  scores without a patient differ by {max(apart):.0e} at most")
    print(f"  every score: {len(evaluate([warm], n_resamples=100))}, by image and by patient")
    print(f"  memory at most {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MB")


if __name__ == "__main__":
    main()
