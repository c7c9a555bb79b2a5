"""The process of a command: streams that are closed or full, signals, and what nobody foresaw."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest
from conftest import IN_FOREGROUND, PATIENCE

MAIN = "from embedcache_cli.main import main; main()"


def run_shell(folder, command: str, *, first: str = "", env=None) -> subprocess.CompletedProcess:
    """Run a shell's command line, in which $EMBEDCACHE is the command."""
    text = command.replace("$EMBEDCACHE", f"{sys.executable} -c '{IN_FOREGROUND}{first}{MAIN}'")
    return subprocess.run(
        text, shell=True, cwd=folder, capture_output=True, text=True, check=False, env=env,
        timeout=PATIENCE,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("redirected", "code"),
    [
        ("status >&-", 0),
        ("status <&- >&- 2>&-", 0),
        ("status >/dev/full", 1),
        ("sql nonsense 2>/dev/full", 1),
        ("nonsense 2>&-", 2),
    ],
)
def test_streams_that_are_closed_or_full_change_no_exit_code(asked, redirected, code):
    result = run_shell(asked.workspace.data_root, f"$EMBEDCACHE {redirected}")
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    assert "Exception ignored" not in result.stderr


def test_a_folder_that_was_removed_is_one_line(tmp_path):
    (tmp_path / "gone").mkdir()
    result = run_shell(tmp_path, "cd gone && rmdir ../gone && $EMBEDCACHE status")
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1


BUG = "import embedcache_cli.status as s; s.status.callback = lambda **_: {}[0]; "


def test_what_nobody_foresaw_is_one_line_unless_its_traceback_is_asked_for(tmp_path):
    result = run_shell(tmp_path, "$EMBEDCACHE status", first=BUG)
    assert result.returncode == 1
    assert result.stderr.startswith("embedcache: internal error: KeyError: 0; please report it")
    assert result.stderr.count("\n") == 1
    result = run_shell(tmp_path, "EMBEDCACHE_DEBUG=1 $EMBEDCACHE status", first=BUG)
    assert "Traceback" in result.stderr


def test_a_thread_of_a_library_ends_in_one_line(tmp_path):
    """TensorBoard writes in one, where a disk may refuse."""
    failing = (
        "import threading, embedcache_cli.status as s\n"
        'def fail(): raise OSError("the disk is full")\n'
        "def work(**_):\n"
        "    thread = threading.Thread(target=fail); thread.start(); thread.join()\n"
        "s.status.callback = work\n"
    )
    result = run_shell(tmp_path, "$EMBEDCACHE status", first=failing)
    assert result.returncode == 0
    assert result.stderr == "a thread has ended early: OSError: the disk is full\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_a_library_makes_an_error_of_ends_the_command_as_a_signal(tmp_path, number):
    """DuckDB does: a signal in a query is its RuntimeError."""
    hit = (
        "import os, embedcache_cli.status as s\n"
        "def hit(**_):\n"
        f"    try: os.kill(os.getpid(), {int(number)})\n"
        '    except BaseException: raise RuntimeError("Query interrupted")\n'
        "s.status.callback = hit\n"
    )
    result = run_shell(tmp_path, "$EMBEDCACHE status", first=hit)
    assert result.returncode == 128 + number
    line = "embedcache: interrupted; what was finished is kept, run it again to go on\n"
    assert result.stderr == line
