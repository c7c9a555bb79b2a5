"""What each registered encoder costs on this machine: the table of docs/encoders.md.

    python benchmarks/bench_encoders.py [-m NAME ...] [--seconds 20]

Weights are random: they change no cost. Images/s are of batches in memory already, as the median of
several; memory is the peak of a process of its own, less what torch takes when it is imported.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

import numpy as np
from common import print_machine

MODELS = [
    "usfm",
    "mofo",
    "ultrasam",
    "fetalclip",
    "resnet50",
    "efficientnetv2",
    "efficientnetv2-m",
    "efficientnetv2-l",
    "dinov3-s",
    "dinov3",
    "dinov3-l",
    "sononet16",
    "efficientnet-lite0",
]


def peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def measure(model: str, seconds: float) -> None:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from embedcache.encoders.registry import load_encoder

    before = peak_gb()
    encoder = load_encoder(f"random:{model}", device="cpu")
    batch = np.zeros((encoder.batch_size, *encoder.spec.preprocess.shape), np.float32)
    encoder.encode(batch)
    walls = []
    while sum(walls) < seconds:
        start = time.perf_counter()
        encoder.encode(batch)
        walls.append(time.perf_counter() - start)
    peak = peak_gb() - before
    counter = FlopCounterMode(display=False)
    with counter, torch.inference_mode():
        encoder.module(torch.from_numpy(batch[:1]))
    print(
        json.dumps(
            {
                "parameters": sum(p.numel() for p in encoder.module.parameters()) / 1e6,
                "gmacs": counter.get_total_flops() / 2e9,
                "rate": len(batch) / statistics.median(walls),
                "batch": len(batch),
                "memory": peak,
            }
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-m", "--model", action="append")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        measure(args.one, args.seconds)
        return
    print_machine("torch", "timm", "open_clip_torch")
    print(f"{'encoder':20} {'M params':>9} {'GMACs':>8} {'images/s':>9} {'batch':>6} {'GB':>6}")
    for model in args.model or MODELS:
        command = [sys.executable, __file__, "--one", model, "--seconds", str(args.seconds)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(done.stderr)
        one = json.loads(done.stdout.splitlines()[-1])
        print(
            f"{model:20} {one['parameters']:9.1f} {one['gmacs']:8.2f} {one['rate']:9.2f} "
            f"{one['batch']:6} {one['memory']:6.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
