from __future__ import annotations

import shutil

import duckdb
import pytest

from embedcache.catalog import query
from embedcache.catalog.index import check_catalog, index_tables
from embedcache.catalog.run_files import PREDICTIONS
from embedcache.errors import CatalogError
from embedcache.pipeline import state

TABLES = ("images", "encoders", "embedding_rows", "failures", "folds", "runs", "patients")


def contents(path) -> dict[str, list]:
    with duckdb.connect(str(path), read_only=True) as connection:
        return {
            name: connection.sql(f'FROM "{name}"').fetchall()
            for name in (*TABLES, "predictions", "metrics")
        }


def test_a_catalog_rebuilt_from_the_files_equals_the_one_that_was_kept(probed):
    kept = contents(probed.workspace.catalog)
    probed.workspace.catalog.unlink()
    assert repr(contents(probed.index())) == repr(kept)  # as text, for NaN is not NaN
    assert all(kept[name] for name in TABLES if name != "failures")
    assert check_catalog(probed.workspace.catalog) == []


def test_a_catalog_that_is_not_as_it_was_written_is_named(probed):
    with duckdb.connect(str(probed.workspace.catalog)) as connection:
        connection.execute("UPDATE images SET label = 'x' WHERE image_id LIKE 'home-000%'")
    assert check_catalog(probed.workspace.catalog) == ["images"]


def test_a_copied_store_answers_from_its_own_catalog(probed, tmp_path):
    copy = tmp_path / "elsewhere"
    shutil.copytree(probed.workspace.store, copy)
    shutil.rmtree(probed.workspace.store)
    held = contents(copy / "catalog.duckdb")
    assert len(held["predictions"]) == 132
    assert held["metrics"]


def test_a_reader_that_has_the_old_catalog_open_is_not_disturbed(probed):
    with duckdb.connect(str(probed.workspace.catalog), read_only=True) as reader:
        n_rows = len(reader.sql("FROM embedding_rows").fetchall())
        probed.index()
        assert len(reader.sql("FROM embedding_rows").fetchall()) == n_rows


def test_every_manifest_column_is_there_and_rows_join_by_digest(asked):
    got = asked.sql("SELECT * FROM images LIMIT 1")
    assert {
        "image_id",
        "path",
        "patient_id",
        "label",
        "cohort",
        "device",
        "frame",
        "sha256",
    } == set(got.column_names)
    assert str(asked.sql("SELECT typeof(frame) AS t FROM images LIMIT 1")["t"][0]) == "BIGINT"
    joined = asked.sql("SELECT count(*) AS n FROM images JOIN embedding_rows USING (image_id)")
    assert joined["n"].to_pylist() == [len(asked.images())]


def test_rows_of_a_patient_lie_together(asked):
    rows = asked.sql("SELECT patient_id, row FROM embedding_rows ORDER BY cohort, patient_id, row")
    assert rows["row"].to_pylist() == list(range(len(rows)))


def test_vectors_are_arrays_of_the_encoders_length(asked):
    kind = asked.sql("SELECT DISTINCT typeof(vector) AS t FROM embeddings")["t"].to_pylist()
    assert kind == ["FLOAT[256]"]
    near = asked.sql(
        "SELECT array_cosine_similarity(a.vector, b.vector) AS c FROM embeddings_pixels a "
        "JOIN embeddings b USING (image_id)"
    )
    assert min(near["c"].to_pylist()) == pytest.approx(1, abs=1e-5)


def test_vectors_of_several_lengths_are_lists_in_the_common_view(probed, monkeypatch):
    tables = []
    monkeypatch.setattr(
        query, "_register_embeddings", lambda connection, sources: tables.append(sources)
    )
    probed.sql("SELECT 1 AS embeddings_are_not_read_here")
    probed.sql("SELECT 1 AS x FROM images")
    assert len(tables) == 0 or tables[0]  # the word alone may fetch them; nothing else does
    monkeypatch.undo()
    sources = state.sources(probed.workspace)
    other = query.embedding_table(sources.stores[0], sources.images)
    assert str(query._with_lists(other).schema.field("vector").type) == "list<item: float>"


