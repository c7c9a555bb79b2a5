"""A disk that is full: a clear error, nothing lost, and the next pass goes on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from embedcache_cli.main import run

import embedcache
from embedcache.testing import write_cohort


@pytest.fixture
def small_disk(tmp_path: Path):
    """A file system of its own, too small for the whole store."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", str(disk)]
    if (
        sys.platform != "linux"
        or subprocess.run(mount, capture_output=True, check=False).returncode
    ):
        pytest.skip("needs the right to mount a small file system")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_loses_nothing_and_the_next_pass_goes_on(tmp_path, small_disk, capfd):
    write_cohort(tmp_path / "images", n_patients=200)  # 1,200 rows of 1 kB
    arguments = ["--manifest", str(tmp_path / "images" / "data_manifest.csv")]
    store = ["--store", str(small_disk / "store")]
    code = run(["extract", "-m", "pixels", *arguments, *store])
    err = capfd.readouterr().err
    assert code == 1
    assert "No space left on device" in err
    assert "everything finished before is safe; free some space and run the same" in err
    assert err.count("\n") == 1
    project = embedcache.open(tmp_path / "images", store=small_disk / "store")
    (held,) = project.status().encoders
    assert 0 < held.n_held < 1200
    assert project.verify().findings == ()
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    assert run(["extract", "-m", "pixels", *arguments, *store]) == 0
    assert f"{held.n_held} cached + {1200 - held.n_held} encoded" in capfd.readouterr().out
    elsewhere = embedcache.open(tmp_path / "images", store=tmp_path / "roomy")
    elsewhere.extract("pixels")
    assert np.array_equal(elsewhere.embeddings("pixels").X, project.embeddings("pixels").X)
