"""Do the intervals of a drop's parts and of subgroups' shortfalls hold? Simulated: truth is known.

    python benchmarks/bench_elsewhere.py [--rounds N]

Populations are those of `bench_coverage.py`. Home shows all classes alike, the external one some of
them rarely and with less skill, so that both parts of the drop are there; each round samples
patients of both. Of four subgroups all are alike, or one has less skill. Rounds in which fewer than
two patients of a cohort or subgroup show a class are left out.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import numpy as np
from bench_coverage import SKEWED, Design, of_model, population
from common import print_machine

from embedcache.files.arrays import Floats
from embedcache.scoring.confusion import table_score
from embedcache.scoring.shift import take_apart
from embedcache.scoring.subgroups import Side, Subgroup, shortfalls
from embedcache.scoring.subject import score_of_sums

SIZES = (20, 50, 150, 500)
N_HOME = 150
EVEN = (0.2,) * 5
N_SUBGROUPS = 4
CLASSES = tuple("abcde")
WAYS = {"several classes a patient": 5.0, "one class a patient": None}


@dataclass(frozen=True)
class Tables:
    """What the scores need to know of units: confusion tables by patient, tested by one model."""

    tables: Floats
    classes: tuple[str, ...] = CLASSES
    n_folds: int = 1

    @property
    def n_patients(self):
        return len(self.tables)

    def patient_tables(self):
        return self.tables

    def sign(self, _metric):
        return 1.0

    def score(self, metric):
        return score_of_sums(
            metric, "", self.tables, lambda s: table_score(metric, CLASSES, s), self.n_patients
        )

    def value(self):
        return table_score("macro_f1", CLASSES, self.tables.sum(axis=0)[None])[0]

    def shows_all(self):
        n_images = self.tables.reshape(-1, len(CLASSES), len(CLASSES) + 1).sum(axis=2)
        return ((n_images > 0).sum(axis=0) > 1).all()


def sample(tables, n_patients, chance):
    return Tables(tables[chance.integers(len(tables), size=n_patients)])


def holds(spread, truth):
    return spread.low <= truth <= spread.high


def drops(n_rounds):
    print(
        f"\nThe parts of a drop of macro F1, {N_HOME} patients at home: coverage of 95 % intervals"
    )
    for name, several in WAYS.items():
        home = of_model(population(Design(EVEN, several), seed=1), 0)
        outside = of_model(population(Design(SKEWED, several, skill=1.8), seed=2), 0)
        whole = [[Tables(tables)] for tables in (home, outside, outside)]
        truth = take_apart(*whole, "macro_f1")
        print(f"{name}: mix {truth.mix.value:.3f}, rest {truth.rest.value:.3f}")
        for n_outside in SIZES:
            chance, hits = np.random.default_rng(n_outside), []
            for _ in range(n_rounds):
                ours, theirs = sample(home, N_HOME, chance), sample(outside, n_outside, chance)
                if ours.shows_all() and theirs.shows_all():
                    parts = take_apart([ours], [theirs], [theirs], "macro_f1")
                    pairs = (parts.mix, truth.mix.value), (parts.rest, truth.rest.value)
                    hits.append([holds(*pair) for pair in pairs])
            mix, rest = np.mean(hits, axis=0)
            score = f"mix {mix:.3f}, rest {rest:.3f}"
            print(f"{n_outside:5} patients outside: {score}; {len(hits)} rounds")


def subgroups(n_rounds):
    print(
        f"\n{N_SUBGROUPS} subgroups, macro F1: coverage of each shortfall, and of the largest one;"
    )
    print("how often a corrected p is at most 0.05")
    for name, several in WAYS.items():
        usual, worse = (
            of_model(population(Design(EVEN, several, skill=skill), seed=seed), 0)
            for seed, skill in ((1, 2.4), (2, 1.2))
        )
        for title, last in (("all alike", usual), ("one worse", worse)):
            members = [usual] * (N_SUBGROUPS - 1) + [last]
            means = [tables.mean(axis=0) for tables in members]
            truth = {
                str(number): Tables((sum(means) - mean)[None]).value() - Tables(mean[None]).value()
                for number, mean in enumerate(means)
            }
            print(f"{name}, {title}: true shortfalls {truth['0']:.3f}, {truth['3']:.3f}")
            for n_patients in (100, 200, 500):
                line = _of_size(members, truth, n_patients // N_SUBGROUPS, n_rounds)
                print(f"{n_patients:5} patients: {line}")


def _of_size(members, truth, n_each, n_rounds):
    chance = np.random.default_rng(n_each)
    each, chosen, p_of_rest, p_of_last = [], [], [], []
    for _ in range(n_rounds):
        parts = [sample(tables, n_each, chance) for tables in members]
        if not all(part.shows_all() for part in parts):
            continue
        places, tested = np.arange(n_each * N_SUBGROUPS), []
        for number, part in enumerate(parts):
            is_in = places // n_each == number
            rest = np.concatenate([p.tables for i, p in enumerate(parts) if i != number])
            sides = Side([part], places[is_in]), Side([Tables(rest)], places[~is_in])
            tested.append(Subgroup(str(number), CLASSES, *sides))
        rows, largest = shortfalls(tested, "macro_f1", len(places), n_draws=100)
        each += [holds(row, truth[row.subgroup]) for row in rows]
        chosen.append(holds(largest, truth[rows[0].subgroup]))
        corrected = {row.subgroup: row.p_corrected for row in rows}
        p_of_last.append(corrected["3"])
        p_of_rest.append(min(corrected.values()))
    if truth["3"] > 0.01:
        level = f"the worse one found {np.mean(np.array(p_of_last) <= 0.05):.3f}"
    else:
        level = f"any found {np.mean(np.array(p_of_rest) <= 0.05):.3f}"
    return f"each {np.mean(each):.3f}, largest {np.mean(chosen):.3f}, {level}; {len(chosen)} rounds"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1000)
    args = parser.parse_args()
    print_machine("numpy")
    drops(args.rounds)
    subgroups(args.rounds)


if __name__ == "__main__":
    main()
