"""Real lung ultrasound: split by patient, in another collection, and wrongly by frame.

    python benchmarks/lung_patients.py --data DIR --sononet FILE [--work DIR]

DIR holds the images and `data_manifest.csv` of the openly licensed part of the COVID-19 lung
ultrasound data set (Born et al. 2021, doi:10.3390/app11020672), cohorts 'pocus' and 'northumbria';
FILE is the SonoNet-16 checkpoint.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
import time
from pathlib import Path

from common import print_machine

import embedcache
from embedcache.data.manifest import write_manifest

MODELS = ["sononet16", "efficientnet-lite0", "pixels", "random:efficientnet-lite0"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sononet", type=Path, required=True)
    parser.add_argument("--work", type=Path, help="keep the store here")
    args = parser.parse_args()
    print_machine("torch", "timm", "scikit-learn")
    with tempfile.TemporaryDirectory() as name:
        work = args.work or Path(name)
        work.mkdir(parents=True, exist_ok=True)
        manifest = args.data.resolve() / "data_manifest.csv"
        places = {"data_root": args.data.resolve(), "store": work / "store"}
        project = embedcache.open(manifest=manifest, **places)
        start = time.perf_counter()
        reports = [
            project.extract("sononet16", weights=args.sononet),
            project.extract(MODELS[1:]),
        ]
        n_written = sum(tally.n_written for report in reports for tally in report.tallies)
        print(f"{n_written} rows written, {time.perf_counter() - start:.0f} s")
        show("patients apart", project, MODELS, external=["northumbria"])
        with manifest.open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        for row in rows:
            row["patient_id"] = row["image_id"]
        write_manifest(work / "frames.csv", rows)
        frames = embedcache.open(manifest=work / "frames.csv", **places)
        show("FRAMES at random: wrong", frames, MODELS)


def show(
    title: str,
    project: embedcache.Project,
    models: list[str],
    external: list[str] | None = None,
) -> None:
    print(f"\n{title}")
    start = time.perf_counter()
    runs = project.probe(
        models, train_cohort="pocus", external=external, where="label <> 'viral_pneumonia'"
    )
    for run in runs:
        for estimate in run.estimates:
            if estimate.metric == "macro_f1" and estimate.level == "image":
                print(
                    f"  {run.encoder:28} {estimate.cohort:12} {estimate.scoring:7} "
                    f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]  "
                    f"{estimate.n_patients} patients, {estimate.n_images} images"
                )
    print(f"  {len(runs)} probes, {time.perf_counter() - start:.0f} s")
    compared = project.compare(runs=[run.run_id for run in runs])
    for cohort in compared.cohorts:
        for standing in cohort.comparison.standings[1:]:
            pair = cohort.comparison.behind_best(standing.name)
            print(
                f"  {pair.worse:28} {cohort.cohort:12} behind {pair.better}: {pair.difference:.3f} "
                f"[{pair.low:.3f}, {pair.high:.3f}], corrected p {pair.p_corrected:.3f}"
            )


if __name__ == "__main__":
    main()
