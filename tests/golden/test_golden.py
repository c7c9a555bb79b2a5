"""What earlier releases wrote is read by this one, and the help says what it said."""

from __future__ import annotations

from importlib.metadata import version

import numpy as np
import pytest
from golden_files import HERE, answers, compact, image_rows, read_expected, unpack
from make import HELP, help_text, make_project

import embedcache
from embedcache.catalog.index import is_fresh
from embedcache.verbs.catalog import catalog_source
from embedcache.verbs.session import Session
from embedcache.workspace import FORMAT_VERSION

STORES = sorted(HERE.glob("store_v*.zip"))


@pytest.fixture(params=STORES, ids=lambda path: path.stem)
def golden(request, tmp_path):
    """A store as it was written, and what must be read from it."""
    unpack(request.param, tmp_path)
    return embedcache.open(tmp_path), read_expected(request.param.with_suffix(".json"))


def assert_rows_are_read(project, expected):
    """Hold the embeddings to the bits that were written."""
    assert image_rows(project, Session(project.workspace).find_store("fake")) == expected["rows"]
    written = {row["image_id"]: row["row"] for row in expected["rows"] if row["row"]}
    embeddings = project.embeddings("fake")
    assert set(embeddings.image_id) == set(written)
    wanted = np.array([written[name] for name in embeddings.image_id], np.float32)
    assert embeddings.X.tobytes() == wanted.tobytes()


def assert_tables_are_read(project, expected, *, is_untouched=True):
    """Hold each table of SQL to the rows that were read by the release that wrote the store.

    Columns that came later are passed over, and so are rows of later runs unless `is_untouched`.
    """
    for name, table in answers(project, expected["queries"]).items():
        written = list(map(compact, expected[name]))
        columns = list(expected[name][0])
        rows = [compact({column: row[column] for column in columns}) for row in table]
        if not is_untouched:
            rows = [row for row in rows if row in set(written)]
        assert rows == written, name


def run_ids(expected):
    return sorted({row["run_id"] for row in expected.get("metrics", expected["predictions"])})


def test_there_is_a_golden_store_of_this_format_version():
    assert HERE / f"store_v{FORMAT_VERSION}.zip" in STORES, "run `python tests/golden/make.py`"


@pytest.mark.slow
def test_the_store_of_this_format_version_can_be_made_again(tmp_path):
    _, made = make_project(tmp_path)
    expected = read_expected(HERE / f"store_v{FORMAT_VERSION}.json")
    assert made["rows"] == expected["rows"]
    assert [run["name"] for run in made["runs"]] == [run["name"] for run in expected["runs"]]
    for name in expected["queries"]:
        assert len(made[name]) == len(expected[name]), name
        columns = list(expected[name][0])  # others came later
        assert [column for column in made[name][0] if column in columns] == columns, name


def test_every_embedding_is_read_bit_for_bit(golden):
    project, expected = golden
    assert_rows_are_read(project, expected)


def test_every_table_of_sql_is_read_as_its_own_release_read_it(golden):
    project, expected = golden
    assert_tables_are_read(project, expected)


def test_the_store_is_sound_and_complete(golden):
    project, expected = golden
    held = [row["image_id"] for row in expected["rows"] if row["row"]]
    [broken] = [row["image_id"] for row in expected["rows"] if not row["row"]]
    report = project.verify()
    assert report.findings == ()
    assert report.n_rows == len(held)
    status = project.status()
    assert status.n_images == len(held) + 1
    assert status.n_runs == len(run_ids(expected))
    [encoder] = status.encoders
    n_images = (encoder.n_wanted, encoder.n_held, encoder.n_failed, encoder.n_missing)
    assert n_images == (len(held) + 1, len(held), 1, 0)
    assert project.sql("SELECT image_id, reason FROM failures").to_pylist() == [
        {"image_id": broken, "reason": "not an image"}
    ]


def test_the_catalog_is_built_from_the_files(golden):
    project, expected = golden
    assert not project.workspace.catalog.exists()
    project.index()
    source = catalog_source(project.workspace)
    assert is_fresh(source.path, source.items)
    assert project.verify().findings == ()  # which compares the catalog with the files
    assert_tables_are_read(project, expected)


def test_the_latest_run_of_each_method_is_compared(golden):
    project, expected = golden
    report = project.compare(n_resamples=100)
    assert set().union(*report.runs.values()) <= set(run_ids(expected))
    assert {cohort.cohort for cohort in report.cohorts} == {"home", "abroad"}


def test_nothing_of_it_is_garbage(golden):
    project, expected = golden
    report = project.gc(grace_s=-1)
    assert report.n_rows == 0
    assert_rows_are_read(project, expected)
    assert_tables_are_read(project, expected)
    assert project.verify().findings == ()


def test_work_goes_on_in_it(golden):
    project, expected = golden
    before = names(project.workspace.folds)
    folds, _ = project.folds(folds=3)  # are found again, not assigned anew
    assert names(project.workspace.folds) == before
    assert folds.folds_id in {name.partition(".")[0] for name in before}
    project.extract("pixels")
    report = project.probe("all", grid=(0.01, 1.0), n_resamples=100, folds=3)
    assert {outcome.encoder for outcome in report} == {"fake", "pixels"}
    assert project.workspace.check_format() == FORMAT_VERSION
    assert_rows_are_read(project, expected)
    assert_tables_are_read(project, expected, is_untouched=False)
    assert project.verify().findings == ()


def names(folder):
    return [entry.name for entry in folder.list()]


def test_the_help_of_every_command_is_the_one_that_was_agreed():
    expected, found = HELP.read_text().splitlines(), help_text().splitlines()
    assert found == expected, (
        "the help has changed: if it should, run `python tests/golden/make.py` and commit "
        f"tests/golden/help.txt (this is click {version('click')}, which has a say in the layout)"
    )
