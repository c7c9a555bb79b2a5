"""Does a comparison hold its level through the whole pipeline? Simulated: two encoders of one law.

    python benchmarks/bench_level.py [--rounds N] [--repeats R]

Each round draws new patients, two sets of embeddings of one law, and folds; probes choose C on
inner folds, are fitted and tested as `embedcache probe` does, R times on other folds; `compare`
holds them against each other. Whatever it finds is chance. The second line of a design gives one of
the encoders less noise, and so a true lead, in half as many rounds. With 400 rounds a share of 0.05
is uncertain by 0.022.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import argparse
import time
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor

import numpy as np
from common import print_machine

from embedcache.data.embeddings import LabelledEmbeddings
from embedcache.data.folds import assign_folds
from embedcache.files.cores import usable_cores
from embedcache.protocol.nested import fit_probe
from embedcache.runs.methods import ProbeMethod
from embedcache.scoring.answers import subjects_of
from embedcache.scoring.compare import compare

K, D = 3, 16
GRID = (1e-4, 1e-3, 1e-2, 1e-1)
MARGIN = 0.1
DESIGNS = {
    "several classes a patient": (60, True),
    "one class a patient": (80, False),
    "one class a patient, more of them": (200, False),
}


def cohorts(n_patients, several, noise, seed):
    """Return the embeddings of two encoders of the same images."""
    chance = np.random.default_rng(seed)
    size = 2 + chance.geometric(0.2, size=n_patients)
    patient = np.repeat(np.arange(n_patients), size)
    if several:
        mix = chance.dirichlet([1.0, 0.8, 0.6], size=n_patients)[patient].cumsum(axis=1)
        y = (chance.random(len(patient))[:, None] > mix).sum(axis=1).clip(0, K - 1)
    else:
        y = chance.choice(K, p=[0.45, 0.35, 0.2], size=n_patients)[patient]
    centres = 1.6 * np.eye(K, D)
    for scale in (1.0, noise):
        of_patients = chance.normal(0, scale, size=(n_patients, D))[patient]
        X = centres[y] + of_patients + chance.normal(0, scale, size=(len(y), D))
        yield LabelledEmbeddings(
            encoder="encoder",
            fingerprint="0",
            X=X.astype(np.float32),
            image_id=tuple(f"i{number:05d}" for number in range(len(y))),
            patient_id=tuple(f"p{number:04d}" for number in patient),
            cohort=("home",) * len(y),
            label=tuple("abc"[code] for code in y),
        )


def one_round(task):
    """Return difference (second less first), p and verdict, of one run and of all repeats."""
    (n_patients, several), noise, n_repeats, seed = task
    rows = list(cohorts(n_patients, several, noise, [seed, n_patients, several]))
    if len(set(rows[0].label)) < K:
        return None
    answers = {"first": [], "second": []}
    for repeat in range(n_repeats):
        folds = assign_folds(rows[0].patient_id, rows[0].label, seed=repeat)
        for name, embeddings in zip(answers, rows, strict=True):
            probe = fit_probe(embeddings, folds, method=ProbeMethod(grid=GRID))
            answers[name].append(probe.answers[0])
    results = []
    for count in (1, n_repeats):
        pair = compare(
            {name: subjects_of(repeats[:count]) for name, repeats in answers.items()},
            "macro_f1",
            margin=MARGIN,
            n_resamples=1000,
            seed=seed,
        ).pairs[0]
        lead = pair.difference if pair.better == "second" else -pair.difference
        results.append((lead, pair.p, pair.verdict, pair.low > 0))
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    print_machine("numpy", "scipy", "scikit-learn")
    print(
        f"{args.rounds} rounds (a lead: half), {args.repeats} repeats, {len(GRID)} C, 5 folds; "
        f"margin {MARGIN}"
    )
    print(
        f"\n{'':52}{'p <= 0.05':>18}{'sd of lead':>19}{'equal':>16}\n{'':52}{'1 run':>9}"
        f"{'repeats':>9}{'1 run':>10}{'repeats':>9}{'1 run':>7}{'repeats':>9}"
    )
    start = time.perf_counter()
    with ProcessPoolExecutor(usable_cores()) as pool:
        for title, design in DESIGNS.items():
            for noise in (1.0, 0.9):
                n_rounds = args.rounds if noise == 1 else args.rounds // 2
                tasks = [(design, noise, args.repeats, seed) for seed in range(n_rounds)]
                print_rows(f"{title} ({design[0]})", noise, pool.map(one_round, tasks, chunksize=5))
    print(f"\n{time.perf_counter() - start:.0f} s")


def print_rows(title, noise, rounds):
    columns = defaultdict(list)
    for results in filter(None, rounds):
        for place, (lead, p, verdict, is_above) in enumerate(results):
            columns["lead", place].append(lead)
            columns["p", place].append(p <= 0.05)
            columns["equal", place].append(verdict == "equal")
            assert is_above == (p <= 0.05)
    law = "one law" if noise == 1 else f"lead {np.mean(columns['lead', 1]):.3f}"
    cells = [np.mean(columns["p", place]) for place in (0, 1)]
    spreads = [np.std(columns["lead", place]) for place in (0, 1)]
    equal = [np.mean(columns["equal", place]) for place in (0, 1)]
    print(
        f"{title + ', ' + law:52}{cells[0]:9.3f}{cells[1]:9.3f}{spreads[0]:10.4f}{spreads[1]:9.4f}"
        f"{equal[0]:7.3f}{equal[1]:9.3f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
