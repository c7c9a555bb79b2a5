"""Ten thousand resamples of patients: what they cost, against a loop over scikit-learn.

    python benchmarks/bench_bootstrap.py

Simulated predictions of the size of FETAL_PLANES_DB: 12,400 images of 1,792 patients, six classes.
CPU seconds on one thread. The loop is measured on a few resamples and scaled.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

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
from embedcache.scoring.resampling import resample_weights

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
    call()
    return time.process_time() - start


def loop(one, measure, n_resamples):
    """Return the seconds of ten thousand resamples as one would write them, from a few."""
    patient = np.unique(one.patient_id, return_inverse=True)[1]
    rows = [np.flatnonzero(patient == number) for number in range(N_PATIENTS)]
    chance, truth, predicted = np.random.default_rng(0), one.codes(), one.predicted()

    def run():
        for _ in range(n_resamples):
            drawn = np.concatenate([rows[i] for i in chance.integers(N_PATIENTS, size=N_PATIENTS)])
            measure(truth[drawn], predicted[drawn], one.probability[drawn])

    return timed(run) * N_RESAMPLES / n_resamples


def macro_f1(truth, predicted, _):
    f1_score(truth, predicted, average="macro")


def auroc(truth, _, probability):
    roc_auc_score(truth, probability, multi_class="ovr", average="macro")


def main() -> None:
    print_machine("numpy", "scikit-learn")
    said = list(models())
    units = [subject_of(one) for one in said]
    print(
        f"{N_IMAGES} images of {N_PATIENTS} patients, {len(CLASSES)} classes, {N_MODELS} models, "
        f"{N_RESAMPLES} resamples; CPU s on one thread"
    )

    def draw():
        return resample_weights(N_PATIENTS, N_RESAMPLES, 0)

    weights = draw()
    ours = {
        "resampling, once": timed(draw),
        "macro F1, 7 models": timed(lambda: [one.score("macro_f1", weights) for one in units]),
        "macro AUROC, 1 model": timed(lambda: units[0].score("auroc", weights)),
    }
    theirs = {
        "macro F1, 7 models": N_MODELS * loop(said[0], macro_f1, 40),
        "macro AUROC, 1 model": loop(said[0], auroc, 20),
    }
    named = {f"model {number}": one for number, one in enumerate(units)}
    ours["compare: 7 models, 21 pairs"] = timed(lambda: compare(named, "macro_f1"))
    warm = replace(said[0], temperature=np.full(N_IMAGES, 1.3))
    ours["every score of a model"] = timed(lambda: evaluate([warm]))
    for name, seconds in ours.items():
        ratio = f"{theirs[name]:10.0f}{theirs[name] / seconds:8.0f} x" if name in theirs else ""
        print(f"  {name:30}{seconds:8.2f}{ratio}")
    print("  columns: ours; a scikit-learn loop, scaled from 40 and 20 resamples; their ratio")
    print(f"  every score: {len(evaluate([warm], n_resamples=100))}, by image and by patient")
    print(f"  memory at most {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MB")


if __name__ == "__main__":
    main()
