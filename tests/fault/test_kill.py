"""kill -9 at random instants: nothing wrong is readable, nothing acknowledged is lost."""

from __future__ import annotations

import random
import shutil
import signal
import time
from pathlib import Path

import children
import numpy as np
import pytest

import embedcache
from embedcache.store.embedding_store import EmbeddingStore
from embedcache.testing import write_cohort

N_KILLS = 50


def open_store(folder: Path) -> EmbeddingStore | None:
    folders = embedcache.open(folder).workspace.encoder_folders()
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
    children.time_of(children.extract, folder, folder / "acks", True)
    store = open_store(folder)
    assert store.row_keys() == expected.row_keys()  # the same rows in the same order
    assert np.array_equal(store.read(store.row_keys()), expected.read(expected.row_keys()))
    assert embedcache.open(folder).verify().findings == ()


@pytest.mark.slow
@pytest.mark.parametrize("lock", [True, False], ids=["locked", "unlocked"])
@pytest.mark.parametrize("writers", [1, 2])
def test_fifty_kills_lose_nothing_and_show_nothing_wrong(truth, tmp_path, writers, lock):
    original, expected = truth
    chance = random.Random(writers * 10 + lock)
    folder = tmp_path / "work"
    shutil.copytree(original, folder, ignore=shutil.ignore_patterns(".embedcache"))
    arguments = folder, folder / "acks", lock
    took = children.time_of(children.extract, *arguments)
    kills = progress = 0
    while kills < N_KILLS:
        if len(open_store(folder) or ()) == len(expected):  # start over: later kills hit something
            shutil.rmtree(folder / ".embedcache")
            (folder / "acks").unlink()
        writing = [children.start(children.extract, *arguments) for _ in range(writers)]
        time.sleep(chance.uniform(0.02, 0.7) * took)
        for child in writing:
            kills += child.is_alive()
            child.kill()
            child.join()
            assert child.exitcode in {0, -signal.SIGKILL}
        progress = max(progress, check_what_is_readable(folder, expected))
    assert progress > 0
    finish_and_compare(folder, expected)


def test_two_passes_at_once_share_the_work(truth, tmp_path):
    original, expected = truth
    folder = tmp_path / "work"
    shutil.copytree(original, folder, ignore=shutil.ignore_patterns(".embedcache"))
    passes = [children.start(children.extract, folder, folder / "acks", True) for _ in "ab"]
    for one in passes:
        one.join()
        assert one.exitcode == 0
    acks = (folder / "acks").read_text().split()
    assert sorted(acks) == sorted(expected.row_keys())  # each image was encoded once
    finish_and_compare(folder, expected)
