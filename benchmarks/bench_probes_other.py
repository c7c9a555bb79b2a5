"""Every family of probes on the same patient folds: processor time, and macro F1 out of fold.

    OMP_NUM_THREADS=1 python benchmarks/bench_probes_other.py [--n 12400] [--dim 768] [-p NAME ...]

Synthetic embeddings: six classes of unequal size that differ in the 30 strongest directions, a
spectrum that falls as a power, an effect of each patient, and eight features with large offsets and
variances, as vision transformers have. For each family, five folds times its default grid are
fitted and predict the fold left out. The macro F1 is of the pooled predictions, at the best value
of the grid: it compares families, and is no nested score.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from common import print_machine
from sklearn.metrics import f1_score

from embedcache.data.folds import assign_folds
from embedcache.probes.families import PROBES

SHARES = (0.42, 0.21, 0.14, 0.11, 0.08, 0.04)


def embeddings(n: int, dim: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return rows, classes and patients; about seven images a patient."""
    chance = np.random.default_rng(0)
    n_patients = max(20, n // 7)
    patient = chance.integers(n_patients, size=n)
    y = chance.choice(len(SHARES), size=n, p=SHARES)
    spectrum = np.arange(1, dim + 1) ** -0.5
    centres, effects = chance.normal(size=(len(SHARES), dim)), chance.normal(size=(n_patients, dim))
    centres[:, 30:] = 0
    latent = 0.6 * centres[y] + 0.8 * effects[patient] + chance.normal(size=(n, dim))
    rotation = np.linalg.qr(chance.normal(size=(dim, dim)))[0]
    X = (latent * spectrum) @ rotation
    outliers = chance.choice(dim, 8, replace=False)
    X[:, outliers] = 20 * chance.normal(size=(n, 8)) + chance.normal(0, 100, 8)
    return X.astype(np.float32), y, patient


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=12_400)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("-p", "--probe", action="append", choices=PROBES)
    args = parser.parse_args()
    print_machine("numpy", "scipy", "scikit-learn")
    X, y, patient = embeddings(args.n, args.dim)
    table = assign_folds([f"P{i:05d}" for i in patient], [str(code) for code in y])
    fold = table.of([f"P{i:05d}" for i in patient])
    print(f"\n{args.n} x {args.dim}, {len(set(patient))} patients, {len(SHARES)} classes, 5 folds")
    print("probe      values   CPU s fit   CPU s predict   macro F1: best at, first, last value")
    for name in args.probe or PROBES:
        family = PROBES[name]
        start = time.process_time()
        problems = [(np.flatnonzero(fold != number), family.grid) for number in range(5)]
        fitted = family.fit_sweep(X, y, len(SHARES), problems)
        between = time.process_time()
        predicted = np.empty((len(family.grid), len(y)), np.int64)
        for number, path in enumerate(fitted):
            predicted[:, fold == number] = path.probability(X[fold == number]).argmax(axis=2)
        end = time.process_time()
        f1 = [f1_score(y, one, average="macro") for one in predicted]
        best = int(np.argmax(f1))
        print(
            f"{name:10} {len(f1):6} {between - start:11.1f} {end - between:15.1f}   {f1[best]:.3f} "
            f"at {family.setting} = {family.grid[best]:.3g}, {f1[0]:.3f}, {f1[-1]:.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
