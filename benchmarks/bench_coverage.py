"""Do the intervals hold what they promise, and the tests their level? Simulated: truth is known.

    python benchmarks/bench_coverage.py [--rounds N]

A large population of patients is drawn once; frames of a patient share how hard they are and which
class they resemble. Each round samples some patients from it, makes every interval, and looks
whether it holds the population's own score. 'percentile' is the bootstrap of patients from 2.5 to
97.5 %, 'images' the bootstrap that takes frames for independent. With 1,000 rounds a coverage of
0.95 is uncertain by 0.014. Rounds in which fewer than two patients show a class are left out of the
scores of it, and of those over all classes. The bootstraps are tried in every tenth round.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from common import print_machine

from embedcache.scoring.calibration import calibration_gaps
from embedcache.scoring.class_units import ClassUnits
from embedcache.scoring.confusion import table_score
from embedcache.scoring.jackknife import SHARE, deviations, error_of, spread_with
from embedcache.scoring.pairs import (
    Lead,
    draw_statistics,
    equivalence_p,
    patients_needed,
    spread_and_p,
)
from embedcache.scoring.resampling import ece_interval, resample_weights

N_POPULATION = 60_000
N_RESAMPLES = 1000
EVERY = 10  # rounds: the bootstraps, which cost most, are tried in one of so many
SIZES = (20, 50, 150, 500)


@dataclass(frozen=True)
class Design:
    """How a population is made.

    Parameters
    ----------
    shares
        Share of each class.
    several
        Concentration of the classes of a patient, larger for more even ones; None where each
        patient has one class.
    images
        Function of a generator that returns the number of images of each patient.
    skill
        Mean lead of the right class over the others, in logits.
    """

    shares: tuple[float, ...]
    several: float | None = None
    images: Callable[[np.random.Generator], np.ndarray] = lambda chance: (
        1 + chance.geometric(0.1, size=N_POPULATION)
    )
    skill: float = 2.4


SKEWED = (0.4, 0.25, 0.2, 0.1, 0.05)
DESIGNS = {
    "several classes a patient": Design((0.2,) * 5, 5.0),
    "several classes a patient, one of them rare": Design(SKEWED, 2.0),
    "one class a patient": Design(SKEWED),
    "one class a patient, some with hundreds of images": Design(
        SKEWED,
        images=lambda chance: 1 + np.minimum(200, 5 * chance.pareto(1.2, N_POPULATION)).astype(int),
    ),
    # Not looked at before the method was fixed.
    "one class a patient, one or two images, nearly all right": Design(
        (0.6, 0.3, 0.1), images=lambda chance: chance.integers(1, 3, N_POPULATION), skill=5.0
    ),
    "several classes a patient, two classes, 30 images each": Design(
        (0.7, 0.3), 1.0, images=lambda _: np.full(N_POPULATION, 30), skill=1.2
    ),
}


def population(design, seed=1, head_start=0.0):
    """Return each patient's counts of truth and both models' answers, shape (patients, k, k, k).

    The first model's logit of the right class is larger by `head_start`.
    """
    chance, k = np.random.default_rng(seed), len(design.shares)
    patient = np.repeat(np.arange(N_POPULATION), design.images(chance))
    if design.several is None:
        truth = chance.choice(k, p=design.shares, size=N_POPULATION)[patient]
    else:
        mix = chance.dirichlet(np.multiply(design.shares, design.several), size=N_POPULATION)
        draw = chance.random(len(patient))[:, None]
        truth = (draw > mix[patient].cumsum(axis=1)).sum(axis=1).clip(0, k - 1)
    skill = chance.normal(design.skill, 0.8, size=N_POPULATION)[patient]
    answers = []
    for lead in (head_start, 0.0):
        logits = chance.normal(size=(len(patient), k))
        logits += chance.normal(0, 1.2, size=(N_POPULATION, k))[patient]
        logits[np.arange(len(truth)), truth] += skill + lead
        answers.append(logits.argmax(axis=1))
    cells = ((patient * k + truth) * k + answers[0]) * k + answers[1]
    counts = np.bincount(cells, minlength=N_POPULATION * k**3)
    return counts.reshape(N_POPULATION, k, k, k) * 1.0


def of_model(joint, number):
    """Return one model's confusion tables; no answer lies outside the classes."""
    tables = joint.sum(axis=3 - number)
    return np.pad(tables, [(0, 0), (0, 0), (0, 1)]).reshape(len(joint), -1)


