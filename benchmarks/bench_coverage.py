"""Do the intervals hold what they promise, and the tests their level? Simulated: truth is known.

    python benchmarks/bench_coverage.py [--rounds N]

A large population of patients with about 11 frames each is drawn once; frames of a patient share
how hard they are and which class they resemble. Each round samples some patients from it, makes
every interval, and looks whether it holds the population's own score. 'images' is the bootstrap
that takes frames for independent. With 1,000 rounds a coverage of 0.95 is uncertain by 0.014.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from dataclasses import replace
from statistics import NormalDist

import numpy as np
from common import print_machine

from embedcache.scoring.calibration import calibration_gaps
from embedcache.scoring.class_units import ClassUnits
from embedcache.scoring.confusion import table_score
from embedcache.scoring.resampling import ece_interval, interval, resample_weights

N_POPULATION = 60_000
N_RESAMPLES = 1000
CLASSES = tuple("abcde")
K = len(CLASSES)
DESIGNS = {  # class shares, and how many classes a patient shows: larger is more
    "five classes alike": ([0.2] * 5, 5.0),
    "one class of five rare, few patients show it": ([0.4, 0.25, 0.2, 0.1, 0.05], 2.0),
}
METHODS = ("expanded (ours)", "percentile", "BCa", "images")


def population(shares, concentration, seed=1):
    """Return patient, true class and two models' answers of each frame."""
    chance = np.random.default_rng(seed)
    size = 1 + chance.geometric(0.1, size=N_POPULATION)
    patient = np.repeat(np.arange(N_POPULATION), size)
    mix = chance.dirichlet(np.multiply(shares, concentration), size=N_POPULATION)
    draw = chance.random(len(patient))[:, None]
    truth = (draw > mix[patient].cumsum(axis=1)).sum(axis=1).clip(0, K - 1)
    skill = chance.normal(2.4, 0.8, size=N_POPULATION)[patient]
    said = []
    for _ in range(2):
        logits = chance.normal(size=(len(patient), K))
        logits += chance.normal(0, 1.2, size=(N_POPULATION, K))[patient]
        logits[np.arange(len(truth)), truth] += skill
        said.append(logits.argmax(axis=1))
    return patient, truth, said


def joint_tables(patient, truth, said):
    """Return each patient's table of truth and both answers, shape (patients, K^3)."""
    cells = ((patient * K + truth) * K + said[0]) * K + said[1]
    return np.bincount(cells, minlength=N_POPULATION * K**3).reshape(N_POPULATION, K**3) * 1.0


def of_model(joint, number):
    """Return one model's confusion tables; no answer lies outside the classes."""
    tables = joint.reshape(-1, K, K, K).sum(axis=3 - number)
    return np.pad(tables, [(0, 0), (0, 0), (0, 1)]).reshape(len(joint), -1)


def one_model(metric):
    return lambda joint: table_score(metric, CLASSES, of_model(joint, 0))


def lead(joint):
    return np.subtract(*(table_score("macro_f1", CLASSES, of_model(joint, i)) for i in (0, 1)))


SCORES = {
    "macro F1": one_model("macro_f1"),
    "accuracy": one_model("accuracy"),
    "F1 of e": one_model("f1:e"),  # the rare class, where one is
    "difference": lead,  # of the macro F1 of two models
}


def bca(once, draws, left_out):
    """Return the interval of Efron 1987, with the acceleration of the jackknife over patients."""
    normal = NormalDist()
    below = np.mean(draws < once) + np.mean(draws == once) / 2
    bias = normal.inv_cdf(min(max(below, 1e-3), 1 - 1e-3))
    apart = left_out.mean() - left_out
    skew = (apart**3).sum() / max(1e-12, 6 * (apart**2).sum() ** 1.5)
    ends = [bias + normal.inv_cdf(tail) for tail in (0.025, 0.975)]
    return np.quantile(draws, [normal.cdf(bias + end / (1 - skew * end)) for end in ends])


def intervals(score, joint, weights, chance):
    """Return every method's interval."""
    n_patients, total = len(joint), joint.sum(axis=0)
    drawn = np.asarray(weights @ joint.astype(np.float32), np.float64)
    n_images = int(total.sum())
    images = chance.multinomial(n_images, total / n_images, size=N_RESAMPLES) * 1.0
    draws, left_out, images = (
        values[~np.isnan(values)] for values in map(score, (drawn, total - joint, images))
    )
    return dict(
        zip(
            METHODS,
            (
                interval(draws, n_patients),
                np.quantile(draws, [0.025, 0.975]),
                bca(score(total[None])[0], draws, left_out),
                np.quantile(images, [0.025, 0.975]),
            ),
            strict=True,
        )
    )


