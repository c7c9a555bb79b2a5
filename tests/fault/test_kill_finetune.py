"""kill -9 at random instants of a training: the same command goes on and ends the same."""

from __future__ import annotations

import random
import shutil
import signal
import time
from pathlib import Path

import children
import pytest

import embedcache
from embedcache.runs.files import RunFiles
from embedcache.runs.record import RunRecord
from embedcache.testing import write_cohort

N_KILLS = 20


def only_run(folder: Path) -> tuple[RunRecord, object, object]:
    runs = RunFiles(embedcache.open(folder).workspace)
    (run_id,) = runs.ids()
    return runs.record(run_id), *(runs.table(run_id, name) for name in ("predictions", "metrics"))


@pytest.mark.slow
def test_twenty_kills_change_nothing(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    write_cohort(whole, size=16, cohorts=("home", "abroad"))
    shutil.copytree(whole, killed)
    took = children.time_of(children.finetune, whole)
    expected, *tables = only_run(whole)
    chance = random.Random(5)
    kills = 0
    while kills < N_KILLS:
        child = children.start(children.finetune, killed)
        # Early ones hit decoding and the first epoch, late ones the rest: each goes a little on.
        time.sleep(chance.uniform(0.02, 0.5) * took * (1 + kills / N_KILLS))
        kills += child.is_alive()
        child.kill()
        child.join()
        if child.exitcode == 0:  # it was done before: start over, so that later kills hit something
            shutil.rmtree(killed / ".embedcache")
        else:
            assert child.exitcode == -signal.SIGKILL
    children.time_of(children.finetune, killed)
    found, *others = only_run(killed)
    assert found.run_id == expected.run_id
    assert others[0].equals(tables[0])
    assert str(others[1].to_pylist()) == str(tables[1].to_pylist())  # NaN is NaN in words
    for key in ("best_epoch", "validation_macro_f1"):
        assert found.results[key] == expected.results[key]
    assert embedcache.open(killed).verify().findings == ()
    assert not (killed / ".embedcache" / "training" / found.run_id).exists()
