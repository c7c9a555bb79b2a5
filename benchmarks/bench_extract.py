"""How close a pass comes to the bare forward, beside a serial loop and a DataLoader.

    python benchmarks/bench_extract.py --images DIR [--model random:resnet50] [--n 160] [--rounds 6]

Everything is timed in turn in one run, each way between two bare forwards, and quoted as a ratio to
their mean: shared machines drift by a third within minutes.
'bare forward' encodes batches that are in memory already. The 'roofline' adds the CPU time of
reading, decoding and preprocessing, spread over all cores, to the bare forward: no pass that does
the work on these cores can be faster.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
from common import print_machine, spread
from torch.utils.data import DataLoader, Dataset

from embedcache.data.image_files import ImageFile
from embedcache.data.images import SUFFIXES, decode_image
from embedcache.encoders import registry
from embedcache.encoders.spec import Encoder
from embedcache.extract.flow import run_pass
from embedcache.extract.lane import Job
from embedcache.extract.report import PassReport
from embedcache.files.backend import on_disk
from embedcache.files.cores import usable_cores
from embedcache.files.digests import DigestCache
from embedcache.store.embedding_store import EmbeddingStore


class Files(Dataset):
    """What a plain DataLoader is given: path in, array out."""

    def __init__(self, paths: list[Path], encoder: Encoder) -> None:
        self.paths, self.preprocess = paths, encoder.spec.preprocess

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> np.ndarray:
        return self.preprocess(decode_image(self.paths[number].read_bytes()))


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def bench(model: str, paths: list[Path], rounds: int, batch: int) -> None:
    encoder = registry.load(registry.identify_by_name(model, digests=DigestCache()), device="cpu")
    files = Files(paths, encoder)
    arrays = np.stack([files[number] for number in range(batch)])
    n_batches = len(paths) // batch

    def bare() -> None:
        for _ in range(n_batches):
            encoder.encode(arrays)

    def decode() -> float:
        start = time.process_time()
        for number in range(0, len(paths), 4):  # a quarter of them is enough to know
            files[number]
        return (time.process_time() - start) * 4

    def serial() -> float:
        start = time.perf_counter()
        for first in range(0, len(paths), batch):
            encoder.encode(np.stack([files[n] for n in range(first, first + batch)]))
        return time.perf_counter() - start

    def loader() -> float:
        start = time.perf_counter()
        for part in DataLoader(files, batch_size=batch, num_workers=2):
            encoder.encode(part.numpy())
        return time.perf_counter() - start

    reports: list[PassReport] = []

    def ours() -> float:
        """Run the real thing on a fresh store, from hashing to the last fsync."""
        with tempfile.TemporaryDirectory() as folder:
            document = {
                "name": model,
                "fingerprint": encoder.fingerprint,
                "identity": encoder.identity,
                "spec": encoder.spec.document(),
            }
            store = EmbeddingStore.open_or_create(on_disk(Path(folder, "encoder")), document)
            job = Job(encoder.spec, store, lambda: encoder, batch_size=batch)
            images = [ImageFile(path.name, str(path)) for path in paths]
            reports.append(run_pass(images, [job], DigestCache()))
            assert len(store) == len({path.read_bytes() for path in paths})
        return reports[-1].wall_s

    bare()
    ways = {"serial loop": serial, "DataLoader": loader, "embedcache": ours}
    rates: dict[str, list[float]] = {name: [] for name in ("bare forward", "roofline", *ways)}
    of_bare: dict[str, list[float]] = {name: [] for name in ways}
    of_roof: dict[str, list[float]] = {name: [] for name in ways}
    spent: dict[str, list[float]] = {}
    n = n_batches * batch
    for _ in range(rounds):
        before = timed(bare)
        for name, way in ways.items():
            seconds = way()
            after = timed(bare)
            forward = (before + after) / 2  # what the forward alone costs around this moment
            roof = forward + decode() / usable_cores()
            rates["bare forward"].append(n / forward)
            rates["roofline"].append(n / roof)
            rates[name].append(n / seconds)
            of_bare[name].append(forward / seconds)
            of_roof[name].append(roof / seconds)
            before = timed(bare)
        for stage, value in {**reports[-1].seconds, "waiting": reports[-1].waited_s}.items():
            spent.setdefault(stage, []).append(1000 * value / n)
    print(f"\n{model}, {n} images, batch {batch}, {rounds} rounds; median [least, most]")
    print(f"{'':12} {'images/s':>22} {'of bare forward':>24} {'of roofline':>24}")
    for name, values in rates.items():
        shares = [spread(part[name]) if name in part else "" for part in (of_bare, of_roof)]
        print(f"{name:12} {spread(values, 1):>22} {shares[0]:>24} {shares[1]:>24}")
    print("embedcache, ms an image by stage (read, decode, preprocess on threads that give way):")
    print("  " + ", ".join(f"{stage} {spread(values, 2)}" for stage, values in spent.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--model", action="append")
    parser.add_argument("--n", type=int, default=160)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--batch", type=int, default=16)
    args = parser.parse_args()
    print_machine("torch", "timm", "pillow", "zarr")
    paths = sorted(p.resolve() for p in args.images.rglob("*") if p.suffix.lower() in SUFFIXES)
    paths = paths[:: max(1, len(paths) // args.n)][: args.n - args.n % args.batch]
    megapixels = np.mean([np.prod(decode_image(p.read_bytes()).size) / 1e6 for p in paths])
    print(f"{len(paths)} images of {megapixels:.2f} megapixels on average")
    for model in args.model or ["random:resnet50", "random:timm:vit_small_patch16_224"]:
        bench(model, paths, args.rounds, args.batch)


if __name__ == "__main__":
    main()
