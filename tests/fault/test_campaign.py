"""A small campaign of `benchmarks/torture.py`: full disks and I/O errors at random calls."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

import pytest
from conftest import PATIENCE, ROOT

SCRIPT = ROOT / "benchmarks" / "torture.py"


def run_campaign(*arguments: str, **settings) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        capture_output=True, text=True, check=False, timeout=PATIENCE, **settings,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("gcc") is None, reason="needs Linux and gcc"
)
def test_a_disk_that_refuses_at_any_call_loses_nothing_and_is_told_in_one_line():
    result = run_campaign("--faults", "25", "--only", "ENOSPC,EIO,EIO reading,read-only")
    assert result.returncode == 0, result.stdout + result.stderr
    counts = dict(re.findall(r"^([a-z ]+?) +(\d+)$", result.stdout, re.MULTILINE))
    assert {counts[kind] for kind in ("rows lost", "wrong rows", "tracebacks")} == {"0"}


def test_where_there_is_no_compiler_it_says_so(tmp_path):
    result = run_campaign(env={**os.environ, "PATH": str(tmp_path)})
    assert result.returncode == 2
    assert result.stderr == "the faults need Linux and gcc (LD_PRELOAD); nothing was done\n"
