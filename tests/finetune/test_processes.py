"""Several processes learn what one does, and none waits for one that is dead."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from conftest import PATIENCE
from tiny_trainings import job, store_pictures, tiny_encoders_on_one_thread, trained

from embedcache.errors import DeviceError, RunError
from embedcache.files.backend import on_disk
from embedcache.finetune.jobs import Part
from embedcache.finetune.processes import on_devices
from embedcache.finetune.train import train_folds


@pytest.fixture(autouse=True)
def _tiny_encoders():
    with tiny_encoders_on_one_thread():
        yield


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    return store_pictures(tmp_path_factory.mktemp("stored"))


@pytest.mark.slow
def test_two_processes_learn_what_one_does(stored, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("NODE_RANK", "1")  # of a cluster's job, say: our processes are all here
    monkeypatch.setenv("MASTER_ADDR", "192.0.2.1")
    found = {}
    for n_devices in (1, 2):
        one = job(
            stored,
            "tiny-vit",
            "finetune",
            tmp_path / str(n_devices),
            epochs=3,
            lr=1e-3,
            drop_path=0.0,
            accumulate=2,
        )
        # Each process has readers of its own, as on GPUs.
        found[n_devices] = trained(replace(one, workers=n_devices - 1), n_devices=n_devices)
    for key in ("loss", "validation_loss", "macro_f1", "lr"):
        values = [[getattr(e, key) for e in found[n].epochs] for n in (1, 2)]
        assert np.allclose(*values, rtol=1e-4), key
    assert np.allclose(found[1].probability[0], found[2].probability[0], atol=1e-4)
    assert found[2].cost["devices"] == 2
    assert capfd.readouterr() == ("", "")  # Fabric has nothing to say that a user needs


@pytest.mark.slow
def test_a_process_that_fails_is_told_in_one_line(stored, tmp_path, capfd):
    one = job(stored, "tiny-vit", "finetune", tmp_path, epochs=1, batch_size=1)
    with pytest.raises(RunError, match="batches of 1 images cannot be shared by 2 devices"):
        trained(one, n_devices=2)
    two = job(stored, "tiny-vit", "finetune", tmp_path, epochs=1)
    gone = Part(("0" * 64,) * 2, two.train.codes[:2])
    for theirs in (
        replace(two, pixels=on_disk(tmp_path / "nowhere")),  # fails at once
        replace(two, train=gone, workers=1),  # beside readers
    ):
        with pytest.raises(DeviceError, match="process 1 of 2 ended with exit code 1"):
            trained(two, n_devices=2, theirs=theirs)
    assert "StoreCorruptError" in capfd.readouterr().err


@pytest.mark.slow
def test_a_process_that_cannot_begin_is_not_waited_for(tmp_path):
    with (
        pytest.raises(DeviceError, match="process 1 of 2 ended with exit code 1, its reason"),
        on_devices(
            train_folds,
            ([],),
            device="cpu",
            n_devices=2,
            precision="fp32",
            encoder_file=tmp_path / "nowhere.py",
        ),
    ):
        pytest.fail("nothing to do alone")


STUCK = """
import time
from embedcache.finetune import processes

def fail(fabric):
    raise ValueError("as if the GPU were gone")

if __name__ == "__main__":
    processes._FAREWELL_S = 0.5
    with processes.on_devices(fail, (), device="cpu", n_devices=2, precision="fp32"):
        time.sleep(600)  # as in a collective of NCCL, which no exception ends
"""


@pytest.mark.slow
def test_a_process_that_waits_for_a_dead_one_ends(tmp_path):
    (tmp_path / "stuck.py").write_text(STUCK)
    done = subprocess.run(
        [sys.executable, tmp_path / "stuck.py"],
        stderr=subprocess.PIPE,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 1
    assert "as if the GPU were gone" in done.stderr
    assert "\nembedcache: process 1 of 2 ended with exit code 1" in done.stderr