def scores_of(k):
    """Return functions of joint tables by name, each with the class that it is of."""
    names = tuple("abcdefgh"[:k])

    def one_model(metric):
        return lambda joint: table_score(metric, names, of_model(joint, 0))

    def lead(joint):
        return np.subtract(*(table_score("macro_f1", names, of_model(joint, i)) for i in (0, 1)))

    return {
        "macro F1": (one_model("macro_f1"), None),
        "accuracy": (one_model("accuracy"), None),
        f"F1 of {names[-1]}": (one_model(f"f1:{names[-1]}"), k - 1),
        f"recall of {names[-1]}": (one_model(f"recall:{names[-1]}"), k - 1),
        "difference": (lead, None),
    }


def bootstrap(score, sample, weights, chance):
    """Return the percentile intervals that resample patients, and images."""
    total = sample.sum(axis=0)
    n_images = int(total.sum())
    drawn = np.tensordot(weights, sample.astype(np.float32), 1).astype(np.float64)
    images = chance.multinomial(n_images, total.ravel() / n_images, size=N_RESAMPLES) * 1.0
    return [
        np.nanquantile(score(tables), [0.025, 0.975])
        for tables in (drawn, images.reshape(-1, *total.shape))
    ]


def pair_of(values, parts, seed=0):
    """Return a lead, and its statistics under random signs."""
    lead = Lead(np.atleast_1d(values), parts, np.empty(0))
    return lead, draw_statistics([lead], N_RESAMPLES, seed)[:, 0]


def closed_form(score, sample, n_holders, is_lead):
    total = sample.sum(axis=0)
    (value,), left_out = score(total[None]), score(total - sample)
    if is_lead:
        spread, _ = spread_and_p(*pair_of(value, deviations(left_out)))
    else:
        error = error_of(deviations(left_out), n_holders, SHARE)
        spread = spread_with(value, error, n_holders, SHARE)
    return spread.low, spread.high


def coverage(n_rounds):
    for title, design in DESIGNS.items():
        joint, scores = population(design), scores_of(len(design.shares))
        truth = {name: score(joint.sum(axis=0)[None])[0] for name, (score, _) in scores.items()}
        print(f"\nCoverage of nominal 95 % intervals: {title}")
        print("truth: " + ", ".join(f"{name} {value:.3f}" for name, value in truth.items()))
        print(f"{'':36}{'rounds':>8}{'jackknife':>11}{'percentile':>12}{'images':>8}")
        for n_patients in SIZES:
            chance = np.random.default_rng(n_patients)
            holds = defaultdict(list)
            weights = resample_weights(n_patients, N_RESAMPLES, 0)
            for number in range(n_rounds):
                sample = joint[chance.integers(N_POPULATION, size=n_patients)]
                holders = (sample.sum(axis=(2, 3)) > 0).sum(axis=0)
                for name, (score, label) in scores.items():
                    n_holders = n_patients if label is None else holders[label]
                    if (holders.min() if label is None else n_holders) < 2:
                        continue
                    ends = [closed_form(score, sample, n_holders, name == "difference")]
                    if number % EVERY == 0:
                        ends += bootstrap(score, sample, weights, chance)
                    holds[name].append([low <= truth[name] <= high for low, high in ends])
            for name, rows in holds.items():
                ours = np.mean([row[0] for row in rows])
                percentile, images = np.mean([row[1:] for row in rows if row[1:]], axis=0)
                print(
                    f"{n_patients:5} patients, {name:21}{len(rows):8}{ours:11.3f}{percentile:12.3f}"
                    f"{images:8.3f}",
                    flush=True,
                )


