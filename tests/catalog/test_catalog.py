from __future__ import annotations

import os
import shutil

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from embedcache.catalog import embeddings, query
from embedcache.catalog.index import check_catalog, is_fresh
from embedcache.catalog.output import plain_value
from embedcache.data import image_table
from embedcache.errors import CatalogError, StoreWriteError
from embedcache.runs.files import RunFiles
from embedcache.runs.tables import PREDICTIONS
from embedcache.store.embedding_store import EmbeddingStore
from embedcache.verbs.catalog import catalog_source, renew_catalog
from embedcache.verbs.session import Session

TABLES = ("images", "encoders", "embedding_rows", "failures", "folds", "runs", "patients")


def is_fresh_catalog(project) -> bool:
    source = catalog_source(project.workspace)
    return is_fresh(source.path, source.items)


def contents(path) -> dict[str, list]:
    with duckdb.connect(str(path), read_only=True) as connection:
        return {
            name: sorted(map(repr, connection.sql(f'FROM "{name}"').fetchall()))
            for name in (*TABLES, "predictions", "metrics")
        }


def test_a_catalog_rebuilt_from_the_files_equals_the_one_that_was_kept(probed):
    kept = contents(probed.workspace.catalog)
    probed.workspace.catalog.unlink()
    assert contents(probed.index()) == kept
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


def test_vectors_of_several_lengths_are_lists_in_the_common_view(project):
    project.extract("pixels")
    coarse = EmbeddingStore.open_or_create(
        project.workspace.encoders / "coarse-000000000000", _document(project, "coarse", dim=2)
    )
    keys = [key for key in project.images()["sha256"].to_pylist() if key]
    coarse.append(keys, np.ones((len(keys), 2), np.float32))
    kinds = project.sql("SELECT encoder, typeof(vector) AS t FROM embeddings GROUP BY ALL")
    assert set(kinds["t"].to_pylist()) == {"FLOAT[]"}
    own = project.sql("SELECT typeof(vector) AS t FROM embeddings_coarse LIMIT 1")
    assert own["t"].to_pylist() == ["FLOAT[2]"]


def test_names_that_differ_in_punctuation_share_a_view_and_have_one_each(project):
    project.extract("pixels")
    keys = [key for key in project.images()["sha256"].to_pylist() if key]
    for name, digits in (("tiny-vit", "a" * 12), ("Tiny.ViT", "b" * 12)):
        store = EmbeddingStore.open_or_create(
            project.workspace.encoders / f"{name}-{digits}",
            _document(project, name, dim=2, fingerprint=digits + "0" * 52),
        )
        store.append(keys, np.full((len(keys), 2), len(digits), np.float32))
    for view, names in (
        ("embeddings_tiny_vit", {"tiny-vit", "Tiny.ViT"}),
        ("embeddings_tiny_vit_aaaaaaaaaaaa", {"tiny-vit"}),
        ("embeddings_TINY_vit_bbbbbbbbbbbb", {"Tiny.ViT"}),
        ("embeddings", {"tiny-vit", "Tiny.ViT", "pixels"}),
    ):
        rows = project.sql(f"SELECT DISTINCT encoder FROM {view}")
        assert set(rows["encoder"].to_pylist()) == names, view


def _document(project, name: str, *, dim: int, fingerprint: str = "0" * 64) -> dict:
    (pixels,) = Session(project.workspace).stores()[-1:]
    document = dict(pixels.document)
    identity = {**document["identity"], "dim": dim}
    return {**document, "name": name, "fingerprint": fingerprint, "identity": identity}


def test_embeddings_are_read_only_where_a_query_names_them(probed, monkeypatch):
    monkeypatch.setattr(
        embeddings, "embedding_table", lambda *_: pytest.fail("embeddings were read for nothing")
    )
    assert len(probed.sql("SELECT count(*) AS n FROM images")) == 1
    with pytest.raises(CatalogError, match="embeddings_other"):
        probed.sql("SELECT * FROM embeddings_other")


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


def test_a_predicate_may_name_any_column_of_the_manifest(project):
    images = project.images()
    backwards = pa.array(range(len(images) - 1, -1, -1), pa.int64())
    for name in ("_number", "number", "number_", "NUMBER"):
        numbered = images.append_column(name, backwards)
        assert query.select_images(numbered, f"{name} >= {len(images) - 2}") == [0, 1]


