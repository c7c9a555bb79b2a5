"""Pipes, folders and dead disks as inputs: a line and an exit code, and Ctrl-C ends the command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from embedcache.testing import write_cohort


@pytest.fixture
def odd(tmp_path, command):
    """Write a cohort, encode it, and add images that are a pipe, a folder and a looping link."""
    write_cohort(tmp_path, n_patients=3, cohorts=("home",))
    assert command("extract", "-m", "pixels").code == 0
    os.mkfifo(tmp_path / "images" / "pipe.png")
    (tmp_path / "images" / "folder.png").mkdir()
    (tmp_path / "images" / "loop.png").symlink_to("loop.png")
    with (tmp_path / "data_manifest.csv").open("a") as stream:
        stream.writelines(
            f"{name},images/{name}.png,home-000,brain,home,device-0,0\n"
            for name in ("pipe", "folder", "loop")
        )
    return tmp_path


def test_images_that_are_no_files_cost_themselves_alone(odd, command):
    answer = command("extract", "-m", "pixels")
    assert answer.code == 3
    assert "failed: pipe: a named pipe, not a file" in answer.out
    assert "failed: folder: a folder, not a file" in answer.out
    assert "failed: loop: too many levels of symbolic links" in answer.out
    answer = command("manifest", "check")
    assert (answer.code, "3 images cannot be read (a named pipe, not a file)" in answer.out) == (
        3,
        True,
    )
    for verb in (["status"], ["sql", "SELECT 1"], ["gc", "--dry-run"], ["verify"]):
        assert command(*verb).code in {0, 3}


@pytest.mark.parametrize(
    "words",
    [
        ["status", "--manifest"],
        ["status", "--data-root"],
        ["probe", "-m", "pixels", "--class-map"],
        ["probe", "-m", "pixels", "--folds"],
        ["finetune", "-m", "pixels", "--config"],
        ["zeroshot", "-m", "pixels", "--prompts"],
        ["extract", "-m", "sononet16", "--weights"],
        ["manifest", "fetal-planes", "--root", ".", "--table"],
    ],
)
def test_a_pipe_is_refused_as_any_other_input(odd, command, words):
    answer = command(*words, "images/pipe.png")
    assert answer.code in {1, 6}
    assert "images/pipe.png: " in answer.err
    assert "a named pipe" in answer.err
    assert len(answer.err.strip().splitlines()) == 1


# A disk that does not answer: whoever opens the image below waits for ever.
HANGING = """
import os, threading
from embedcache.files import regular
def hang(path, flags, open=os.open):
    if "stuck" in str(path):
        print("waiting", flush=True)
        threading.Event().wait()
    return open(path, flags)
regular._open = hang
from embedcache_cli.main import main
main()
"""


@pytest.mark.parametrize(
    ("words", "number", "code"),
    [
        (["extract", "-m", "pixels"], signal.SIGTERM, 143),
        (["manifest", "check"], signal.SIGINT, 130),
        pytest.param(["status"], signal.SIGTERM, 143, marks=pytest.mark.slow),
        pytest.param(["sql", "SELECT 1"], signal.SIGINT, 130, marks=pytest.mark.slow),
        pytest.param(["gc", "--dry-run"], signal.SIGTERM, 143, marks=pytest.mark.slow),
    ],
)
def test_a_disk_that_does_not_answer_keeps_no_command_from_ending(tmp_path, words, number, code):
    write_cohort(tmp_path, n_patients=1, cohorts=("home",))
    (tmp_path / "images" / "stuck.png").write_bytes(b"1")
    with (tmp_path / "data_manifest.csv").open("a") as stream:
        stream.write("stuck,images/stuck.png,home-000,brain,home,device-0,0\n")
    with subprocess.Popen(
        [sys.executable, "-c", HANGING, *words],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "waiting\n"
        process.send_signal(number)
        start = time.monotonic()
        _, said = process.communicate(timeout=20)
        assert time.monotonic() - start < 5
    assert process.returncode == code
    assert "interrupted" in said