def pairs(n_rounds):
    """Level, contradictions, power and equivalence of the test of two models."""
    margin = 0.03
    print("\nTwo models, macro F1, fixed predictions; the margin of 'equal' is 0.03")
    print(f"{'':60}{'rounds':>7}{'p<=0.05':>9}{'theory':>8}{'against':>9}{'equal':>7}{'needed':>8}")
    for title in ("several classes a patient", "one class a patient"):
        design = DESIGNS[title]
        score = scores_of(len(design.shares))["difference"][0]
        for head_start in (0.0, 0.29):
            joint = population(design, head_start=head_start)
            truth = score(joint.sum(axis=0)[None])[0]
            for n_patients in (*SIZES, 2000):
                rows = pair_rounds(score, joint, n_patients, n_rounds, margin)
                errors = np.std([row[0] for row in rows])
                theory = power(truth / errors)
                p, against, equal = np.mean([row[1:4] for row in rows], axis=0)
                needed = np.median([row[4] for row in rows if row[4] is not None] or [np.nan])
                print(
                    f"{title}, true difference {truth:6.3f}, {n_patients:4} patients"[:60].ljust(60)
                    + f"{len(rows):7}{p:9.3f}{theory:8.3f}{against:9.3f}{equal:7.3f}{needed:8.0f}"
                )


def power(effect):
    """Return the chance that a two-sided test at 0.05 finds an effect of some standard errors."""
    from scipy.special import ndtr

    return float(ndtr(effect - 1.96) + ndtr(-effect - 1.96))


def pair_rounds(score, joint, n_patients, n_rounds, margin):
    """Return difference, p <= 0.05, whether the interval says otherwise, equal, patients needed."""
    chance, rows = np.random.default_rng(n_patients), []
    for number in range(n_rounds):
        sample = joint[chance.integers(N_POPULATION, size=n_patients)]
        if (sample.sum(axis=(2, 3)) > 0).sum(axis=0).min() < 2:
            continue
        total = sample.sum(axis=0)
        (value,), left_out = score(total[None]), score(total - sample)
        lead, drawn = pair_of(value, deviations(left_out), number)
        spread, p = spread_and_p(lead, drawn)
        is_apart = spread.low > 0 or spread.high < 0
        equal = equivalence_p(lead, drawn, margin) <= 0.05
        needed = patients_needed(lead, None) if p > 0.05 else None
        rows.append((value, p <= 0.05, is_apart != (p <= 0.05), equal, needed))
    return rows


def calibration(n_rounds):
    """ECE of a model that is calibrated, and of the same with its logits doubled."""
    print("\nCoverage of 95 % intervals of the ECE, 15 bins")
    print(f"{'':32}{'distance (ours)':>17}{'percentile':>12}{'basic':>8}{'mean estimate':>16}")
    chance = np.random.default_rng(0)
    size = 1 + chance.geometric(0.1, size=N_POPULATION)
    first = np.r_[0, size.cumsum()]
    patient = np.repeat(np.arange(N_POPULATION), size)
    logits = chance.normal(0, 2, size=(N_POPULATION, 5))[patient]
    logits += chance.normal(size=logits.shape)
    draw = chance.random(len(patient))[:, None]
    truth = (draw > softmax(logits).cumsum(axis=1)).sum(axis=1).clip(0, 4)
    for name, factor in {"calibrated": 1.0, "too sure": 2.0}.items():
        model = ClassUnits(
            classes=tuple("abcde"),
            patient=patient,
            truth=truth,
            predicted=logits.argmax(axis=1),
            probability=softmax(factor * logits),
            columns=np.arange(5),
            fold=np.zeros(len(truth), np.int64),
        )
        gaps = calibration_gaps(model, np.ones((1, model.n_patients)))
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
        for weights in (np.ones((1, len(who))), resample_weights(len(who), N_RESAMPLES, seed))
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
    pairs(args.rounds)
    calibration(args.rounds)


if __name__ == "__main__":
    main()
