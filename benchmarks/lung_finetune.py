"""Is fine-tuning worth it? Probe and fine-tuned model of one encoder, on the same patients.

    python benchmarks/lung_finetune.py --data DIR --sononet FILE --work DIR

The data and FILE are those of lung_patients.py. The work folder keeps what is done: a rerun goes on
where this one was, and prints the same.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from common import print_machine

import embedcache
from embedcache.finetune.jobs import Epoch
from embedcache.verbs.finetune_options import Callbacks

ENCODERS = ("sononet16", "efficientnet-lite0")
WHERE = "label <> 'viral_pneumonia'"  # four patients, fewer than folds


def tell(one: Epoch) -> None:
    print(f"fold {one.fold} epoch {one.epoch}: {one.macro_f1:.3f}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sononet", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--regimes", nargs="+", default=["finetune", "lp-ft"])
    given = parser.parse_args()
    print_machine("torch", "torchvision", "timm", "lightning-fabric", "scikit-learn")
    data = given.data.resolve()
    project = embedcache.open(
        manifest=data / "data_manifest.csv", data_root=data, store=given.work / "store"
    )
    weights = {"sononet16": {"weights": given.sononet}}
    asked = {"train_cohort": "pocus", "external": ("northumbria",), "where": WHERE}
    for name in ENCODERS:
        settings = weights.get(name, {})
        project.extract(name, **settings)
        runs = [
            probe.run_id
            for external_by in ("refit", "folds")
            for probe in project.probe(name, external_by=external_by, **asked)
        ]
        for regime in given.regimes:
            [outcome] = project.finetune(
                name,
                regime=regime,
                changes={"epochs": given.epochs},
                callbacks=Callbacks(on_epoch=tell),
                **asked,
                **settings,
            )
            runs.append(outcome.run_id)
            record = outcome.record
            costs = record.training_costs
            print(
                f"{name} {regime}: {len(costs)} folds of {given.epochs} epochs in "
                f"{sum(cost.seconds for cost in costs):.0f} s, {record.images_per_s:.0f} images/s, "
                f"{record.compute_share:.0%} of it forward and backward; best epochs "
                f"{record.best_epochs}"
            )
        compared = project.compare(runs)
        print(f"\n{name}: macro F1 [95 % interval over patients], same images, same folds")
        for cohort in compared.cohorts:
            for standing in cohort.comparison.standings:
                pair = cohort.comparison.behind_best(standing.name)
                behind = (
                    "best"
                    if pair is None
                    else f"behind by {pair.difference:.3f} [{pair.low:.3f}, {pair.high:.3f}], "
                    f"corrected p {pair.p_corrected:.3f}"
                )
                print(
                    f"  {cohort.cohort:12} {standing.name:52} {standing.value:.3f} "
                    f"[{standing.low:.3f}, {standing.high:.3f}]  {behind}"
                )
            print(f"  {cohort.cohort}: {cohort.n_patients} patients, {cohort.n_images} images")
        print(flush=True)


if __name__ == "__main__":
    main()
