"""Is C chosen soundly? What a stopped grid changes, what tested patients change, temperatures.

    OMP_NUM_THREADS=1 python benchmarks/bench_choice.py [--part NAME ...] [--phantom FILE.npz]

`stop`: the default grid fitted whole and as far as `past_best` lets it, on many sets of data: how
often does an outer fold choose another C? `tested`: the embeddings of one fold's patients are
replaced (noise, other images, 100 times as large), and all is fitted anew: how often does the C of
that very fold change, and how many calls of the images it is chosen by, by tolerance? Scores are
macro F1. `temperatures`: log-loss on fresh patients without a temperature and with those of several
rules. Data: patients with a mean of their own, of one class each or of several, some labels wrong;
with --phantom, patients drawn from that file too (see bench_probe.py).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
from bench_probe import write_phantom
from common import print_machine
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from threadpoolctl import threadpool_limits

from embedcache.data.embeddings import LabelledEmbeddings
from embedcache.data.folds import assign_folds
from embedcache.errors import RunError
from embedcache.probes import selection, training_sets
from embedcache.probes.calibration import fit_temperature
from embedcache.protocol import choice, search, tasks
from embedcache.protocol.nested import fit_probe
from embedcache.protocol.protocols import grid_of
from embedcache.runs.methods import ProbeMethod

SHARES = np.array([0.4, 0.25, 0.15, 0.1, 0.06, 0.04])
REFINEMENTS = {
    "1e-04": (),
    "1e-06": ((1e-6, 5),),
    "as shipped": search.REFINEMENTS,
}
CHANGES = ("noise", "other images", "times 100")
RULES = ("none", "k, images", "2, images", "k, patients", "2, patients")


def cohort(
    chance, n_patients, *, dim, k, apart=1.0, effect=0.7, wrong=0.0, one_class=False, centres=None
) -> LabelledEmbeddings:
    """Return patients of 3 to 10 images; variances fall along the features."""
    shares = SHARES[:k] / SHARES[:k].sum()
    spectrum = np.arange(1, dim + 1) ** -0.5
    centres = chance.normal(size=(k, dim)) if centres is None else centres
    patient = np.repeat(np.arange(n_patients), chance.integers(3, 11, n_patients))
    own_class = chance.choice(k, n_patients, p=shares)[patient]
    y = own_class if one_class else chance.choice(k, len(patient), p=shares)
    X = apart * centres[y] + effect * chance.normal(size=(n_patients, dim))[patient]
    X = (X + chance.normal(size=X.shape)) * spectrum
    moved = chance.random(len(y)) < wrong
    return labelled(X, np.where(moved, chance.choice(k, len(y), p=shares), y), patient)


def labelled(X, y, patient) -> LabelledEmbeddings:
    names = np.char.add("P", np.char.zfill(patient.astype(str), 5))
    return LabelledEmbeddings(
        encoder="e",
        fingerprint="f",
        X=np.asarray(X, np.float32),
        image_id=tuple(f"i{number:06d}" for number in range(len(y))),
        patient_id=tuple(names.tolist()),
        cohort=("home",) * len(y),
        label=tuple("abcdefgh"[code] for code in y),
    )


def some_patients(file: Path, chance, n_patients: int, wrong: float) -> LabelledEmbeddings:
    """Return patients drawn from a file of embeddings, some labels wrong, each fourth feature."""
    given = np.load(file)
    rows = np.isin(given["p"], chance.choice(np.unique(given["p"]), n_patients, replace=False))
    y = given["y"][rows]
    y = np.where(chance.random(len(y)) < wrong, chance.permutation(y), y)
    return labelled(given["X"][rows][:, ::4], y, given["p"][rows])


def drawn(n: int, phantom: Path | None) -> Iterator[tuple[str, LabelledEmbeddings]]:
    """Yield n sets of data of any size and difficulty, and half as many from a file."""
    for seed in range(n):
        chance = np.random.default_rng([1, seed])
        yield (
            "made",
            cohort(
                chance,
                int(chance.integers(25, 250)),
                dim=int(chance.choice([8, 32, 128, 384])),
                k=int(chance.integers(2, 7)),
                apart=chance.uniform(0.1, 2),
                effect=chance.uniform(0.1, 1.5),
                wrong=chance.choice([0, 0.1, 0.3]),
                one_class=chance.random() < 0.5,
            ),
        )
    for seed in range(n // 2 if phantom else 0):
        chance = np.random.default_rng([2, seed])
        wrong = chance.choice([0, 0.05, 0.2])
        yield phantom.stem, some_patients(phantom, chance, int(chance.integers(30, 300)), wrong)


def task_of(data: LabelledEmbeddings):
    """Return the task, and the fold of each image; None where there are too few patients."""
    try:
        folds = assign_folds(data.patient_id, data.label)
    except RunError:
        return None
    return tasks.TASKS["classification"](data, ProbeMethod()), folds.of(data.patient_id)


def clocked(work):
    start = time.process_time()
    result = work()
    return result, time.process_time() - start


def report_stop(n: int, phantom: Path | None) -> None:
    grid = grid_of(ProbeMethod())
    print("\nA grid that stops against the whole: 12 C, 5 outer folds a set of data")
    tallies: dict[tuple[str, int], list[list[float]]] = {}
    for name, data in drawn(n, phantom):
        if (made := task_of(data)) is None:
            continue
        with mock.patch.object(selection, "PAST", len(grid)):
            whole, whole_s = clocked(lambda made=made: choice.choose_nested(*made, grid))
        for past in (2, 3):
            with mock.patch.object(selection, "PAST", past):
                stopped, stopped_s = clocked(lambda made=made: choice.choose_nested(*made, grid))
            skipped = min(len(chosen.skipped) for chosen in stopped)
            for a, b in zip(whole, stopped, strict=True):
                row = [a.value != b.value, a.score - b.score, skipped, whole_s / 5, stopped_s / 5]
                tallies.setdefault((name, past), []).append(row)
    for (name, past), rows in sorted(tallies.items()):
        other, less, skipped, whole_s, stopped_s = np.array(rows).T
        print(
            f"  {name:10} after {past} past the best: {len(rows)} choices, {other.sum():.0f} "
            f"another C, at most {less.max():.4f} less; {skipped.mean():.1f} of 12 C skipped, "
            f"CPU {stopped_s.sum() / whole_s.sum():.0%}",
            flush=True,
        )


def changed(X, rows, how, chance):
    """Return a copy in which these rows are other ones."""
    Z = X.copy()
    if how == "noise":
        Z[rows] += (chance.normal(size=Z[rows].shape) * X.std(axis=0)).astype(np.float32)
    elif how == "other images":
        Z[rows] = X[chance.choice(len(X), len(rows))]
    else:
        Z[rows] *= 100
    return Z


def choose_watched(data, fold, refinements):
    """Return what each outer fold chooses, and the calls of its images by its choice."""
    watched = []
    temperature = tasks.Classification.temperature

    def watch(task, rows, predicted, probe):
        watched.append(predicted.argmax(axis=1))
        return temperature(task, rows, predicted, probe)

    with (
        mock.patch.object(choice, "REFINEMENTS", refinements),
        mock.patch.object(tasks.Classification, "temperature", watch),
    ):
        task = tasks.TASKS["classification"](data, ProbeMethod())
        return choice.choose_nested(task, fold, grid_of(ProbeMethod())), watched


def report_tested(n: int, phantom: Path | None) -> None:
    print(
        "\nThe embeddings of tested patients are changed at will: does the C of their fold change?"
    )
    print("All fits to 1e-04; those between which a choice is close further, to:")
    sizes = {
        "60 patients, float64": lambda chance: cohort(
            chance, 60, dim=32, k=4, apart=0.7, wrong=0.1
        ),
        "150 patients, float32": lambda chance: cohort(
            chance, 150, dim=64, k=5, apart=0.7, wrong=0.1
        ),
        "450 patients, float32": lambda chance: cohort(
            chance, 450, dim=384, k=5, apart=0.7, wrong=0.1
        ),
    }
    if phantom:
        title = f"450 of {phantom.stem}"
        sizes[title] = lambda chance: some_patients(phantom, chance, 450, 0.1)
    for (title, make), n_sets in zip(sizes.items(), (n, n, n // 8, n // 8), strict=False):
        for name, refinements in REFINEMENTS.items():
            small = 0 if "float64" not in title else training_sets._SMALL_CELLS
            with mock.patch.object(training_sets, "_SMALL_CELLS", small):
                report_changes(f"{title:22} {name}", make, n_sets, refinements)


def report_changes(title: str, make, n_sets: int, refinements) -> None:
    n_other, turned, start = 0, [], time.process_time()
    for seed in range(n_sets):
        data = make(np.random.default_rng([3, seed]))
        _, fold = task_of(data)
        before, calls = choose_watched(data, fold, refinements)
        for outer in range(5):
            chance = np.random.default_rng([4, seed, outer])
            how = CHANGES[(seed + outer) % len(CHANGES)]
            X = changed(data.X, np.flatnonzero(fold == outer), how, chance)
            after, again = choose_watched(replace(data, X=X), fold, refinements)
            if before[outer].value == after[outer].value:
                turned.append((calls[outer] != again[outer]).mean())
            else:
                n_other += 1
    cpu = (time.process_time() - start) / (6 * n_sets)
    print(
        f"  {title:33} {n_other} of {5 * n_sets} choices; of the others "
        f"{1e6 * np.mean(turned):7.1f} of a million calls turned; {cpu:.2f} CPU s a choice of 5",
        flush=True,
    )


def probabilities_loss(probability, y, T: float) -> float:
    log_p = np.log(np.maximum(probability, 1e-12))
    return float(-log_softmax(log_p / T, axis=1)[np.arange(len(y)), y].mean())


def temperature_by(rule: str, probability, y, patient) -> float:
    """Return the T of a rule: targets as they are, or smoothed by a count of images or patients.

    'k' is (n_c + 1) / (n_c + k), '2' is (n_c + 1) / (n_c + 2); the rest is shared by the others.
    """
    k = probability.shape[1]
    target = np.eye(k)[y]
    for code in np.unique(y) if rule != "none" else ():
        rows = y == code
        count = len(set(patient[rows])) if rule.endswith("patients") else rows.sum()
        doubt = (k - 1) / (count + k) if rule.startswith("k") else 1 / (count + 2)
        target[rows] = doubt / (k - 1)
        target[rows, code] = 1 - doubt
    log_p = np.log(np.maximum(probability, 1e-12))
    ends = np.log([1e-3, 1e3])

    def loss(log_t):
        return -(target * log_softmax(log_p * np.exp(-log_t), axis=1)).sum()

    return float(np.exp(minimize_scalar(loss, bounds=ends, method="bounded").x))


def report_temperatures(n: int) -> None:
    print(
        f"\nLog-loss on 2,000 fresh patients, by how T was fitted out of fold; mean of {n} rounds"
    )
    heads = "".join(f"{rule:>12}" for rule in ("T = 1", *RULES, "ours"))
    print(f"  {'four classes, dim 20':44}{heads}   ours, worst round: more than T = 1")
    for one_class in (False, True):
        for title, apart in (("all right", 6.0), ("nearly", 3.0), ("ordinary", 1.5), ("hard", 0.8)):
            for n_patients in (20, 60, 200):
                losses = list(fresh_losses(n, n_patients, apart, one_class))
                means = "".join(f"{mean:12.3f}" for mean in np.mean(losses, axis=0))
                kind = "one class a patient" if one_class else "several"
                worst = max(row[-1] - row[0] for row in losses)
                print(
                    f"  {title + ', ' + kind:32}{n_patients:3} patients{means}   {worst:.3f}",
                    flush=True,
                )


def fresh_losses(n: int, n_patients: int, apart: float, one_class: bool) -> Iterator[list[float]]:
    for seed in range(n):
        chance = np.random.default_rng([5, seed])
        centres = chance.normal(size=(4, 20))
        settings = {"dim": 20, "k": 4, "apart": apart, "one_class": one_class, "centres": centres}
        train, fresh = cohort(chance, n_patients, **settings), cohort(chance, 2000, **settings)
        fresh = replace(
            fresh,
            patient_id=tuple(f"fresh {name}" for name in fresh.patient_id),
            cohort=("away",) * len(fresh),
        )
        if len(set(train.label)) < 4 or (made := task_of(train)) is None:
            continue
        folds = assign_folds(train.patient_id, train.label)
        inside, outside = fit_probe(train, folds, [fresh]).answers
        y, truth = inside.codes(), outside.codes()
        patient, p = np.array(train.patient_id), inside.probability
        fitted = [temperature_by(rule, p, y, patient) for rule in RULES]
        ours = fit_temperature(p, y, made[1])
        yield [probabilities_loss(outside.probability, truth, T) for T in (1, *fitted, ours)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", action="append", choices=("stop", "tested", "temperatures"))
    parser.add_argument("--n", type=int, default=40, help="sets of data; of the small ones")
    parser.add_argument("--phantom", type=Path)
    args = parser.parse_args()
    print_machine("numpy", "scipy", "scikit-learn")
    if args.phantom and not args.phantom.exists():
        write_phantom(args.phantom)
    parts = args.part or ("stop", "tested", "temperatures")
    with threadpool_limits(1):
        if "stop" in parts:
            # What is small is fitted whole; here the rule itself is tried.
            with mock.patch.object(training_sets, "_SMALL_CELLS", 0):
                report_stop(2 * args.n, args.phantom)
        if "tested" in parts:
            report_tested(args.n, args.phantom)
        if "temperatures" in parts:
            report_temperatures(args.n // 3)


if __name__ == "__main__":
    main()
