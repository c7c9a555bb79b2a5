"""kill -9 while a run is written, and two processes that want the same run."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import children
import pytest

import embedcache
from embedcache.runs.files import RunFiles
from embedcache.testing import write_cohort


@pytest.fixture(scope="module")
def truth(tmp_path_factory) -> Path:
    """Encoded images, and a run of them that nothing disturbed."""
    folder = tmp_path_factory.mktemp("truth")
    write_cohort(folder, n_patients=8, n_images=2, size=8, cohorts=("home", "abroad"))
    embedcache.open(folder).extract("pixels")
    return folder


def tables_of(folder: Path) -> dict[str, bytes]:
    """Bytes of the tables of the only run of a folder, by name."""
    runs = RunFiles(embedcache.open(folder).workspace)
    (run_id,) = runs.ids()
    return {file.name: file.read_bytes() for file in Path(runs.folder / run_id).glob("*.parquet")}


def copy_of(truth: Path, folder: Path) -> Path:
    shutil.copytree(truth, folder)
    return folder


def test_two_processes_that_want_one_run_make_it_once(truth, tmp_path):
    folder = copy_of(truth, tmp_path / "work")
    fits = tmp_path / "fits"
    wanting = [children.start(children.probe, folder, fits) for _ in "ab"]
    for child in wanting:
        child.join()
        assert child.exitcode == 0
    assert fits.read_text() == "fitted\n"
    assert len(tables_of(folder)) == 3
    assert embedcache.open(folder).verify().findings == ()


@pytest.mark.parametrize("last", ["metrics", "fold_predictions", "run.json"])
def test_a_run_that_was_killed_on_its_way_is_none_and_the_same_command_makes_it(
    truth, tmp_path, last
):
    whole, killed = copy_of(truth, tmp_path / "whole"), copy_of(truth, tmp_path / "killed")
    children.time_of(children.probe, whole, tmp_path / "fits")
    child = children.start(children.probe, killed, tmp_path / "fits", last)
    child.join()
    assert child.exitcode == -signal.SIGKILL
    project = embedcache.open(killed)
    runs = RunFiles(project.workspace)
    assert runs.ids() == runs.folders() == []
    [run_id] = [folder.name for folder in runs.folder.folders()]
    assert runs.is_marked(run_id)
    assert project.verify().findings == ()
    assert project.sql("FROM runs").num_rows == 0
    children.time_of(children.probe, killed, tmp_path / "fits")
    assert tables_of(killed) == tables_of(whole)
    assert not runs.is_marked(run_id)
    assert project.verify().findings == ()


def test_what_a_killed_run_left_goes_with_gc(truth, tmp_path):
    folder = copy_of(truth, tmp_path / "work")
    child = children.start(children.probe, folder, tmp_path / "fits", "run.json")
    child.join()
    project = embedcache.open(folder)
    assert list(Path(project.workspace.runs).iterdir()) != []
    project.gc(grace_s=3600)
    assert list(Path(project.workspace.runs).iterdir()) != []
    assert project.gc(grace_s=-1).freed_bytes > 0
    assert list(Path(project.workspace.runs).iterdir()) == []
