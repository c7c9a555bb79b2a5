"""Parts of `bench_cuda.py` on the command line: killed extractions, and trainings."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from devicecheck import SMALL, VIT, Check

COMMAND = [sys.executable, "-c", "from embedcache_cli.main import main; main()"]


def command(*arguments: str, folder: Path, kill_when: Callable[[], bool] | None = None):
    """Run the command line, or kill it as soon as `kill_when()`; return code, stdout, stderr."""
    with subprocess.Popen(
        [*COMMAND, *arguments],
        cwd=folder,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        while kill_when is not None and process.poll() is None:
            if kill_when():
                process.send_signal(signal.SIGKILL)
            time.sleep(0.02)
        try:
            out, err = process.communicate(timeout=150)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            err += "\nended after 150 s"
    return process.returncode, out, err


def write_manifest(check: Check, folder: Path, n: int) -> None:
    paths = next(iter(check.pictures.values()))[:n]
    with (folder / "data_manifest.csv").open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["image_id", "path", "patient_id", "label", "cohort"])
        for number, path in enumerate(paths):
            label = "ab"[(number // 8) % 2]
            place = path.relative_to(check.folder)
            table.writerow([path.stem, place, path.stem.partition("_")[0], label, "drawn"])


def survival(check: Check) -> Iterator[tuple[str, dict]]:
    """Kill an extraction and go on, and ask for a device that is not there."""
    folder = check.folder / "survival"
    folder.mkdir()
    write_manifest(check, folder, check.n_survival)
    places = ("--data-root", str(check.folder))
    batch = ("--batch-size", str(check.batch)) if check.batch else ()
    extract = ("extract", *places, "--progress", "off")
    resnet = (*extract, "-m", "random:resnet50", "--device", check.device, *batch)

    def has_commits() -> bool:
        return any(folder.glob(".embedcache/encoders/*/seg/*.zarr"))

    def line(code: int, out: str, err: str) -> dict:
        said = (out or err).strip().splitlines()
        return {"code": code, "said": said[0][:200] if said else ""}

    yield "killed", line(*command(*resnet, folder=folder, kill_when=has_commits))
    yield "resumed", line(*command(*resnet, folder=folder))
    yield "run again", line(*command(*resnet, folder=folder))
    yield "verify", line(*command("verify", *places, folder=folder))
    if check.is_cuda:
        small = (*extract, "-m", f"random:{SMALL}", "--device")
        yield "cuda:0", line(*command(*small, "cuda:0", folder=folder))
        code, _, err = command(*small, "cuda:9", folder=folder)
        is_clean = code != 0 and err.startswith("embedcache: ") and err.count("\n") == 1
        yield "cuda:9", {"is_clean": is_clean, "said": err.strip()[-300:]}


def finetune(check: Check) -> Iterator[tuple[str, dict]]:
    """Train on the CPU and here, twice, and in other precisions."""
    folder = check.folder / "finetune"
    folder.mkdir()
    write_manifest(check, folder, check.n_finetune)
    base = (
        *("finetune", "--epochs", str(check.n_epochs), "--batch-size", "8", "--folds", "2"),
        *("--resamples", "100", "--data-root", str(check.folder), "--progress", "off", "--json"),
    )
    trainings = [
        ("fp32", "fp32", check.device, SMALL),
        ("fp32 again", "fp32", check.device, SMALL),
        ("bf16", "bf16", check.device, SMALL),
    ]
    if check.is_cuda:
        trainings += [
            ("fp16", "fp16", check.device, SMALL),
            ("fp32 ViT", "fp32", check.device, VIT),
            ("fp32 on the CPU", "fp32", "cpu", SMALL),
        ]
    for label, precision, device, model in trainings:
        if not check.has_time(20):
            yield label, {"skipped": "out of time"}
            continue
        start = time.perf_counter()
        code, out, err = command(
            *(*base, "-m", f"random:{model}", "--device", device, "--precision", precision),
            *("--store", str(folder / label.replace(" ", "-"))),
            folder=folder,
        )
        row = {"code": code, "seconds": round(time.perf_counter() - start, 1)}
        if code:
            yield label, {**row, "said": err.strip()[-300:]}
            continue
        [outcome] = json.loads(out)
        # The head starts at zero, so a first step's loss says nothing of the network.
        for name in ("loss", "validation_loss", "images_per_s", "compute_share"):
            folds = outcome["run"]["results"]["epochs"]
            row[name] = [[round(epoch[name], 6) for epoch in fold] for fold in folds]
        yield label, row
