"""kill -9 at random instants: nothing wrong is readable, nothing acknowledged is lost."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import embedcache
from embedcache.pipeline import state
from embedcache.store.embedding_store import EmbeddingStore
from embedcache.testing import write_cohort

CHILD = Path(__file__).with_name("child.py")
N_KILLS = 50


def open_store(folder: Path) -> EmbeddingStore | None:
    folders = state.encoder_folders(embedcache.open(folder).workspace)
    if not folders or not (folders[0] / "encoder.json").exists():
        return None
    return EmbeddingStore(folders[0])


@pytest.fixture(scope="module")
def truth(tmp_path_factory) -> tuple[Path, EmbeddingStore]:
    """600 images, and their store after a pass that nothing disturbed."""
    folder = tmp_path_factory.mktemp("truth")
    write_cohort(folder, n_patients=100)
    embedcache.open(folder).extract("pixels")
    return folder, open_store(folder)


def start(folder: Path, *flags: str) -> subprocess.Popen:
    command = [sys.executable, str(CHILD), str(folder), str(folder / "acks"), *flags]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def check_what_is_readable(folder: Path, expected: EmbeddingStore) -> int:
    """Read everything there is; return how many rows that is."""
    store = open_store(folder)
    acks = folder / "acks"
    acknowledged = set(acks.read_text().split("\n")[:-1]) if acks.exists() else set()
    if store is None:
        assert not acknowledged
        return 0
    lost = acknowledged - set(store.row_keys())
    assert not lost, f"{len(lost)} acknowledged rows are gone"
    assert np.array_equal(store.read(store.row_keys()), expected.read(store.row_keys()))
    return len(store)


def finish_and_compare(folder: Path, expected: EmbeddingStore) -> None:
    """Let a last pass end, then hold its store against the undisturbed one, row for row."""
    done = start(folder)
    _, err = done.communicate(timeout=120)
    assert done.returncode == 0, err.decode()
    store = open_store(folder)
    assert store.row_keys() == expected.row_keys()  # the same rows in the same order
    assert np.array_equal(store.read(store.row_keys()), expected.read(expected.row_keys()))
    assert embedcache.open(folder).verify().findings == ()


@pytest.mark.slow
@pytest.mark.parametrize("flags", [(), ("--no-lock",)], ids=["locked", "unlocked"])
@pytest.mark.parametrize("writers", [1, 2])
def test_fifty_kills_lose_nothing_and_show_nothing_wrong(truth, tmp_path, writers, flags):
    original, expected = truth
    chance = random.Random(writers * 10 + len(flags))
    folder = tmp_path / "work"
    shutil.copytree(original, folder, ignore=shutil.ignore_patterns(".embedcache"))
    kills = progress = 0
    longest = 1.2
    while kills < N_KILLS:
        children = [start(folder, *flags) for _ in range(writers)]
        time.sleep(chance.uniform(0.15, longest))
        for child in children:
            ended = child.poll()
            assert ended in {None, 0}, child.stderr.read().decode()
            kills += ended is None
            child.kill()
            child.communicate()
        held = check_what_is_readable(folder, expected)
        progress = max(progress, held)
        if held == len(expected):  # all encoded: start over, so that later kills hit something
            shutil.rmtree(folder / ".embedcache")
            (folder / "acks").unlink()
    assert progress > 0
    finish_and_compare(folder, expected)


def test_two_passes_at_once_share_the_work(truth, tmp_path):
    original, expected = truth
    folder = tmp_path / "work"
    shutil.copytree(original, folder, ignore=shutil.ignore_patterns(".embedcache"))
    children = [start(folder) for _ in "ab"]
    for child in children:
        _, err = child.communicate(timeout=120)
        assert child.returncode == 0, err.decode()
    acks = (folder / "acks").read_text().split()
    assert sorted(acks) == sorted(expected.row_keys())  # each image was encoded once
    finish_and_compare(folder, expected)
