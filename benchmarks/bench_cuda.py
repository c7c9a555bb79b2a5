"""What the CUDA path does on a real GPU: parity, feeding, rates, memory, survival, training.

    python benchmarks/bench_cuda.py [--out FILE] [--only parity,rates] [--images DIR]

No downloads: weights are random, pictures are drawn. Each part stands alone: one that fails says so
and the next one runs. Results are written to FILE after each part, as JSON; the exit code is 1
where a part failed or a figure is outside what is expected of it. `--device cpu --tiny` rehearses
every part without a GPU, in about a minute.

'bare' is the network on a batch that is on the device, 'queued' the encoder on batches in memory,
and 'pass' a whole extraction from files. 'error' is the largest difference to the CPU's float32
over the largest value there.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import numpy as np
import torch
from commandcheck import finetune, survival
from common import print_machine
from devicecheck import PARITY, RATES, SMALL, Check, feed, in_words, memory, parity, rates
from pictures import draw_pictures

from embedcache.data.images import SUFFIXES
from embedcache.encoders.devices import find_device
from embedcache.errors import DeviceError

MOST_ERROR = 1e-3  # of float32, against the CPU's
LEAST_COSINE = 0.99  # of bf16 and fp16, against the CPU's float32
PARTS = {part.__name__: part for part in (parity, feed, rates, memory, survival, finetune)}


def objections(results: dict[str, dict[str, dict]]) -> Iterator[str]:
    """Yield what is not as it should be."""
    for part, rows in results.items():
        for name, row in rows.items():
            is_half = name.endswith(("bf16", "fp16"))
            # A machine so fast that an extraction ends before it is killed is no fault.
            codes = (0, -signal.SIGKILL) if name == "killed" else (0,)
            reasons = {
                f"raised {row.get('raised')}": "raised" in row,
                f"an error of {row.get('error')}": not is_half and row.get("error", 0) > MOST_ERROR,
                f"a cosine of {row.get('cosine')}": row.get("cosine", 1) < LEAST_COSINE,
                "other bits when repeated": not row.get("repeats", True),
                "other bits beside other pictures": not row.get("neighbours_do_not_matter", True),
                f"no clean error: {row.get('said')}": not row.get("is_clean", True),
                f"exit code {row.get('code')}": row.get("code", 0) not in codes,
            }
            yield from (f"{part}, {name}: {reason}" for reason, holds in reasons.items() if holds)
    trainings = results.get("finetune", {})
    if "loss" in trainings.get("fp32 again", {}):
        first, again = (trainings[name]["loss"] for name in ("fp32", "fp32 again"))
        if first != again:
            yield "finetune: the same training gave other losses"


def run_parts(check: Check, parts: list[str], out: Path | None) -> dict[str, dict[str, dict]]:
    """Run some parts; print each as it ends, and write all of them to a file."""
    results: dict[str, dict[str, dict]] = {}
    for part in parts:
        rows = results[part] = {}
        start = time.perf_counter()
        if check.has_time(15):
            try:
                rows.update(PARTS[part](check))
            except Exception as error:  # the other parts run all the same
                rows["part"] = {"raised": in_words(error)}
        else:
            rows["part"] = {"skipped": "out of time"}
        print(f"\n{part}, {time.perf_counter() - start:.1f} s", flush=True)
        for name, row in rows.items():
            print(f"  {name}: {json.dumps(row)}", flush=True)
        if out:
            out.write_text(json.dumps(results, indent=1))
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="JSON file of the results")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=330, help="after which nothing is begun")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, separated by commas")
    parser.add_argument("--tiny", action="store_true", help="few pictures and small networks")
    parser.add_argument("--images", type=Path, help="folder of real pictures, beside those drawn")
    args = parser.parse_args()
    parts = args.only.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"no part '{min(unknown)}'; there are {', '.join(PARTS)}")
    print_machine("torch", "timm", "numpy")
    try:
        device = find_device(args.device)
    except DeviceError as error:
        parser.error(str(error))
    if device.type == "cuda":
        print(f"{torch.cuda.get_device_name(device)}, cuDNN {torch.backends.cudnn.version()}")
    end = time.monotonic() + args.seconds
    with tempfile.TemporaryDirectory() as name:
        folder, n = Path(name).resolve(), 32 if args.tiny else 2048
        pictures = {
            "grey": draw_pictures(folder / "grey", n, "L"),
            "rgb": draw_pictures(folder / "rgb", n // 2, "RGB"),
        }
        if args.images:
            found = sorted(args.images.resolve().rglob("*"))
            pictures["real"] = [path for path in found if path.suffix.lower() in SUFFIXES]
        sizes = {kind: np.mean([p.stat().st_size for p in some]) for kind, some in pictures.items()}
        print(", ".join(f"{kind}: {size / 1e3:.0f} kB a picture" for kind, size in sizes.items()))
        check = Check(
            device=args.device,
            parity=("mofo", SMALL) if args.tiny else PARITY,
            rates=(SMALL,) if args.tiny else RATES,
            batch=4 if args.tiny else None,
            seconds=0.3 if args.tiny else 1.5,
            n_survival=24 if args.tiny else n,
            n_finetune=32 if args.tiny else 256,
            n_epochs=1 if args.tiny else 2,
            end=end,
            folder=folder,
            pictures=pictures,
        )
        against = list(objections(run_parts(check, parts, args.out)))
    print("\n" + ("\n".join(["not as expected:", *against]) if against else "all as expected"))
    return int(bool(against))


if __name__ == "__main__":
    sys.exit(main())