def test_embeddings_are_read_only_where_a_query_names_them(probed, monkeypatch):
    monkeypatch.setattr(
        query, "embedding_table", lambda *_: pytest.fail("embeddings were read for nothing")
    )
    assert len(probed.sql("SELECT count(*) AS n FROM images")) == 1


@pytest.mark.parametrize(
    "text",
    [
        "DELETE FROM images",
        "CREATE TABLE t AS SELECT 1",
        "DROP VIEW patients",
        "COPY (SELECT 1) TO 'x.csv'",
        "ATTACH 'x.db'",
        "SET enable_external_access = true",
        "INSTALL httpfs",
        "PRAGMA version",
        "CALL pragma_version()",
        "EXPORT DATABASE 'x'",
        "UPDATE images SET label = 'x'",
    ],
)
def test_what_would_write_is_refused(asked, text):
    with pytest.raises(CatalogError, match="is refused, SQL is read-only here; expected SELECT"):
        asked.sql(text)


@pytest.mark.parametrize(
    "text",
    [
        "SELECT * FROM read_text('/etc/hostname')",
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM glob('/*')",
        "FROM '/etc/passwd'",
        "SELECT * FROM read_parquet('https://example.com/x.parquet')",
    ],
)
def test_no_query_reaches_a_file(asked, text):
    with pytest.raises(CatalogError, match="disabled|Permission|not exist"):
        asked.sql(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("SELECT 1; SELECT 2", "2 statements; expected one SELECT"),
        ("", "0 statements"),
        ("SELEC 1", "Parser Error"),
        ("SELECT nothing FROM images", "nothing"),
        ("SELECT * FROM nowhere", "nowhere"),
    ],
)
def test_a_wrong_query_is_one_line(asked, text, message):
    with pytest.raises(CatalogError, match=message) as caught:
        asked.sql(text)
    assert "\n" not in str(caught.value)


def test_pivots_describes_and_explains_are_reading(asked):
    assert len(asked.sql("PIVOT images ON label USING count(*) GROUP BY cohort")) == 2
    assert len(asked.sql("DESCRIBE predictions")) == len(PREDICTIONS)
    assert len(asked.sql("EXPLAIN SELECT 1"))
    assert len(asked.sql("FROM patients")) == 22


def test_an_empty_store_has_all_its_tables(project):
    project.index()
    for name in (*TABLES, "predictions", "metrics", "embeddings"):
        got = project.sql(f"SELECT count(*) AS n FROM {name}")
        assert got["n"].to_pylist()[0] == {"images": 132, "patients": 22}.get(name, 0)


def test_a_predicate_selects_images_and_cannot_do_anything_else(project):
    images = project.images()
    assert len(query.select_images(images, None)) == len(images)
    kept = query.select_images(images, "label = 'brain' AND frame < 2 -- a comment")
    assert {images["label"][i].as_py() for i in kept} == {"brain"}
    assert {images["frame"][i].as_py() for i in kept} == {0, 1}
    for bad in ("labl = 'brain'", "label =", "true) UNION (SELECT 1", "1); DROP TABLE images; --("):
        with pytest.raises(CatalogError):
            query.select_images(images, bad)
    with pytest.raises(CatalogError, match="--where \"labl = 'x'\".*columns: image_id, path"):
        query.select_images(images, "labl = 'x'")


def test_index_tables_have_their_documented_columns(asked):
    tables = index_tables(state.sources(asked.workspace))
    assert tables["runs"].column_names[:4] == ["run_id", "kind", "regime", "encoder"]
    assert tables["folds"].column_names == ["folds_id", "patient_id", "fold"]
    assert tables["embedding_rows"].column_names[-2:] == ["segment", "row"]
