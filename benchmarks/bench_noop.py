"""Starting up, and a rerun over a cohort that is held already.

    python benchmarks/bench_noop.py [--n 12850] [--rounds 5]

Wall time of whole processes, Python's own start included; the plain `python -c pass` stands beside
them.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import safetensors.torch
import timm
from common import print_machine, spread
from PIL import Image

from embedcache.data.manifest import write_manifest

MODEL = "timm:test_vit"  # the smallest of timm, here with random weights in a file
COMMAND = [str(Path(sys.executable).with_name("embedcache"))]


def write_tiny_images(folder: Path, n: int) -> None:
    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    rows = []
    for number in range(n):
        path = f"images/{number:05d}.png"
        Image.fromarray(rng.integers(0, 255, (8, 8), np.uint8)).save(folder / path)
        rows.append(
            {
                "image_id": f"i{number}",
                "path": path,
                "patient_id": f"P{number // 7:05d}",
                "label": "abc"[number % 3],
                "cohort": "c",
            }
        )
    write_manifest(folder / "data_manifest.csv", rows)


def run(folder: Path, command: list[str]) -> float:
    start = time.perf_counter()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=12_850)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    print_machine("torch", "pyarrow", "duckdb", "click")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tiny_images(folder, args.n)
        weights = folder / "weights.safetensors"
        safetensors.torch.save_model(timm.create_model(MODEL.partition(":")[2]), weights)
        extract = [*COMMAND, "extract", "-m", MODEL, "--weights", str(weights)]
        print(f"{args.n} images of 8 x 8 pixels, {MODEL}: first pass {run(folder, extract):.0f} s")
        # The digest of a file changed within the last seconds is not trusted, so hash them again
        # once all of them have come of age.
        time.sleep(3)
        run(folder, extract)
        imported = (
            "import sys; from embedcache_cli.main import main\n"
            f"sys.argv[1:] = {extract[1:]!r}\n"
            "try: main()\nexcept SystemExit as end: code = end.code or 0\n"
            "sys.exit(code or bool({'torch', 'timm', 'sklearn'} & set(sys.modules)))"
        )
        run(folder, [sys.executable, "-c", imported])
        print("the rerun imports neither torch nor timm nor scikit-learn")
        one = "SELECT image_id FROM images WHERE patient_id = 'P00900'"
        for title, command in {
            "python -c pass": [sys.executable, "-c", "pass"],
            "embedcache --version": [*COMMAND, "--version"],
            "embedcache extract, nothing to do": extract,
            "embedcache status": [*COMMAND, "status"],
            "embedcache sql, one patient": [*COMMAND, "sql", one],
        }.items():
            print(f"  {title:34} {spread([run(folder, command) for _ in range(args.rounds)], 2)} s")


if __name__ == "__main__":
    main()
