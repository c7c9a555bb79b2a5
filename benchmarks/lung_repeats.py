"""Real lung ultrasound: what another seed of the folds does to the difference of two encoders.

    python benchmarks/lung_repeats.py --data DIR --sononet FILE [--repeats R] [--work DIR]

DIR holds the images and `data_manifest.csv` of the openly licensed part of the COVID-19 lung
ultrasound data set (Born et al. 2021, doi:10.3390/app11020672), cohorts 'pocus' and 'northumbria';
FILE is the SonoNet-16 checkpoint.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import fmean, stdev

from common import print_machine

import embedcache

MODELS = ["sononet16", "efficientnet-lite0", "pixels"]
COHORT = "pocus"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sononet", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=6)
    parser.add_argument("--work", type=Path, help="keep the store here")
    args = parser.parse_args()
    print_machine("scikit-learn", "numpy")
    with tempfile.TemporaryDirectory() as name:
        manifest = args.data.resolve() / "data_manifest.csv"
        project = embedcache.open(manifest=manifest, store=args.work or Path(name))
        project.extract("sononet16", weights=args.sononet)
        project.extract(MODELS[1:])
        question = {"train_cohort": COHORT, "where": "label <> 'viral_pneumonia'"}
        start = time.perf_counter()
        report = project.probe(MODELS, repeats=args.repeats, external=[], **question)
        seconds = time.perf_counter() - start
        scores = {
            model: [run.score("macro_f1").value for run in report if run.encoder == model]
            for model in MODELS
        }
        estimate = report[0].score("macro_f1")
        print(
            f"{estimate.n_patients} patients, {estimate.n_images} images of '{COHORT}'; "
            f"{len(report)} probes, {seconds:.0f} s\n"
        )
        show_by_seed(scores)
        runs = {model: [r.run_id for r in report if r.encoder == model] for model in MODELS}
        show_comparisons(project, runs)


def show_by_seed(scores: dict[str, list[float]]) -> None:
    """Print the scores of each encoder and their differences, a column a seed."""
    first, *others = scores
    differences = {
        f"{first} - {other}": [a - b for a, b in zip(scores[first], scores[other], strict=True)]
        for other in others
    }
    seeds = "".join(f"{seed:8}" for seed in range(len(scores[first])))
    print(f"{'macro F1 out of fold, by seed':31}{seeds}    mean      sd")
    for name, values in scores.items():
        print(f"{name:31}" + "".join(f"{v:8.3f}" for v in [*values, fmean(values), stdev(values)]))
    for name, values in differences.items():
        shown = "".join(f"{v:+8.3f}" for v in [*values, fmean(values)])
        print(f"{name:31}{shown}{stdev(values):8.3f}")


def show_comparisons(project: embedcache.Project, runs: dict[str, list[str]]) -> None:
    """Print what `compare` says of the first encoder and another, by one seed and by all."""
    first, *others = runs
    for other in others:
        print(f"\n{first} against {other}: lead of the better one [95 % interval], p")
        for seed, pair in enumerate(zip(runs[first], runs[other], strict=True)):
            print_pair(f"seed {seed}", project.compare(runs=pair))
        print_pair("all seeds", project.compare(runs=[*runs[first], *runs[other]]))


def print_pair(title: str, report: embedcache.CompareReport) -> None:
    [cohort] = report.cohorts
    [pair] = cohort.comparison.pairs
    print(
        f"  {title:10} {pair.better:20} {pair.difference:.3f} [{pair.low:.3f}, {pair.high:.3f}], "
        f"p {pair.p:.3f}"
    )


if __name__ == "__main__":
    main()
