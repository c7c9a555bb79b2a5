"""Do the intervals of operating points hold? Simulated: the truth is known.

    python benchmarks/bench_operating.py [--rounds N]

A large population of patients is drawn once; frames of a patient share how hard they are and which
class they resemble. Each round samples some patients, chooses thresholds on the other folds as a
run does, and looks whether the interval holds what the population has at the population's
threshold (sensitivity), or at the sample's thresholds (specificity).
"""

from __future__ import annotations

import argparse
from collections import defaultdict

import numpy as np
from common import print_machine

from embedcache.scoring.operating import (
    SPECIFICITY,
    rates_above,
    rates_out_of_fold,
    threshold_at,
    thresholds_of_others,
)
from embedcache.scoring.ranking import Ranking

N_POPULATION = 40_000
N_FOLDS = 5
SHARES = [0.35, 0.25, 0.2, 0.15, 0.05]
K = len(SHARES)
DESIGNS = {  # classes that a patient shows: larger is more; frames of a patient
    "several classes a patient, 11 frames": (2.0, 11),
    "several classes a patient, 3 frames": (2.0, 3),
    "one class a patient, 11 frames": (None, 11),
    "one class a patient, 3 frames": (None, 3),
}
CLASSES = {"common": 1, "rare": 4}


def population(concentration, n_frames, skilled=2.4, seed=1):
    """Return first frame of each patient, true class and probabilities of each frame."""
    chance = np.random.default_rng(seed)
    size = chance.geometric(1 / n_frames, size=N_POPULATION)
    patient = np.repeat(np.arange(N_POPULATION), size)
    if concentration is None:
        mix = np.eye(K)[chance.choice(K, p=SHARES, size=N_POPULATION)]
    else:
        mix = chance.dirichlet(np.multiply(SHARES, concentration * K), size=N_POPULATION)
    draw = chance.random(len(patient))[:, None]
    truth = (draw > mix[patient].cumsum(axis=1)).sum(axis=1).clip(0, K - 1)
    skill = chance.normal(skilled, 0.8, size=N_POPULATION)[patient]
    logits = chance.normal(size=(len(patient), K))
    logits += chance.normal(0, 1.2, size=(N_POPULATION, K))[patient]
    logits[np.arange(len(truth)), truth] += skill
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.r_[0, size.cumsum()], truth, odds / odds.sum(axis=1, keepdims=True)


def coverage(n_rounds, sizes=(20, 50, 150, 500)):
    for design, settings in DESIGNS.items():
        first, truth, probability = population(*settings)
        print(f"\n{design}")
        for name, number in CLASSES.items():
            positive, p = truth == number, probability[:, number]
            rest, own = np.sort(p[~positive]), np.sort(p[positive])
            threshold = np.quantile(rest, SPECIFICITY)
            goal = above(own, threshold)
            print(f" class {name}: sensitivity {goal:.3f} at a specificity of 0.95")
            for n_patients in sizes:
                chance = np.random.default_rng(n_patients)
                held = defaultdict(list)
                for _ in range(n_rounds):
                    who = chance.integers(N_POPULATION, size=n_patients)
                    for key, value in a_round(who, first, positive, p, rest, goal, chance).items():
                        held[key].append(value)
                cells = ", ".join(
                    f"{key} {np.nanmean(v):.3f} ({len(v)})" for key, v in held.items()
                )
                print(f"  {n_patients:4} patients: {cells}", flush=True)


def above(ordered, threshold):
    return 1 - np.searchsorted(ordered, threshold, side="right") / len(ordered)


def a_round(who, first, positive, p, rest, goal, chance):
    size = np.diff(first)[who]
    rows = np.repeat(first[who] - np.r_[0, size.cumsum()[:-1]], size) + np.arange(size.sum())
    patient = np.repeat(np.arange(len(who)), size)
    fold = chance.permutation(len(who))[patient] % N_FOLDS
    ranking = Ranking(positive[rows], p[rows], patient, len(who), fold)
    m = len(np.unique(patient[ranking.positive]))
    out = {}
    if m < 2:
        return out
    scores = list(rates_out_of_fold(ranking, ""))
    if not scores:
        return out
    sens, spec = (s.spread for s in scores)
    if not np.isnan(sens.low):
        out["sens"] = sens.low <= goal <= sens.high
        out["width"] = sens.high - sens.low
        out["mean"] = sens.value
    thresholds = thresholds_of_others(ranking)
    true_spec = np.mean([1 - above(rest, t) for t in thresholds[~ranking.positive]])
    out["spec"] = spec.low <= true_spec <= spec.high
    old = rates_above(ranking, "", threshold_at(ranking, SPECIFICITY))[0].spread
    out["fixed"] = old.low <= goal <= old.high
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1000)
    args = parser.parse_args()
    print_machine("numpy")
    coverage(args.rounds)


if __name__ == "__main__":
    main()
