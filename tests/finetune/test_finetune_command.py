"""The command `finetune`: what it prints, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import IN_FOREGROUND, PATIENCE
from embedcache_cli.main import run as run_command
from tiny_trainings import FILE, tiny_encoders_on_one_thread

import embedcache
from embedcache.runs.files import RunFiles
from embedcache.testing import write_cohort

ARGUMENTS = ("--encoder-file", str(FILE), "--set", "lr=1e-3", "-b", "16", "--resamples", "100")


@pytest.fixture(autouse=True)
def _tiny_encoders():
    with tiny_encoders_on_one_thread():
        yield


def test_the_command_prints_a_table_a_line_an_epoch_and_what_it_cost(command, tmp_path):
    write_cohort(tmp_path, cohorts=("home", "abroad"), size=16)
    asked = ("finetune", "-m", "tiny-cnn", "--epochs", "2", "--folds", "2", *ARGUMENTS)
    said = command(*asked)
    assert said.code == 0, said.err
    assert "macro F1 [95 % interval over patients]" in said.out
    assert "home: 12 patients, 72 images, tested out of fold" in said.out
    lines = [line for line in said.err.splitlines() if line.startswith("fold ")]
    assert len(lines) == 4
    assert "fold 1 epoch 2: loss " in lines[-1]
    assert "images/s" in lines[-1]
    assert "tiny-cnn (finetune, seed 0): 2 folds, " in said.err
    assert list((tmp_path / ".embedcache" / "logs").glob("*/fold-1/events.out.tfevents*"))
    again = command(*asked, "--json", "-q")
    assert again.err == ""
    [outcome] = json.loads(again.out)
    assert outcome["was_cached"]
    assert outcome["run"]["method"]["regime"] == "finetune"


def test_progress_can_be_read_by_a_program(command, tmp_path):
    write_cohort(tmp_path, size=16)
    said = command(
        *("finetune", "-m", "tiny-vit", "--epochs", "1", "--folds", "2", *ARGUMENTS),
        *("--progress", "jsonl", "--regime", "head-only"),
    )
    lines = [json.loads(line) for line in said.err.splitlines() if line.startswith('{"fold')]
    assert [(one["fold"], one["epoch"], one["n_epochs"]) for one in lines] == [(0, 1, 1), (1, 1, 1)]
    said = command(
        *("finetune", "-m", "tiny-vit", "--epochs", "1", "--folds", "2", *ARGUMENTS),
        *("--progress", "bar", "--regime", "partial:1"),
    )
    assert "fold 1, epoch 1" in said.err


def test_the_recipe_can_be_shown_changed_and_given_back(command, tmp_path, monkeypatch):
    monkeypatch.setenv("EMBEDCACHE_BATCH_SIZE", "64")  # of `extract`
    shown = command("finetune", "--show-config")
    assert shown.code == 0
    assert "layer_decay = 0.75" in shown.out
    (tmp_path / "mine.toml").write_text(shown.out.replace("epochs = 30", "epochs = 3"))
    write_cohort(tmp_path, size=16)
    said = command(
        *("finetune", "-m", "tiny-vit", "--config", "mine.toml", "--folds", "2"),
        *(
            "--encoder-file",
            str(FILE),
            "--resamples",
            "100",
            "--json",
            "--progress",
            "off",
            "--epochs",
            "1",
        ),
    )
    [outcome] = json.loads(said.out)
    assert outcome["run"]["method"]["recipe"]["epochs"] == 1
    assert outcome["run"]["method"]["recipe"]["batch_size"] == 32
    wrong = command("finetune", "-m", "tiny-vit", "--set", "epoch=1", *ARGUMENTS)
    assert wrong.code == 1
    assert wrong.err == "embedcache: --set: no recipe key 'epoch'; did you mean 'epochs'?\n"


def started(folder: Path, *extra: str, first: str = "") -> subprocess.Popen:
    """Start a long training in a session of its own, after some statements."""
    asked = ("finetune", "-m", "tiny-vit", "--epochs", "400", "--folds", "2", *ARGUMENTS, *extra)
    code = f"{IN_FOREGROUND}{first}from embedcache_cli.main import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *asked],
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def is_there(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_whole_group_ends_it_cleanly(tmp_path, number):
    write_cohort(tmp_path, size=16)
    with started(tmp_path, "-j", "2") as process:
        lines = []
        while not any(line.startswith("fold 0 epoch 2:") for line in lines):
            lines.append(process.stderr.readline())
            assert lines[-1], "".join(lines)
        os.killpg(process.pid, number)
        rest = process.stderr.read()
    assert process.returncode == 128 + number
    assert rest.endswith("what was finished is kept, run it again to go on\n"), rest
    assert "Traceback" not in rest
    deadline = time.monotonic() + PATIENCE
    while is_there(process.pid):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert list(tmp_path.glob(".embedcache/training/*/fold-0/state.pt"))


@pytest.mark.slow
def test_an_error_beside_readers_ends_the_process(tmp_path):
    """As it would not if they took no notice of SIGTERM, by which Python ends them."""
    write_cohort(tmp_path, size=16)
    broken = "import embedcache.finetune.train as train; train._Training._move = None; "
    with started(tmp_path, "-j", "2", first=broken) as process:
        try:
            said = process.communicate(timeout=PATIENCE)[1]
        finally:
            process.kill()
    assert process.returncode == 1
    assert "TypeError: 'NoneType' object is not callable" in said


@pytest.mark.slow
def test_two_of_the_same_command_share_the_work(tmp_path):
    write_cohort(tmp_path, size=16)
    asked = ("--epochs", "3")
    both = [started(tmp_path, *asked) for _ in "ab"]
    said = [process.communicate(timeout=PATIENCE)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], "\n".join(said)
    trained = [sum(line.startswith("fold ") for line in text.splitlines()) for text in said]
    assert sorted(trained) == [0, 6]
    assert len(RunFiles(embedcache.open(tmp_path).workspace).ids()) == 1


def test_a_full_disk_keeps_the_last_epoch_and_says_so(tmp_path, capfd, monkeypatch):
    import errno

    write_cohort(tmp_path, size=16)
    monkeypatch.chdir(tmp_path)
    save = torch.save
    written: list[int] = []

    class Full:
        """Stands for a file on a disk with no room left, behind torch's own writer."""

        def write(self, data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def flush(self):
            pass

    def full(state, stream):
        written.append(1)
        save(state, Full() if len(written) == 4 else stream)  # the second epoch's state

    monkeypatch.setattr("torch.save", full)
    asked = ["finetune", "-m", "tiny-vit", "--epochs", "2", "--folds", "2", *ARGUMENTS]
    assert run_command(asked) == 1
    said = capfd.readouterr().err
    assert "No space left on device; everything finished before is safe" in said
    monkeypatch.setattr("torch.save", save)
    assert run_command(asked) == 0
    lines = capfd.readouterr().err
    assert "fold 0 epoch 1:" not in lines
    assert "fold 0 epoch 2:" in lines
    assert not list(tmp_path.glob(".embedcache/**/.tmp-*"))
