"""Several models in one pass, against one pass each.

    python benchmarks/bench_many.py --images DIR [-m NAME ...] [--n 64] [--rounds 3]

Both ways encode the same images from nothing into fresh stores, in turn, in one run. What the
single pass saves is reading, hashing and decoding: little where the networks are slow.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from common import print_machine, spread

import embedcache
from embedcache.data.images import SUFFIXES
from embedcache.data.manifest import write_manifest
from embedcache.extract.report import PassReport

MODELS = ["random:efficientnet-lite0", "random:sononet16", "pixels"]


def seconds(report: PassReport) -> float:
    return report.wall_s - report.loaded_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("-m", "--model", action="append")
    parser.add_argument("--n", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    models = args.model or MODELS
    print_machine("torch", "timm", "pillow")
    paths = sorted(p for p in args.images.rglob("*") if p.suffix.lower() in SUFFIXES)
    paths = paths[:: max(1, len(paths) // args.n)][: args.n]
    rows = [
        {
            "image_id": str(number),
            "path": path.relative_to(args.images).as_posix(),
            "patient_id": "P",
            "label": "x",
            "cohort": "c",
        }
        for number, path in enumerate(paths)
    ]
    together, apart, ratios, decoding = [], [], [], []
    for _ in range(args.rounds):
        with tempfile.TemporaryDirectory() as name:
            manifest = Path(name, "data_manifest.csv")
            write_manifest(manifest, rows)
            places = {"manifest": manifest, "data_root": args.images}
            one = embedcache.open(**places, store=Path(name, "one")).extract(models)
            project = embedcache.open(**places, store=Path(name, "each"))
            each = [project.extract(model) for model in models]
        together.append(seconds(one))
        apart.append(sum(map(seconds, each)))
        ratios.append(together[-1] / apart[-1])
        decoding.append(sum(r.seconds["decode"] for r in each) / one.seconds["decode"])
    print(f"\n{len(paths)} images, {', '.join(models)}, {args.rounds} rounds; median [least, most]")
    print(f"one pass, s            {spread(together, 1)}")
    print(f"a pass each, s in all  {spread(apart, 1)}")
    print(f"one pass / all passes  {spread(ratios, 2)}")
    print(f"decoding, each / one   {spread(decoding, 2)}")


if __name__ == "__main__":
    main()