def coverage(n_rounds):
    for design, settings in DESIGNS.items():
        joint = joint_tables(*population(*settings))
        truth = {name: score(joint.sum(axis=0)[None])[0] for name, score in SCORES.items()}
        said = ", ".join(f"{name} {value:.3f}" for name, value in truth.items())
        print(f"\nCoverage of nominal 95 % intervals: {design}\ntruth: {said}")
        print(f"{'':24}{''.join(f'{method:>17}' for method in METHODS)}")
        for n_patients in (15, 50, 150, 500):
            chance = np.random.default_rng(n_patients)
            held = defaultdict(list)
            for number in range(n_rounds):
                weights = resample_weights(n_patients, N_RESAMPLES, number)
                sample = joint[chance.integers(N_POPULATION, size=n_patients)]
                for name, score in SCORES.items():
                    if np.isnan(score(sample.sum(axis=0)[None])[0]):
                        continue  # no patient with the class
                    for method, (low, high) in intervals(score, sample, weights, chance).items():
                        held[name, method].append(low <= truth[name] <= high)
            for name in SCORES:
                cells = "".join(f"{np.mean(held[name, method]):17.3f}" for method in METHODS)
                print(f"{n_patients:4} patients, {name:10}{cells}")


def size_of_the_test(n_rounds):
    print("\nTwo models that differ by chance only: how often p <= 0.05 (macro F1)")
    print(f"{'':14}{'swap patients (ours)':>22}{'swap images':>14}")
    joint = joint_tables(*population(*DESIGNS["five classes alike"]))
    for n_patients in (15, 50, 150, 500):
        chance = np.random.default_rng(n_patients)
        p = np.array(
            [
                both_p(joint[chance.integers(N_POPULATION, size=n_patients)], chance)
                for _ in range(n_rounds)
            ]
        )
        by_patient, by_image = (p <= 0.05).mean(axis=0)
        print(f"{n_patients:4} patients {by_patient:22.3f}{by_image:14.3f}")


def both_p(sample, chance):
    """Return p of the swap by patient and of the swap by image."""
    swapped = sample.reshape(-1, K, K, K).swapaxes(2, 3).reshape(len(sample), -1)
    total = sample.sum(axis=0)
    swaps = chance.integers(2, size=(N_RESAMPLES, len(sample))) * 1.0
    moved = chance.binomial(total.astype(int), 0.5, size=(N_RESAMPLES, len(total))) * 1.0
    turned = moved.reshape(-1, K, K, K).swapaxes(2, 3).reshape(len(moved), -1)
    drawn = total + swaps @ (swapped - sample), total - moved + turned
    observed = abs(lead(total[None])[0]) - 1e-12
    return [(1 + (np.abs(lead(one)) >= observed).sum()) / (1 + N_RESAMPLES) for one in drawn]


def calibration(n_rounds):
    """ECE of a model that is calibrated, and of the same with its logits doubled."""
    print("\nCoverage of 95 % intervals of the ECE, 15 bins")
    print(f"{'':32}{'distance (ours)':>17}{'percentile':>12}{'basic':>8}{'mean estimate':>16}")
    chance = np.random.default_rng(0)
    size = 1 + chance.geometric(0.1, size=N_POPULATION)
    first = np.r_[0, size.cumsum()]
    patient = np.repeat(np.arange(N_POPULATION), size)
    logits = chance.normal(0, 2, size=(N_POPULATION, K))[patient]
    logits += chance.normal(size=logits.shape)
    draw = chance.random(len(patient))[:, None]
    truth = (draw > softmax(logits).cumsum(axis=1)).sum(axis=1).clip(0, K - 1)
    for name, factor in {"calibrated": 1.0, "too sure": 2.0}.items():
        model = ClassUnits(
            classes=CLASSES,
            patient=patient,
            truth=truth,
            predicted=logits.argmax(axis=1),
            probability=softmax(factor * logits),
            columns=np.arange(K),
            fold=np.zeros(len(truth), np.int64),
        )
        gaps = calibration_gaps(model, model.everyone)
        goal = 0.0 if factor == 1 else np.abs(gaps).sum()
        for n_patients in (50, 500):
            rows = [
                ece_round(model, first, chance.integers(N_POPULATION, size=n_patients), goal, i)
                for i in range(n_rounds)
            ]
            ours, percentile, basic, value = np.mean(rows, axis=0)
            print(
                f"{name:10} ({goal:.3f}), {n_patients:3} patients{ours:15.3f}{percentile:12.3f}"
                f"{basic:8.3f}{value:16.3f}"
            )


def softmax(logits):
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    return odds / odds.sum(axis=1, keepdims=True)


def ece_round(model, first, who, goal, seed):
    rows = np.concatenate([np.arange(first[one], first[one + 1]) for one in who])
    units = replace(
        model,
        patient=np.repeat(np.arange(len(who)), np.diff(first)[who]),
        truth=model.truth[rows],
        predicted=model.predicted[rows],
        probability=model.probability[rows],
        fold=model.fold[rows],
    )
    (gaps,), drawn = (
        calibration_gaps(units, weights)
        for weights in (units.everyone, resample_weights(len(who), N_RESAMPLES, seed))
    )
    value = np.abs(gaps).sum()
    low, high = np.quantile(np.abs(drawn).sum(axis=1), [0.025, 0.975])
    ends = (ece_interval(gaps, drawn, len(who)), (low, high), (2 * value - high, 2 * value - low))
    return [*(max(0, a) <= goal <= b for a, b in ends), value]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1000)
    args = parser.parse_args()
    print_machine("numpy")
    print(
        f"{args.rounds} rounds of {N_RESAMPLES} resamples; a population of {N_POPULATION} patients"
    )
    coverage(args.rounds)
    size_of_the_test(args.rounds)
    calibration(args.rounds)


if __name__ == "__main__":
    main()
