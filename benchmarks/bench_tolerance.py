"""How far an embedding moves with what does not enter its key: docs/encoders.md, 'Tolerances'.

    python benchmarks/bench_tolerance.py [-m NAME ...]

Random pictures; largest difference relative to the largest value.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from common import print_machine

from embedcache.encoders.registry import load_encoder

MODELS = ["efficientnet-lite0", "random:resnet50", "random:usfm"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-m", "--model", action="append")
    args = parser.parse_args()
    print_machine("torch", "timm")
    for model in args.model or MODELS:
        encoder = load_encoder(model, device="cpu")
        shape = encoder.spec.preprocess.shape
        batch = np.random.default_rng(0).normal(size=(32, *shape)).astype(np.float32)

        def rows(size: int, encoder=encoder, batch=batch) -> np.ndarray:
            return np.concatenate([encoder.encode(batch[i : i + size]) for i in range(0, 32, size)])

        base = rows(16)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        single = rows(16)
        torch.set_num_threads(threads)
        half = load_encoder(model, device="cpu", precision="bf16").encode(batch)
        cosine = (half * base).sum(1) / np.linalg.norm(half, axis=1) / np.linalg.norm(base, axis=1)
        print(f"\n{model}")
        for title, other in {
            "batch size 16 with 7": rows(7),
            "batch size 16 with 1": rows(1),
            f"{threads} threads with one": single,
            "fp32 with bf16": half,
        }.items():
            print(f"  {title:24} {np.abs(other - base).max() / np.abs(base).max():.0e}")
        print(f"  {'fp32 with bf16, cosine':24} {cosine.min():.5f} at least")


if __name__ == "__main__":
    main()
