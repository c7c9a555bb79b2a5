"""The whole default protocol at full size: one command, seven encoders.

    python benchmarks/bench_protocol.py [--n 12400] [--external 450] [--dims 768 768 ...]

A store of synthetic embeddings (those of bench_probes_other.py, with more noise for each further
encoder), 1,771 patients, six classes, an external cohort. `embedcache probe -m all` runs in a
process of its own: nested selection, refits, external predictions, all scores with 10,000
resamples, controls, and all pairs compared.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from bench_probes_other import embeddings
from common import print_machine

from embedcache.data.manifest import write_manifest
from embedcache.files.backend import on_disk
from embedcache.files.durable import utc_now
from embedcache.store.embedding_store import EmbeddingStore
from embedcache.testing import FakeEncoder

DIMS = (768, 768, 768, 768, 1280, 768, 2048)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=12_400)
    parser.add_argument("--external", type=int, default=450)
    parser.add_argument("--dims", type=int, nargs="+", default=DIMS)
    args = parser.parse_args()
    print_machine("numpy", "scipy", "scikit-learn")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_cohorts(folder, args.n, args.external, args.dims)
        code = "from embedcache_cli.main import main; main()"
        command = [sys.executable, "-c", code, "probe", "-m", "all", "--json"]
        start = time.perf_counter()
        said = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
        wall = time.perf_counter() - start
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    document = json.loads(said.stdout)
    print(f"\n{args.n} images and {args.external} external, 5 folds, 12 C, 10,000 resamples")
    for outcome in (*document["runs"], *document["controls"]):
        run = outcome["run"]
        print(f"  {run['encoder']:26} {run['seconds']:6.1f} s  C = {run['results']['final_C']:.3g}")
    print(
        f"all of it: {wall:.0f} s wall, {spent.ru_utime + spent.ru_stime:.0f} s CPU, "
        f"{spent.ru_maxrss / 1e6:.2f} GB at most"
    )


def write_cohorts(folder: Path, n: int, n_external: int, dims: list[int]) -> None:
    """Write a manifest and a store, without any image."""
    total = n + n_external
    _, y, patient = embeddings(total, 8)
    keys = [f"{number:064x}" for number in range(total)]
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
                "sha256": key,
            }
            for number, key in enumerate(keys)
        ],
    )
    for number, dim in enumerate(dims):
        X = embeddings(total, dim)[0]
        noise = np.random.default_rng(number).normal(size=X.shape).astype(np.float32)
        X += 0.1 * number * X.std(axis=0) * noise
        encoder = FakeEncoder(dim, name=f"encoder{number}-{dim}", weights=str(number))
        document = {
            "name": encoder.spec.name,
            "fingerprint": encoder.fingerprint,
            "identity": encoder.identity,
            "spec": encoder.spec.document(),
            "versions": {},
            "created": utc_now(),
        }
        name = f"{encoder.spec.name}-{encoder.fingerprint[:12]}"
        place = folder / ".embedcache" / "encoders" / name
        EmbeddingStore.open_or_create(on_disk(place), document).append(keys, X)


if __name__ == "__main__":
    main()
