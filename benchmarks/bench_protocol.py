"""The whole default protocol at full size: one command, one encoder or seven; where its time goes.

    python benchmarks/bench_protocol.py [--n 12400] [--external 450] [--dims 768 768 ...]
        [--phantom FILE.npz]

A store of synthetic embeddings (those of bench_probes_other.py, with more noise for each further
encoder), 1,771 patients, six classes, an external cohort; with --phantom those of that file too
(see bench_probe.py; made if it is missing, in a quarter of an hour). `embedcache probe` runs in a
process of its own (stages.py): nested selection, refits, external predictions, all scores with
10,000 resamples; with all encoders controls, too, and all pairs compared.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from bench_probe import write_phantom
from bench_probes_other import embeddings
from common import print_machine

from embedcache.data.manifest import write_manifest
from embedcache.files.backend import on_disk
from embedcache.files.durable import utc_now
from embedcache.store.embedding_store import EmbeddingStore
from embedcache.testing import FakeEncoder

STAGES = (
    "import", "reading", "fits to choose", "refits", "predictions", "scores", "writing",
    "comparison", "other",
)  # fmt: skip
DIMS = (768, 768, 768, 768, 1280, 768, 2048)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=12_400)
    parser.add_argument("--external", type=int, default=450)
    parser.add_argument("--dims", type=int, nargs="+", default=DIMS)
    parser.add_argument("--phantom", type=Path)
    args = parser.parse_args()
    print_machine("numpy", "scipy", "scikit-learn")
    total = args.n + args.external
    _, y, patient = embeddings(total, 8)
    first = f"encoder0-{args.dims[0]}"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_manifest_of(folder, y, patient, args.n)
        write_stores(folder, noisy(total, args.dims))
        print(f"\n{args.n} images and {args.external} external, 5 folds, 12 C, 10,000 resamples")
        report(folder, "-m", first, "--no-controls")
        if args.phantom:
            report_phantom(args.phantom)
        print(f"\n{len(args.dims)} encoders, controls, every pair compared")
        report(folder, "-m", "all", "--seed", "1")  # other folds, so that no run is found again


def report_phantom(file: Path) -> None:
    if not file.exists():
        write_phantom(file)
    given = np.load(file)
    X, y = given["X"], given["y"]
    with tempfile.TemporaryDirectory() as name:
        write_manifest_of(Path(name), y, given["p"], len(y))
        write_stores(Path(name), [(file.stem, X)])
        print(f"\n{len(y)} images of {file.stem}, none external")
        report(Path(name), "-m", file.stem, "--no-controls")


def report(folder: Path, *arguments: str) -> None:
    """Run a probe in a process of its own, and print each run's seconds and the share of stages."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.time()
    stages = folder / "stages.json"
    script = Path(__file__).with_name("stages.py")
    command = [sys.executable, script, stages, str(start), "probe", *arguments, "--json"]
    made = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    wall, after = time.time() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    document = json.loads(made.stdout)
    for outcome in (*document["runs"], *document["controls"]):
        run = outcome["run"]
        results = run["results"]
        print(
            f"  {run['encoder']:26} {run['seconds']:6.1f} s  C = {results['final_C']:.3g}, "
            f"{min(map(len, results['skipped_C']))} of 12 C skipped"
        )
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"  in all {wall:.1f} s wall, {cpu:.1f} s CPU, {after.ru_maxrss / 1e6:.2f} GB at most:")
    shares = json.loads(stages.read_text(encoding="utf-8"))
    seconds = {stage: shares[stage] for stage in STAGES if stage in shares}
    parts = (f"{stage} {spent:.1f} ({spent / wall:.0%})" for stage, spent in seconds.items())
    print("   ", ", ".join(parts), flush=True)


def write_manifest_of(folder: Path, y: np.ndarray, patient: np.ndarray, n: int) -> None:
    """Write a manifest without any image; from row n on it is an external cohort."""
    write_manifest(
        folder / "data_manifest.csv",
        [
            {
                "image_id": f"i{number:06d}",
                "path": f"images/{number:06d}.png",
                "patient_id": f"{'A' if number < n else 'B'}{patient[number]:05d}",
                "label": f"class {y[number]}",
                "cohort": "home" if number < n else "away",
                "device": f"device {patient[number] % 3}",
                "sha256": key_of(number),
            }
            for number in range(len(y))
        ],
    )


def key_of(number: int) -> str:
    return f"{number:064x}"


def noisy(n: int, dims: Sequence[int]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the name and embeddings of each encoder."""
    for number, dim in enumerate(dims):
        X = embeddings(n, dim)[0]
        noise = np.random.default_rng(number).normal(size=X.shape).astype(np.float32)
        yield f"encoder{number}-{dim}", X + 0.1 * number * X.std(axis=0) * noise


def write_stores(folder: Path, encoders: Iterable[tuple[str, np.ndarray]]) -> None:
    for name, X in encoders:
        encoder = FakeEncoder(X.shape[1], name=name, weights=name)
        document = {
            "name": encoder.spec.name,
            "fingerprint": encoder.fingerprint,
            "identity": encoder.identity,
            "spec": encoder.spec.document(),
            "versions": {},
            "created": utc_now(),
        }
        place = folder / ".embedcache" / "encoders" / f"{name}-{encoder.fingerprint[:12]}"
        store = EmbeddingStore.open_or_create(on_disk(place), document)
        store.append([key_of(number) for number in range(len(X))], X)


if __name__ == "__main__":
    main()
