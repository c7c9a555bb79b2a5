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
    tables = (runs.table(run_id, name) for name in ("predictions", "fold_predictions", "metrics"))
    return runs.record(run_id), *tables


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
    record, *others = only_run(killed)
    assert record.run_id == expected.run_id
    for table, other in zip(tables, others, strict=True):
        assert str(other.to_pylist()) == str(table.to_pylist())  # NaN is NaN in words
    assert record.best_epochs == expected.best_epochs
    assert record.results["validation_macro_f1"] == expected.results["validation_macro_f1"]
    assert embedcache.open(killed).verify().findings == ()
    assert not (killed / ".embedcache" / "training" / record.run_id).exists()
