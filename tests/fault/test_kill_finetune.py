"""kill -9 at random instants of a training: the same command goes on and ends the same."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import embedcache
from embedcache.catalog import run_files
from embedcache.testing import write_cohort

CHILD = Path(__file__).with_name("finetune_child.py")
N_KILLS = 20


@pytest.fixture(scope="module")
def server():
    with subprocess.Popen(
        [sys.executable, str(CHILD)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
    ) as process:
        yield process  # it ends with its input


def start(server, folder: Path) -> int:
    server.stdin.write(f"{folder}\n")
    server.stdin.flush()
    return int(server.stdout.readline())


def ended(server) -> int:
    return int(server.stdout.readline())


def only_run(folder: Path) -> tuple[dict, object, object]:
    (run,) = run_files.run_folders(folder / ".embedcache" / "runs")
    tables = (run_files.read_run_table(run, name) for name in ("predictions", "metrics"))
    return run_files.read_run(run), *tables


@pytest.mark.slow
def test_twenty_kills_change_nothing(server, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    write_cohort(whole, size=16, cohorts=("home", "abroad"))
    shutil.copytree(whole, killed)
    began = time.monotonic()
    start(server, whole)
    assert ended(server) == 0
    took = time.monotonic() - began
    expected, *tables = only_run(whole)
    chance = random.Random(5)
    for number in range(N_KILLS):
        child = start(server, killed)
        # Early ones hit decoding and the first epoch, late ones the rest: each goes a little on.
        time.sleep(chance.uniform(0.02, 0.5) * took * (1 + number / N_KILLS))
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        if ended(server) == 0:  # it was done before: start over, so that later kills hit something
            shutil.rmtree(killed / ".embedcache")
    start(server, killed)
    assert ended(server) == 0
    found, *others = only_run(killed)
    assert found["run_id"] == expected["run_id"]
    assert others[0].equals(tables[0])
    assert str(others[1].to_pylist()) == str(tables[1].to_pylist())  # NaN is NaN in words
    for key in ("best_epoch", "validation_macro_f1"):
        assert found["results"][key] == expected["results"][key]
    assert embedcache.open(killed).verify().findings == ()
    assert not (killed / ".embedcache" / "training" / found["run_id"]).exists()
