"""What a training step on a CPU costs, with and without the memory of activations kept.

    python benchmarks/bench_finetune.py

Ratios within one run; the networks have random weights, which takes the same time.
"""

from __future__ import annotations

import time

import torch
from common import print_machine, spread

from embedcache.encoders import registry
from embedcache.files.digests import DigestCache
from embedcache.finetune.augment import augmentation
from embedcache.finetune.memory import reuse_freed_memory
from embedcache.finetune.model import Classifier, load_network
from embedcache.finetune.recipe import read_recipe

ENCODERS = ("random:sononet16", "random:efficientnet-lite0")
BATCH, STEPS, ROUNDS = 32, 3, 4


def seconds(model: Classifier, optimizer: torch.optim.Optimizer, pixels: torch.Tensor) -> float:
    """Return what a step takes, after one that does not count."""
    targets = torch.arange(len(pixels)) % 3
    for number in range(STEPS + 1):
        if number == 1:
            start = time.perf_counter()
        torch.nn.functional.cross_entropy(model(pixels), targets).backward()
        optimizer.step()
        optimizer.zero_grad()
    return (time.perf_counter() - start) / STEPS


def main() -> None:
    print_machine("torch", "torchvision", "timm")
    change = augmentation(read_recipe())
    for name in ENCODERS:
        found = registry.identify_by_name(name, digests=DigestCache())
        spec = found.spec
        model = Classifier(load_network(found), spec.preprocess, spec.dim, 3).train()
        optimizer = torch.optim.AdamW(model.parameters())
        _, height, width = spec.preprocess.shape
        pixels = torch.randint(0, 256, (BATCH, 1, height, width), dtype=torch.uint8)
        plain, kept = [], []
        for _ in range(ROUNDS):
            plain.append(seconds(model, optimizer, pixels))
            with reuse_freed_memory(torch.device("cpu")):
                kept.append(seconds(model, optimizer, pixels))
        start = time.perf_counter()
        for picture in pixels:
            change(picture)
        changed = (time.perf_counter() - start) / BATCH
        ratios = [one / other for one, other in zip(plain, kept, strict=True)]
        print(
            f"{name}: {BATCH / min(kept):.0f} images/s at best; memory given back: a step takes "
            f"{spread(ratios, 2)} times as long; augmentation is "
            f"{changed * BATCH / min(kept):.0%} of a step"
        )


if __name__ == "__main__":
    main()
