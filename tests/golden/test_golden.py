"""What earlier releases wrote is read by this one, and the help says what it said."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from embedcache.verbs.probing import ProbeOptions
from make import HELP, HERE, all_predictions, all_rows, help_text, unpack

from embedcache.runs.methods import ProbeMethod
from embedcache.verbs import state
from embedcache.workspace import FORMAT_VERSION

STORES = sorted(HERE.glob("store_v*.zip"))


@pytest.fixture(params=STORES, ids=lambda path: path.stem)
def golden(request, tmp_path):
    """A store as it was written, and what must be read from it."""
    expected = json.loads(request.param.with_suffix(".json").read_text())
    return unpack(request.param, tmp_path), expected


def test_there_is_a_golden_store_of_this_format_version():
    assert HERE / f"store_v{FORMAT_VERSION}.zip" in STORES, "run `python tests/golden/make.py`"


def test_every_row_of_an_earlier_release_is_read_bit_for_bit(golden):
    project, expected = golden
    assert all_rows(project) == expected["rows"]
    known = {one["image_id"]: one["row"] for one in expected["rows"] if one["row"]}
    embeddings = project.embeddings("fake")
    assert set(embeddings.image_id) == set(known)
    wanted = np.array([known[name] for name in embeddings.image_id], np.float32)
    assert embeddings.X.tobytes() == wanted.tobytes()


def test_the_store_of_an_earlier_release_is_sound_and_complete(golden):
    project, expected = golden
    report = project.verify()
    assert report.findings == ()
    assert report.n_rows == sum(one["row"] is not None for one in expected["rows"]) == 15
    (held,) = project.status().encoders
    assert (held.n_wanted, held.n_held, held.n_failed, held.n_missing) == (16, 15, 1, 0)
    assert project.sql("SELECT image_id, reason FROM failures").to_pylist() == [
        {"image_id": "abroad-002_brain_0", "reason": "not an image"}
    ]


def test_predictions_of_an_earlier_release_are_read(golden):
    project, expected = golden
    assert len(expected["predictions"]) == 15
    assert all_predictions(project) == expected["predictions"]
    assert project.sql("SELECT count(*) AS n FROM runs JOIN metrics USING (run_id)")["n"][0].as_py()


def test_the_catalog_of_an_earlier_release_is_built_from_its_files(golden):
    project, _ = golden
    assert not project.workspace.catalog.exists()
    project.index()
    assert project.verify().findings == ()  # which compares the catalog with the files
    assert not state.is_catalog_stale(project.workspace)


def test_work_goes_on_in_the_store_of_an_earlier_release(golden):
    project, expected = golden
    table, _ = project.folds(folds=3)
    assert [path.name.split(".")[0] for path in Path(project.workspace.folds).iterdir()] == [
        table.folds_id
    ]
    project.extract("pixels")
    options = ProbeOptions(settings=ProbeMethod(grid=(0.01, 1.0)), n_resamples=100)
    project.probe("all", probe_options=options, folds=3)
    assert project.gc(grace_s=-1).n_rows == 0
    assert all_rows(project) == expected["rows"]
    assert project.verify().findings == ()


def test_the_help_of_every_command_is_the_one_that_was_agreed():
    expected, found = HELP.read_text().splitlines(), help_text().splitlines()
    assert found == expected, (
        "the help has changed: if it should, run `python tests/golden/make.py` and commit "
        f"tests/golden/help.txt (this is click {version('click')}, which has a say in the layout)"
    )
