"""What `audit` finds on real lung ultrasound, and how long it looks.

    python benchmarks/lung_audit.py --data DIR --sononet FILE [--work DIR]

DIR holds the images and `data_manifest.csv` of the openly licensed part of the COVID-19 lung
ultrasound data set (Born et al. 2021, doi:10.3390/app11020672), cohorts 'pocus' and 'northumbria';
FILE is the SonoNet-16 checkpoint.
"""

from __future__ import annotations

import argparse
import tempfile
import textwrap
import time
from pathlib import Path

from common import print_machine

import embedcache

MODELS = ["sononet16", "efficientnet-lite0"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sononet", type=Path, required=True)
    parser.add_argument("--work", type=Path, help="keep the store here")
    args = parser.parse_args()
    print_machine("numpy", "Pillow")
    with tempfile.TemporaryDirectory() as name:
        manifest = args.data.resolve() / "data_manifest.csv"
        project = embedcache.open(manifest=manifest, store=args.work or Path(name))
        project.extract("sononet16", weights=args.sononet)
        project.extract("efficientnet-lite0")
        question = {"where": "label <> 'viral_pneumonia'"}
        start = time.perf_counter()
        project.audit(MODELS, **question)
        first = time.perf_counter() - start
        report = project.audit(MODELS, **question)
    print(f"{report.n_images} images of {report.n_patients} patients, {len(MODELS)} encoders:")
    print(f"{first:.1f} s with every picture decoded, {report.seconds:.1f} s after that\n")
    print("macro F1 [95 % interval over patients]; chance")
    for score in report.scores:
        told = f"{score.target} from {score.source}, by {score.split}"
        print(
            f"  {told:46} {score.value:.3f} [{score.low:.3f}, {score.high:.3f}]  {score.chance:.3f}"
        )
    print()
    for finding in report.findings:
        text = f"{finding.severity}: {finding.kind}: {finding.message}"
        print(textwrap.fill(text, 96, subsequent_indent="  ", break_on_hyphens=False))


if __name__ == "__main__":
    main()
