"""Manifest columns of any name: predicates, views, exports and checks give the right rows."""

from __future__ import annotations

import csv

import duckdb
import pytest

import embedcache
from embedcache.catalog.index import check_catalog
from embedcache.testing import write_cohort

NAMES = (
    # what this project calls its own columns, aliases, views and schemas
    *("_number", "number", "one", "row", "n", "new_rows", "images", "encoders", "runs"),
    *("embeddings", "embeddings_pixels", "stored_rows", "predictions", "metrics", "internal"),
    *("main", "memory", "catalog", "wanted", "held", "failed", "n_images", "labels", "fold", "p"),
    *("value", "run_id", "encoder", "fingerprint", "vector", "segment", "reason", "temp"),
    # what DuckDB gives a meaning
    *("rowid", "select", "from", "where", "order", "table", "null", "true", "columns", "hash"),
    *("count", "current_date", "unnest", "_filename", "1", "-1", "NaN", "#1", "$1", "?", "*"),
    # what has to be quoted
    *("it's", 'quo"te', "'", '"', '""', "a.b", "a/b", "a-b", "--", "/*", "(", "[x]", "{y}"),
    *("semi;colon", "sp ace", "a\nb", "tab\there", "back\\slash", "caf\xe9", "cafe\u0301"),
    *("\u65e5\u672c", "\u200b", "\x1b[31m", "x" * 1000),
)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    write_cohort(folder, n_patients=3)
    file = folder / "data_manifest.csv"
    with file.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    for number, row in enumerate(rows):
        row.update({name: str(len(rows) - 1 - number) for name in NAMES})
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    project = embedcache.open(folder)
    project.extract("pixels")
    return project


@pytest.mark.parametrize("name", NAMES, ids=lambda name: ascii(name)[:30])
def test_a_predicate_and_a_query_find_the_image_by_a_column_of_any_name(project, name):
    quoted = '"{}"'.format(name.strip().replace('"', '""'))
    first, n_images = project.images()["image_id"][0].as_py(), len(project.images())
    rows = project.embeddings("pixels", where=f"{quoted} = {n_images - 1}")
    assert rows.image_id == (first,)
    found = project.sql(f"SELECT image_id FROM images WHERE {quoted} = {n_images - 1}")
    assert found["image_id"].to_pylist() == [first]


def test_the_views_and_the_count_of_rows_are_right_beside_columns_of_any_name(project):
    images = project.images()
    where = project.embeddings("pixels", where="patient_id = 'home-001'")
    assert set(where.patient_id) == {"home-001"}
    patients = project.sql("FROM patients ORDER BY patient_id").to_pylist()
    assert [row["patient_id"] for row in patients] == ["home-000", "home-001", "home-002"]
    assert sum(row["n_images"] for row in patients) == len(images)
    assert len(project.sql("FROM embedding_rows")) == len(images)
    assert len(project.sql("FROM images JOIN embeddings USING (image_id)")) == len(images)
    assert project.status().encoders[0].n_held == len(images)


def test_a_changed_cell_is_noticed_beside_columns_of_any_name(project):
    path = project.workspace.catalog
    assert check_catalog(path) == []
    with duckdb.connect(str(path)) as connection:
        connection.execute("UPDATE images SET label = 'x' WHERE image_id LIKE '%0'")
    assert check_catalog(path) == ["images"]
