"""The logistic probe and scikit-learn's: 5 patient folds times 12 C, at the optimum.

    OMP_NUM_THREADS=1 python benchmarks/bench_probe.py [--all] [--nested] [--n 12400] [--dim 768]
        [--embeddings FILE.npz | --phantom FILE.npz] [--long-dim 2048]

Embeddings are those of bench_probes_other.py; or X, y and p (patient) of FILE; or, with --phantom,
EfficientNet-lite0's of generated pictures, made once and kept in FILE (a quarter of an hour).
scikit-learn gets standardised rows, and its time is that of `LogisticRegression.fit` alone; ours
includes the standardisation. "At the same gap": the largest of a ladder of `tol`, by C, at which
its objective is within 1e-5 of the optimum. Without --all every C is timed on one fold, in turn,
and the sum is taken five times. The optimum is the lesser value of ours at tol 1e-8 and theirs.
With --nested the whole nested protocol is made both ways, too: scikit-learn fits the whole grid on
the same training sets, each C to the gap above, and a step of `tol` further where it predicts.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
from bench_probes_other import embeddings
from common import print_machine
from PIL import Image
from scipy.special import logsumexp
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from embedcache.data.embeddings import LabelledEmbeddings
from embedcache.data.folds import FoldTable, assign_folds
from embedcache.datasets import phantom
from embedcache.encoders.registry import load_encoder
from embedcache.probes.logistic import C_GRID, TOL, LogisticPath, fit_sweep
from embedcache.probes.selection import macro_f1, pick
from embedcache.protocol.choice import inner_folds
from embedcache.protocol.nested import fit_probe

LADDER = (1e-4, 1e-5, 1e-6, 1e-7, 1e-8)
LONG_GRID = np.logspace(-6, 5, 45).tolist()
N_FOLDS = 5
N_PHANTOMS, N_PHANTOM_PATIENTS = 12_400, 1792


@dataclass
class Data:
    """Rows, and the fold of each."""

    X: np.ndarray
    y: np.ndarray
    fold: np.ndarray
    names: list[str]
    table: FoldTable

    @property
    def k(self) -> int:
        return int(self.y.max()) + 1

    def sweep(self, grid, tol, n_threads=1) -> list[LogisticPath]:
        parts = [(np.flatnonzero(self.fold != number), grid) for number in range(N_FOLDS)]
        return fit_sweep(self.X, self.y, self.k, parts, tol=tol, n_threads=n_threads)


def fold_up(X: np.ndarray, y: np.ndarray, patient: np.ndarray) -> Data:
    names = [f"P{number:05d}" for number in patient]
    table = assign_folds(names, [str(code) for code in y], n_folds=N_FOLDS)
    return Data(X, y.astype(np.int64), table.of(names), names, table)


def phantom_rows() -> list[dict[str, str]]:
    chance = np.random.default_rng(0)
    labels = chance.choice(phantom.COHORTS[0].classes, N_PHANTOMS, p=[0.3, 0.25, 0.15, 0.2, 0.1])
    rows = []
    for number, label in enumerate(labels):
        patient = f"NO-{number % N_PHANTOM_PATIENTS:05d}"
        name = f"{patient}_{label}_{number}"
        rows.append({"patient_id": patient, "label": label, "image_id": name, "cohort": "north"})
    return rows


def write_phantom(file: Path) -> None:
    """Render, encode and keep."""
    rows, encoder = phantom_rows(), load_encoder("efficientnet-lite0")
    parts = []
    with ProcessPoolExecutor() as pool:
        pictures = pool.map(phantom.render, rows, chunksize=64)
        for _ in range(0, len(rows), 64):
            batch = [encoder.preprocess(Image.fromarray(one)) for one in islice(pictures, 64)]
            parts.append(encoder.encode(np.stack(batch)))
    y = np.unique([row["label"] for row in rows], return_inverse=True)[1]
    np.savez(file, X=np.concatenate(parts), y=y, p=np.arange(len(rows)) % N_PHANTOM_PATIENTS)


def clocked(work: Callable[[], object]) -> tuple[object, float, float]:
    """Return what it returns, its processor seconds and its wall seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    found = work()
    return found, time.process_time() - cpu, time.perf_counter() - wall


def objective(Z, y, C, coef, intercept) -> float:
    logits = Z @ coef.T + intercept
    loss = logsumexp(logits, axis=1) - logits[np.arange(len(y)), y]
    return float(loss.sum() + (coef**2).sum() / (2 * C))


def gemm_cpu_s(data: Data, passes: int, width: int) -> float:
    """Return the processor seconds of the two products of so many passes over one training set."""
    X = np.ones((1024, data.X.shape[1] + 1), np.float32)
    W = np.ones((width * (data.k - 1), X.shape[1]), np.float32)
    R, G = np.empty((len(W), len(X)), np.float32), np.empty_like(W)

    def products() -> None:
        for _ in range(10):
            np.matmul(W, X.T, out=R)
            np.matmul(R, X, out=G)

    products()
    best = min(clocked(products)[1] for _ in range(5)) / (10 * len(X) * width)
    return best * passes * len(data.y) * (1 - 1 / N_FOLDS)