def test_rows_are_those_of_the_table(asked):
    for text in (
        "FROM images ORDER BY image_id LIMIT 3",
        "SELECT p, correct, probability FROM predictions ORDER BY image_id LIMIT 3",
        "SELECT sum(n_images) AS n, sum(1.5) AS d FROM patients",
        "SELECT labels, labels FROM patients LIMIT 2",
        "SELECT vector FROM embeddings ORDER BY image_id LIMIT 2",
        "SELECT make_timestamptz(0) AS t, {'a': [1, NULL]} AS s, 'a'::BLOB AS b, uuid() IS NULL",
        "SHOW TABLES",
    ):
        table, rows = asked.sql(text), asked.sql_rows(text)
        assert list(rows.columns) == table.column_names
        plain = [tuple(map(plain_value, row.values())) for row in table.to_pylist()]
        assert list(rows.rows) == plain, text


def test_sql_follows_the_manifest_and_looks_at_no_image(probed, monkeypatch):
    monkeypatch.setattr(
        image_table, "hash_images", lambda *_: pytest.fail("images were looked at for nothing")
    )
    assert len(probed.sql("FROM images")) == 132
    monkeypatch.undo()
    manifest = probed.workspace.manifest
    manifest.write_text(manifest.read_text().rsplit("\n", 2)[0] + "\n")
    assert len(probed.sql("FROM images")) == 131
    assert is_fresh_catalog(probed)


def test_gc_sweeps_what_killed_writers_of_the_catalog_left(probed):
    left = [probed.workspace.local / f".tmp-0123.duckdb{end}" for end in ("", ".wal")]
    for path in left:
        path.write_bytes(bytes(100))
    # Nobody sees whether DuckDB is still writing one, so a minute has to pass at least.
    assert probed.gc(grace_s=-1).freed_bytes < 200
    for path in left:
        os.utime(path, (0, 0))
    assert probed.gc(grace_s=-1).freed_bytes == 200
    assert not any(path.exists() for path in left)


def test_a_manifest_that_is_edited_while_a_verb_works_makes_the_catalog_stale(probed):
    session = Session(probed.workspace)
    assert len(session.images.keys) == 132
    manifest = probed.workspace.manifest
    manifest.write_text(manifest.read_text().rsplit("\n", 2)[0] + "\n")
    renew_catalog(session)
    assert not is_fresh_catalog(probed)
    assert len(probed.sql("FROM images")) == 131


def test_a_probe_that_adds_a_run_loads_nothing_else(probed, monkeypatch):
    seen = []
    read = RunFiles.table
    monkeypatch.setattr(
        RunFiles, "table", lambda runs, *given: seen.append(given) or read(runs, *given)
    )
    probed.probe("pixels", seed=1)
    assert len({run_id for run_id, _ in seen}) == 1
    assert len(probed.sql("FROM runs")) == 2


def test_a_store_that_cannot_be_written_answers_from_memory(probed, monkeypatch):
    probed.workspace.catalog.unlink()
    monkeypatch.setattr(query, "update", refuse)
    assert probed.sql("SELECT count(*) AS n FROM predictions")["n"].to_pylist() == [132]
    assert not probed.workspace.catalog.exists()


def refuse(*_, **__):
    raise StoreWriteError("catalog.duckdb: read-only file system")


def test_a_project_without_a_store_answers_and_makes_none(project):
    assert project.sql("SELECT count(*) AS n FROM images")["n"].to_pylist() == [132]
    assert not project.workspace.store.exists()


def test_a_damaged_catalog_is_written_anew_by_the_query_that_meets_it(probed):
    path = probed.workspace.catalog
    data = bytearray(path.read_bytes())
    with duckdb.connect(str(path), read_only=True) as connection:
        ((block_size,),) = connection.sql(
            "SELECT block_size FROM pragma_database_size()"
        ).fetchall()
        blocks = connection.sql(
            "SELECT DISTINCT block_id FROM pragma_storage_info('predictions') WHERE block_id >= 0"
        ).fetchall()
    for (block,) in blocks:
        data[3 * 4096 + block * block_size + 5000] ^= 0xFF
    path.write_bytes(data)
    assert blocks
    assert check_catalog(path)
    rows = probed.sql("SELECT count(*) AS n, sum(probability) AS p FROM predictions WHERE correct")
    assert rows["n"].to_pylist()[0] > 0
    assert check_catalog(path) == []


@pytest.mark.parametrize("copy", ["{}-copy", "backup-{}"])
def test_a_copied_run_folder_counts_once(probed, copy):
    runs = probed.workspace.runs
    [run_id] = RunFiles(probed.workspace).ids()
    tables = ("runs", "predictions", "metrics")
    before = {name: len(probed.sql(f"FROM {name}")) for name in tables}
    shutil.copytree(runs / run_id, runs / copy.format(run_id))
    assert {name: len(probed.sql(f"FROM {name}")) for name in tables} == before
    assert probed.verify().findings == ()
