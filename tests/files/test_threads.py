from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest

from embedcache.files.threads import ReadingThreads


def test_results_come_in_order_and_errors_with_them():
    with ReadingThreads(3) as threads:
        assert list(threads.map(lambda n: n * n, range(50))) == [n * n for n in range(50)]
        future = threads.submit(int, "x")
        with pytest.raises(ValueError, match="invalid literal"):
            future.result()


def test_leaving_waits_for_all_tasks_unless_an_exception_leaves():
    done = threading.Event()
    with ReadingThreads(1) as threads:
        threads.submit(time.sleep, 0.05)
        threads.submit(done.set)
    assert done.is_set()
    begun, stuck, never = threading.Event(), threading.Event(), threading.Event()

    def leave_in_the_middle() -> None:
        with ReadingThreads(1) as threads:
            threads.submit(lambda: (begun.set(), stuck.wait()))
            threads.submit(never.set)
            begun.wait()
            raise KeyError

    start = time.monotonic()
    with pytest.raises(KeyError):
        leave_in_the_middle()
    assert 0.9 < time.monotonic() - start < 3
    stuck.set()
    assert not never.wait(0.1)


def test_a_thread_that_never_comes_back_keeps_no_interpreter_from_ending():
    code = (
        "import threading\n"
        "from embedcache.files.threads import ReadingThreads\n"
        "with ReadingThreads(1) as threads:\n"
        "    threads.submit(threading.Event().wait)\n"
        "    raise SystemExit(7)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=20, check=False).returncode == 7