@dataclass
class Theirs:
    """What scikit-learn took, and how far it was from the optimum."""

    title: str
    cpu: list[float] = field(default_factory=list)
    gap: list[float] = field(default_factory=list)
    agree: list[float] = field(default_factory=list)
    tols: dict[float, float] = field(default_factory=dict)

    def line(self, ours: list[float], n_timed: int) -> str:
        total = sum(self.cpu) * len(C_GRID) * N_FOLDS / n_timed
        ratios = "".join(f"{total / cpu:6.1f} x" for cpu in ours)
        return (
            f"  {self.title:44} {total:8.1f} {ratios}   {max(self.gap):.0e}   "
            f"{100 * min(self.agree):.2f} %"
        )


def fit_theirs(Z, y, C, tol, max_iter):
    model = LogisticRegression(C=C, tol=tol, max_iter=max_iter)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        _, cpu, _ = clocked(lambda: model.fit(Z, y))
    return model, cpu


def at_same_gap(Z, y, C, best, tols):
    """Return scikit-learn's fit with the largest tol that reaches the gap, as it was for this C."""
    for tol in LADDER[LADDER.index(tols.get(C, LADDER[0])) :]:
        model, cpu = fit_theirs(Z, y, C, tol, 20_000)
        value = objective(Z, y, C, model.coef_, model.intercept_)
        if value <= (1 + TOL) * best:
            break
    tols[C] = tol
    return model, cpu, value


def compare(
    data: Data, runs: dict[float, tuple[list[LogisticPath], float]], everything
) -> dict[float, float]:
    """Print ours beside theirs; return the tol of theirs at the same gap, by C."""
    tight = data.sweep(C_GRID, 1e-8)
    same = Theirs("scikit-learn lbfgs, float64, at the same gap")
    usual = Theirs("scikit-learn lbfgs, float32, tol 1e-4")
    mine = {tol: Theirs(f"ours, certified to {tol:.0e}") for tol in runs}
    pairs = [(i, j) for i in range(N_FOLDS) for j in range(len(C_GRID))]
    pairs = pairs if everything else [(j % N_FOLDS, j) for j in range(len(C_GRID))]
    for i, j in pairs:
        C, train = C_GRID[j], data.fold != i
        scaler = StandardScaler().fit(data.X[train].astype(np.float64))
        Z, y = scaler.transform(data.X[train].astype(np.float64)), data.y[train]
        held_out = scaler.transform(data.X[~train].astype(np.float64))
        best = objective(Z, y, C, tight[i].coef[j], tight[i].intercept[j])
        model, seconds, value = at_same_gap(Z, y, C, best, same.tols)
        best = min(best, value)
        right = (held_out @ tight[i].coef[j].T + tight[i].intercept[j]).argmax(axis=1)
        quick, quick_s = fit_theirs(Z.astype(np.float32), y, C, 1e-4, 1000)
        for one, spent, coef, intercept in (
            (same, seconds, model.coef_, model.intercept_),
            (usual, quick_s, quick.coef_.astype(np.float64), quick.intercept_),
            *(
                (mine[tol], 0.0, paths[i].coef[j], paths[i].intercept[j])
                for tol, (paths, _) in runs.items()
            ),
        ):
            one.cpu.append(spent)
            one.gap.append(objective(Z, y, C, coef, intercept) / best - 1)
            one.agree.append(((held_out @ coef.T + intercept).argmax(axis=1) == right).mean())
    print(
        f"  {len(pairs)} of scikit-learn's 60 fits were timed; gaps and agreement are of the same"
    )
    ratios = "".join(f"  / {tol:.0e}" for tol in runs)
    print(f"  {'60 fits':44}    CPU s {ratios}   worst gap, agreement (held out)")
    for tol, (_, cpu) in runs.items():
        gap, agree = max(mine[tol].gap), 100 * min(mine[tol].agree)
        print(f"  {mine[tol].title:44} {cpu:8.1f} {'':16}   {gap:.0e}   {agree:.2f} %")
    for one in (same, usual):
        print(one.line([cpu for _, cpu in runs.values()], len(pairs)))
    print("  tol at the same gap:", ", ".join(f"{C:.0e}: {t:.0e}" for C, t in same.tols.items()))
    return same.tols


def their_probe(data: Data, rows: np.ndarray, C: float, tol: float):
    """Return scikit-learn's probe of some rows, standardised by them, and its processor seconds."""
    scaler = StandardScaler().fit(data.X[rows].astype(np.float64))
    Z = scaler.transform(data.X[rows].astype(np.float64))
    model, seconds = fit_theirs(Z, data.y[rows], C, tol, 20_000)
    return lambda at: model.predict(scaler.transform(data.X[at].astype(np.float64))), seconds


