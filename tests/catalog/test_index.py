"""The catalog file itself, made of small items: no image, store or run is behind them."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from embedcache.catalog import connection as connections
from embedcache.catalog import index
from embedcache.catalog.index import check_catalog, connect_memory, is_fresh, open_fresh, update
from embedcache.catalog.sources import EncoderRow, RunRow, SourceItem, one_row
from embedcache.errors import StoreCorruptError, StoreReadError, StoreWriteError

IMAGES = tuple(f"image-{number}" for number in range(6))
TABLES = (
    "images", "patients", "encoders", "embedding_rows", "failures", "folds", "runs", "predictions",
    "fold_predictions", "metrics",
)  # fmt: skip


def manifest(*image_ids: str, stamp: str = "1", **columns: list) -> SourceItem:
    image_ids = image_ids or IMAGES
    rows = {
        "image_id": list(image_ids),
        "patient_id": [f"patient-{name[-1]}" for name in image_ids],
        "label": ["brain"] * len(image_ids),
        "cohort": ["home"] * len(image_ids),
        **columns,
        "sha256": [f"digest of {name}" for name in image_ids],
    }
    return SourceItem("manifest", "data_manifest.csv", stamp, lambda: {"images": pa.table(rows)})


def encoder(name: str = "pixels", *, stamp: str = "1", segment: str = "s1", n: int = 5):
    fingerprint = f"fingerprint of {name}"

    def load():
        facts = dict.fromkeys(
            ("architecture", "output", "precision", "weights_sha256", "licence", "created"), ""
        )
        row = EncoderRow(
            encoder=name, fingerprint=fingerprint, dim=4, n_rows=n, n_failed=1, size_bytes=16 * n,
            preprocess="{}", seconds="{}", **facts,
        )  # fmt: skip
        held = {
            "fingerprint": [fingerprint] * n,
            "sha256": [f"digest of {image_id}" for image_id in IMAGES[:n]],
            "segment": [segment] * n,
            "row": list(range(n)),
        }
        failed = {
            "fingerprint": [fingerprint],
            "sha256": [f"digest of {IMAGES[-1]}"],
            "reason": ["cannot be read"],
        }
        return {
            "encoders": one_row(row),
            "internal.stored_rows": pa.table(held),
            "internal.stored_failures": pa.table(failed),
        }

    return SourceItem("encoder", f"{name}-folder", stamp, load)


def folds(name: str = "f1") -> SourceItem:
    rows = {
        "folds_id": [name] * 6,
        "patient_id": [f"patient-{number}" for number in range(6)],
        "fold": [number % 3 for number in range(6)],
    }
    return SourceItem("folds", f"{name}.parquet", "", lambda: {"folds": pa.table(rows)})


def run(run_id: str, *, stamp: str = "1", probability: float = 0.75) -> SourceItem:
    def load():
        row = RunRow(
            run_id=run_id, kind="probe", task="classification", encoder="pixels",
            fingerprint="fingerprint of pixels", probe="logistic", protocol="default", rule="tie",
            regime="probe", external_by="refit", label_column="label", train_cohort="home",
            n_folds=3, folds_id="f1", seed=0, n_resamples=100, created="2026", seconds=1.5,
            question="{}", method="{}", settings="{}", results="{}",
        )  # fmt: skip
        predictions = pa.table(
            {
                "run_id": [run_id] * 6,
                "image_id": list(IMAGES),
                "probability": [probability] * 6,
                "p": pa.array(
                    [[("brain", probability), ("femur", 1 - probability)]] * 6,
                    pa.map_(pa.string(), pa.float64()),
                ),
                "correct": [True] * 6,
            }
        )
        metrics = pa.table({"run_id": [run_id], "metric": ["macro_f1"], "value": [float("nan")]})
        return {
            "runs": one_row(row),
            "predictions": predictions,
            "fold_predictions": predictions.slice(0, 3),
            "metrics": metrics,
        }

    return SourceItem("run", run_id, stamp, load)


def unread(item: SourceItem) -> SourceItem:
    """Return an item that must not be loaded."""
    return replace(item, load=lambda: pytest.fail(f"{item.name} was loaded for nothing"))


WHOLE = (
    manifest(), encoder(), encoder("other"), folds(), run("run-1"), run("run-2"), run("run-3"),
)  # fmt: skip


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "catalog.duckdb"


@pytest.fixture
def whole(path: Path) -> Path:
    update(path, WHOLE)
    return path


def contents(path: Path) -> dict[str, list]:
    with duckdb.connect(str(path), read_only=True) as connection:
        return {
            name: sorted(map(repr, connection.sql(f'FROM "{name}"').fetchall()))
            for name in (*TABLES, "internal.sources", "internal.digests")
            for name in [name.replace(".", '"."')]
        }


def test_a_catalog_is_fresh_until_an_item_comes_goes_or_changes(whole):
    assert is_fresh(whole, [unread(item) for item in WHOLE])
    assert is_fresh(whole, tuple(reversed(WHOLE)))
    assert not is_fresh(whole, WHOLE[:-1])
    assert not is_fresh(whole, (*WHOLE, run("run-4")))
    assert not is_fresh(whole, (*WHOLE[:-1], run("run-3", stamp="2")))
    assert not is_fresh(whole.with_name("absent.duckdb"), WHOLE)


def test_an_up_to_date_catalog_is_not_written(whole):
    before = whole.stat()
    assert not update(whole, [unread(item) for item in WHOLE])
    assert (whole.stat().st_ino, whole.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert update(whole, WHOLE, anew=True)
    assert whole.stat().st_ino != before.st_ino


@pytest.mark.parametrize(
    ("after", "loaded"),
    [
        ((*WHOLE, run("run-4")), {"run-4"}),
        (WHOLE[:-1], set()),
        ((*WHOLE[:-1], run("run-3", stamp="2", probability=0.5)), {"run-3"}),
        ((manifest(*IMAGES[1:], stamp="2", device=["x"] * 5), *WHOLE[1:]), {"data_manifest.csv"}),
        ((WHOLE[0], encoder(stamp="2", n=4), *WHOLE[2:]), {"pixels-folder"}),
        ((WHOLE[0], encoder(stamp="compacted", segment="s2"), *WHOLE[2:]), {"pixels-folder"}),
        ((*WHOLE[:1], *WHOLE[2:]), set()),
        ((*WHOLE[:3], folds("f2"), *WHOLE[4:]), {"f2.parquet"}),
    ],
    ids=[
        "added run", "removed run", "changed run", "changed manifest", "new encoder rows",
        "compaction", "removed encoder", "other folds",
    ],
)  # fmt: skip
def test_an_updated_catalog_equals_one_that_is_written_anew(whole, tmp_path, after, loaded):
    items = [item if item.name in loaded else unread(item) for item in after]
    assert update(whole, items)
    written = tmp_path / "written.duckdb"
    update(written, after)
    assert contents(whole) == contents(written)
    assert check_catalog(whole) == []
    assert is_fresh(whole, after)


def test_many_updates_leave_a_catalog_that_checks(whole):
    for number in range(4, 12):
        update(whole, (*WHOLE, *(run(f"run-{n}") for n in range(number - 2, number))))
    update(whole, WHOLE)
    assert check_catalog(whole) == []
    with duckdb.connect(str(whole), read_only=True) as connection:
        assert connection.sql("SELECT count(*) FROM predictions").fetchall() == [(18,)]


def test_two_folders_of_one_encoder_come_and_go_together(path):
    copied = replace(encoder(), name="pixels-copied-folder")
    update(path, (manifest(), encoder(), copied))
    update(path, (manifest(), encoder(stamp="2"), copied))
    assert check_catalog(path) == []
    update(path, (manifest(), encoder(stamp="2")))
    with duckdb.connect(str(path), read_only=True) as connection:
        assert connection.sql("SELECT count(*) FROM encoders").fetchall() == [(1,)]
        assert connection.sql("SELECT count(*) FROM embedding_rows").fetchall() == [(5,)]


def test_rows_of_an_item_have_its_key_whatever_its_tables_say(path):
    item = run("run-1")

    def load():
        return {**item.load(), "predictions": run("run-2").load()["predictions"]}

    update(path, (manifest(), replace(item, load=load), run("run-2")))
    update(path, (manifest(), run("run-2")))
    assert check_catalog(path) == []
    with duckdb.connect(str(path), read_only=True) as connection:
        query = "SELECT DISTINCT run_id, count(*) FROM predictions GROUP BY ALL"
        assert connection.sql(query).fetchall() == [("run-2", 6)]


@pytest.mark.parametrize("table", ["images", "predictions", "internal.stored_rows"])
def test_a_changed_cell_is_found(whole, table):
    with duckdb.connect(str(whole)) as connection:
        column = {"images": "label", "predictions": "predicted"}.get(table, "segment")
        connection.execute(f"UPDATE {table} SET {column} = 'x' WHERE rowid = 1")
    assert check_catalog(whole) == [table.removeprefix("internal.")]
    update(whole, (*WHOLE, run("run-4")))
    assert check_catalog(whole) == [table.removeprefix("internal.")]  # an update does not hide it


@pytest.mark.parametrize("damage", [b"", b"no database at all", b"\0" * 20_000])
def test_a_damaged_file_is_written_anew(whole, damage):
    whole.write_bytes(damage)
    assert check_catalog(whole) == ["a table that cannot be read"]
    assert not is_fresh(whole, WHOLE)
    assert update(whole, WHOLE)
    assert check_catalog(whole) == []


def test_a_damaged_block_is_found_by_the_check_and_by_an_update(whole):
    data = bytearray(whole.read_bytes())
    for place in range(3 * 4096, len(data), 4096):  # behind the file's headers
        data[place + 100] ^= 0xFF
    whole.write_bytes(data)
    assert check_catalog(whole)
    assert update(whole, (*WHOLE, run("run-4")))
    assert check_catalog(whole) == []
    assert is_fresh(whole, (*WHOLE, run("run-4")))


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE internal.meta SET schema_version = schema_version - 1",
        "UPDATE internal.meta SET duckdb_version = '1.0.0'",
        "DROP TABLE internal.meta",
    ],
)
def test_a_catalog_of_another_version_is_written_anew(whole, change):
    with duckdb.connect(str(whole)) as connection:
        connection.execute(change)
    assert not is_fresh(whole, WHOLE)
    assert update(whole, WHOLE)
    assert is_fresh(whole, WHOLE)


def test_a_reader_keeps_the_old_file_and_the_next_one_sees_the_new(whole):
    with duckdb.connect(str(whole), read_only=True) as reader:
        update(whole, WHOLE[:-1])
        assert reader.sql("SELECT count(*) FROM runs").fetchall() == [(3,)]
        with open_fresh(whole, WHOLE[:-1]) as ours:
            assert ours.sql("SELECT count(*) FROM runs").fetchall() == [(2,)]


def test_of_two_writers_the_last_wins_and_the_next_update_mends_what_it_lacks(whole):
    """Both copy the same file; the slower one puts its copy in place of the faster one's."""
    both_read, errors = threading.Barrier(2), []

    def add(name: str) -> None:
        def load():
            both_read.wait(timeout=60)
            return run(name).load()

        try:
            update(whole, (*WHOLE, replace(run(name), load=load)))
        except Exception as error:
            errors.append(error)

    writers = [threading.Thread(target=add, args=(name,)) for name in ("run-4", "run-5")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert errors == []
    assert check_catalog(whole) == []
    items = (*WHOLE, run("run-4"), run("run-5"))
    with duckdb.connect(str(whole), read_only=True) as connection:
        assert connection.sql("SELECT count(*) FROM runs").fetchall() == [(4,)]
    assert not is_fresh(whole, items)
    update(whole, items)
    assert is_fresh(whole, items)
    assert list(whole.parent.iterdir()) == [whole]


@pytest.mark.parametrize("error", [StoreCorruptError, StoreReadError])
def test_an_item_that_cannot_be_read_is_left_out_until_it_can_be(whole, caplog, error):
    def load():
        raise error("run-4/run.json cannot be read")

    items = (*WHOLE, replace(run("run-4"), load=load))
    assert update(whole, items) == list(WHOLE)
    assert [record.getMessage() for record in caplog.records] == [
        "run 'run-4' is left out: run-4/run.json cannot be read"
    ]
    assert not is_fresh(whole, items)
    assert check_catalog(whole) == []
    with connect_memory(whole, items) as connection:
        assert connection.sql("SELECT count(*) FROM runs").fetchall() == [(3,)]
    update(whole, (*WHOLE, run("run-4")))
    with duckdb.connect(str(whole), read_only=True) as connection:
        assert connection.sql("SELECT count(*) FROM runs").fetchall() == [(4,)]


def test_a_manifest_that_cannot_be_read_leaves_the_old_catalog(whole):
    def load():
        raise StoreCorruptError("manifests/x.parquet does not match its checksum")

    before = whole.read_bytes()
    with pytest.raises(StoreCorruptError, match="manifests"):
        update(whole, (replace(manifest(stamp="2"), load=load), *WHOLE[1:]))
    assert whole.read_bytes() == before
    assert list(whole.parent.iterdir()) == [whole]


def test_where_no_file_can_be_written_one_line_says_so(tmp_path):
    path = tmp_path / "no such folder" / "catalog.duckdb"
    with pytest.raises(StoreWriteError, match=r"catalog\.duckdb: .*; everything finished before"):
        update(path, WHOLE)


@pytest.mark.parametrize(
    "kind",
    [
        duckdb.Error,
        duckdb.FatalException,
        duckdb.InternalException,
        duckdb.OutOfMemoryException,
        duckdb.TransactionException,
    ],
)
def test_whatever_duckdb_makes_of_a_full_disk_is_one_line_and_leaves_nothing(
    whole, monkeypatch, kind
):
    """Neither the file, nor the log that DuckDB puts beside it, nor an error of removing them."""
    before = whole.read_bytes()

    def refuse(connection, *_):
        [aside] = whole.parent.glob(".tmp-*.duckdb")
        aside.with_name(f"{aside.name}.wal").write_bytes(b"log")
        raise kind("Failed to commit: No space left on device\n\nadvice")

    monkeypatch.setattr(index, "_create", refuse)
    with pytest.raises(StoreWriteError, match="Failed to commit: No space left on device; every"):
        update(whole, WHOLE, anew=True)
    assert whole.read_bytes() == before
    assert list(whole.parent.iterdir()) == [whole]


def test_an_error_of_our_own_statements_is_no_error_of_the_disk(whole, monkeypatch):
    monkeypatch.setattr(index, "_create", lambda connection: connection.sql("FROM nowhere"))
    with pytest.raises(duckdb.CatalogException, match="nowhere"):
        update(whole, WHOLE, anew=True)


def test_an_in_memory_catalog_has_the_same_rows(whole, tmp_path):
    after = (*WHOLE[:-1], run("run-4"))
    new_only = [unread(item) for item in after[:-1]]
    with connect_memory(whole, [*new_only, after[-1]]) as connection:
        counted = connection.sql("SELECT count(*) FROM predictions").fetchall()
    with connect_memory(tmp_path / "absent.duckdb", after) as connection:
        assert connection.sql("SELECT count(*) FROM predictions").fetchall() == counted == [(18,)]
        assert connection.sql("SELECT count(*) FROM embedding_rows").fetchall() == [(10,)]
    assert is_fresh(whole, WHOLE)  # untouched


@pytest.mark.parametrize(
    "name",
    ["what?", "a'b", 'a"b', "st*", "a[b]c", "md:x", ":memory:", "s3:x", " ", "#;%.wal", "é"],
)
def test_a_catalog_lies_in_a_folder_of_any_name(tmp_path, monkeypatch, name):
    folder = tmp_path / name
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    path = Path(name, "catalog.duckdb")
    update(path, WHOLE[:-1])
    update(path, WHOLE)
    assert is_fresh(path, WHOLE)
    assert check_catalog(path) == []
    assert [entry.name for entry in folder.iterdir()] == ["catalog.duckdb"]
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


def test_an_image_without_a_digest_is_a_failure_of_every_encoder(path):
    images = manifest().load()["images"]
    sha256 = pa.array([None, *images["sha256"].to_pylist()[1:]], pa.string())
    table = images.set_column(images.schema.get_field_index("sha256"), "sha256", sha256)
    nowhere = replace(manifest(), load=lambda: {"images": table})
    update(path, (nowhere, encoder(), encoder("other")))
    with duckdb.connect(str(path), read_only=True) as connection:
        rows = connection.sql("SELECT encoder, reason FROM failures WHERE image_id = 'image-0'")
        assert sorted(rows.fetchall()) == [
            ("other", "its file is not here"),
            ("pixels", "its file is not here"),
        ]


def test_manifest_columns_may_have_the_names_of_other_tables_columns(path):
    update(path, (manifest(encoder=["x"] * 6, fingerprint=["x"] * 6, reason=["x"] * 6), encoder()))
    with duckdb.connect(str(path), read_only=True) as connection:
        assert connection.sql("SELECT DISTINCT encoder FROM embedding_rows").fetchall() == [
            ("pixels",)
        ]
        assert connection.sql("SELECT encoder, reason FROM failures").fetchall() == [
            ("pixels", "cannot be read")
        ]


def test_a_writer_makes_no_log_and_no_spill_folder(whole, tmp_path, monkeypatch):
    seen = []
    apply = index._apply

    def watched(connection, items):
        unread = apply(connection, items)
        seen.extend(entry.suffix for entry in tmp_path.iterdir())
        return unread

    monkeypatch.setattr(index, "_apply", watched)
    update(whole, WHOLE[:-1])
    assert set(seen) == {".duckdb"}
    with connections.connect() as connection:
        assert connection.sql("SELECT current_setting('temp_directory')").fetchall() == [("",)]