def their_protocol(data: Data, tols: dict[float, float]):
    """Return the C of each fold, the calls out of fold, and the processor seconds of the fits."""
    sets, asked = inner_folds(data.fold)
    spent, calls = 0.0, np.full((len(C_GRID), len(sets), len(data.y)), -1)
    for place, C in enumerate(C_GRID):
        for number, rows in enumerate(sets):
            predict, seconds = their_probe(data, rows, C, tols[C])
            held_out = np.setdiff1d(np.arange(len(data.y)), rows)
            calls[place, number, held_out], spent = predict(held_out), spent + seconds
    chosen, outside = [], np.empty(len(data.y), np.int64)
    for outer, parts in enumerate(asked):
        rows = np.concatenate([at for _, at in parts])
        inner = np.concatenate([calls[:, number, at] for number, at in parts], axis=1)
        C = C_GRID[pick(macro_f1(data.y[rows], inner, data.k))]
        tested = data.fold == outer
        predict, seconds = their_probe(data, np.flatnonzero(~tested), C, tols[C] / 10)
        outside[tested], spent = predict(np.flatnonzero(tested)), spent + seconds
        chosen.append(C)
    final = min(C_GRID, key=lambda C: abs(np.log(C) - np.median(np.log(chosen))))
    return chosen, outside, spent + their_probe(data, np.arange(len(data.y)), final, tols[final])[1]


def report_nested(data: Data, tols: dict[float, float]) -> None:
    n = len(data.y)
    train = LabelledEmbeddings(
        encoder="e",
        fingerprint="f",
        X=data.X,
        image_id=tuple(f"i{number:06d}" for number in range(n)),
        patient_id=tuple(data.names),
        cohort=("home",) * n,
        label=tuple(str(code) for code in data.y),
    )
    ours, cpu, wall = clocked(lambda: fit_probe(train, data.table))
    chosen, outside, spent = their_protocol(data, tols)
    same_C = sum(a == b for a, b in zip(ours.choices["C"], chosen, strict=True))
    n_skipped = min(map(len, ours.choices["skipped_C"]))
    agree = (ours.answers[0].predicted() == outside).mean()
    print(
        f"  nested protocol: ours {cpu:.1f} CPU s, wall {wall:.1f} s, "
        f"{n_skipped} of 12 C skipped; scikit-learn {spent:.1f} CPU s for "
        f"{12 * 10 + 6} fits, {spent / cpu:.1f} x;\n  the same C in {same_C} of {N_FOLDS} folds, "
        f"{agree:.2%} of {n} predictions out of fold the same",
        flush=True,
    )


def report(data: Data, title: str, *, everything: bool, nested: bool) -> None:
    n, d = data.X.shape
    print(f"\n{title}: {n} x {d}, {data.k} classes, {N_FOLDS} folds x {len(C_GRID)} C", flush=True)
    ours, cpu, wall = clocked(lambda: data.sweep(C_GRID, TOL))
    loose, cpu_loose, _ = clocked(lambda: data.sweep(C_GRID, 10 * TOL))
    _, cpu_all, wall_all = clocked(lambda: data.sweep(C_GRID, TOL, None))
    passes = sum(int(path.n_passes.sum()) for path in ours)
    floor = gemm_cpu_s(data, passes, len(C_GRID))
    print(f"  ours: {cpu:.1f} CPU s on one core; wall {wall:.1f} s, on all cores {wall_all:.1f} s")
    print(f"  ({cpu_all:.1f} CPU s); worst certificate {max(p.gap.max() for p in ours):.0e}")
    print(
        f"  {passes / 60:.0f} passes a fit; their bare products {floor:.1f} CPU s, "
        f"{100 * floor / cpu:.0f} % of ours",
        flush=True,
    )
    tols = compare(data, {TOL: (ours, cpu), 10 * TOL: (loose, cpu_loose)}, everything)
    if nested:
        report_nested(data, tols)


def report_long(data: Data) -> None:
    n, d = data.X.shape
    paths, cpu, wall = clocked(lambda: data.sweep(LONG_GRID, TOL))
    gap = np.concatenate([path.gap for path in paths])
    print(
        f"\n{n} x {d}, {N_FOLDS} folds x {len(LONG_GRID)} C from 1e-6 to 1e5: ours {cpu:.1f} CPU s,"
        f" wall {wall:.1f} s;\n  worst certificate {gap.max():.0e}, {np.mean(gap <= TOL):.0%} "
        f"within {TOL:.0e}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=12_400)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--long-dim", type=int, default=2048, help="0 for none")
    parser.add_argument("--all", action="store_true", help="time all 60 of scikit-learn's fits")
    parser.add_argument("--nested", action="store_true", help="make the whole protocol both ways")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--embeddings", type=Path)
    source.add_argument("--phantom", type=Path)
    args = parser.parse_args()
    print_machine("numpy", "scipy", "scikit-learn")
    if args.phantom and not args.phantom.exists():
        write_phantom(args.phantom)
    file = args.embeddings or args.phantom
    settings = {"everything": args.all, "nested": args.nested}
    with threadpool_limits(1):
        if file:
            given = np.load(file)
            report(fold_up(given["X"], given["y"], given["p"]), file.stem, **settings)
        else:
            report(fold_up(*embeddings(args.n, args.dim)), "synthetic", **settings)
        if args.long_dim:
            report_long(fold_up(*embeddings(args.n, args.long_dim)))


if __name__ == "__main__":
    main()
