"""What a query cannot do: write, reach a file, the network, the environment or a setting."""

from __future__ import annotations

from pathlib import Path

import pytest

from embedcache.errors import CatalogError
from embedcache.project import Project

FORBIDDEN_STATEMENTS = (
    "ATTACH 'x.db'",
    "ATTACH '{manifest}' AS other (TYPE sqlite)",
    "DETACH catalog",
    "USE memory",
    "BEGIN",
    "COMMIT",
    "CALL pragma_version()",
    "CALL enable_logging()",
    "CHECKPOINT",
    "COMMENT ON TABLE images IS 'x'",
    "COPY (SELECT 1) TO 'x.csv'",
    "COPY images TO '{folder}/x.parquet' (FORMAT parquet)",
    "COPY images FROM '{manifest}'",
    "COPY FROM DATABASE catalog TO memory",
    "CREATE TABLE t AS SELECT 1",
    "CREATE TEMP TABLE t AS SELECT 1",
    "CREATE OR REPLACE VIEW patients AS SELECT 1",
    "CREATE MACRO f(x) AS x",
    "CREATE SECRET s (TYPE s3)",
    "CREATE SCHEMA s",
    "CREATE SEQUENCE s",
    "CREATE TYPE t AS INTEGER",
    "DELETE FROM images",
    "DROP TABLE images",
    "DROP VIEW patients",
    "ALTER TABLE images ADD COLUMN x INTEGER",
    "EXPORT DATABASE '{folder}/x'",
    "IMPORT DATABASE '{folder}/x'",
    "INSERT INTO runs (run_id) VALUES ('x')",
    "INSTALL httpfs",
    "LOAD httpfs",
    "MERGE INTO runs USING runs AS r ON true WHEN MATCHED THEN DELETE",
    "PRAGMA version",
    "PRAGMA database_list",
    "PREPARE p AS SELECT 1",
    "EXECUTE p",
    "RESET threads",
    "SET enable_external_access = true",
    "SET GLOBAL temp_directory = '{folder}/spill'",
    "SET VARIABLE x = 1",
    "TRUNCATE images",
    "UPDATE images SET label = 'x'",
    "UPDATE EXTENSIONS",
    "VACUUM",
)
FORBIDDEN_READS = (
    "FROM '/etc/passwd'",
    "FROM '{manifest}'",
    "FROM '{folder}/*.csv'",
    "FROM 'https://example.com/x.parquet'",
    "FROM 's3://bucket/x.parquet'",
    "SELECT * FROM read_text('/etc/hostname')",
    "SELECT * FROM read_blob('{manifest}')",
    "SELECT * FROM read_csv('{manifest}')",
    "SELECT * FROM read_csv_auto('{manifest}')",
    "SELECT * FROM sniff_csv('{manifest}')",
    "SELECT * FROM read_json('{manifest}')",
    "SELECT * FROM read_json_objects('{manifest}')",
    "SELECT * FROM read_ndjson('{manifest}')",
    "SELECT * FROM read_parquet('{folder}/x.parquet')",
    "SELECT * FROM read_parquet('https://example.com/x.parquet')",
    "SELECT * FROM parquet_scan('{folder}/x.parquet')",
    "SELECT * FROM parquet_metadata('{folder}/x.parquet')",
    "SELECT * FROM parquet_schema('{folder}/x.parquet')",
    "SELECT * FROM parquet_file_metadata('{folder}/x.parquet')",
    "SELECT * FROM read_duckdb('{folder}/.embedcache/catalog.duckdb')",
    "SELECT * FROM glob('/*')",
    "SELECT * FROM query('FROM ''{manifest}''')",
    "SELECT * FROM query('COPY images TO ''{folder}/x.csv''')",
    "SELECT * FROM query_table('{manifest}')",
    "SELECT * FROM query_table(['images', '{manifest}'])",
    "SELECT * FROM (SELECT * FROM read_text('/etc/hostname'))",
    "WITH t AS (FROM read_text('/etc/hostname')) FROM t",
    "PIVOT (FROM read_csv('{manifest}')) ON label USING count(*)",
    "EXPLAIN ANALYZE COPY (SELECT 1) TO '{folder}/x.csv'",
    "EXPLAIN ANALYZE DELETE FROM images",
    "EXPLAIN ANALYZE CREATE TABLE t AS SELECT 1",
    "CREATE TABLE t AS PIVOT images ON label USING count(*)",
    "COPY (PIVOT images ON label USING count(*)) TO '{folder}/x.csv'",
    "SELECT * FROM enable_logging('QueryLog', storage = 'file', storage_path = '{folder}/log')",
    "SELECT * FROM sqlite_scan('{manifest}', 't')",
    "SELECT * FROM postgres_scan('', 'public', 't')",
    "SELECT * FROM json_execute_serialized_sql("
    "json_serialize_sql('SELECT * FROM read_text(''/etc/hostname'')'))",
    "SELECT getenv('HOME')",
    "FROM duckdb_secrets()",
    "SELECT * FROM secret_of_the_caller",
    "SELECT 1; DROP TABLE images",
    "SELECT 1; COPY images TO '{folder}/x.csv'",
)


def filled(text: str, project: Project) -> str:
    manifest = project.workspace.manifest
    return text.replace("{manifest}", str(manifest)).replace("{folder}", str(manifest.parent))


def files_below(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_whatever_would_write_or_reach_a_file_is_refused_and_changes_nothing(
    probed, tmp_path, monkeypatch
):
    secret_of_the_caller = probed.images()  # DuckDB would read the variables of its callers
    assert len(secret_of_the_caller)
    monkeypatch.chdir(tmp_path)
    before = files_below(tmp_path)
    for text in (*FORBIDDEN_STATEMENTS, *FORBIDDEN_READS):
        for fetch in (probed.sql, probed.sql_rows):
            assert "\n" not in refusal(fetch, filled(text, probed))
    probed.sql("SELECT * FROM checkpoint('catalog')")  # of a file that is opened read-only
    assert files_below(tmp_path) == before


def refusal(fetch, text: str) -> str:
    try:
        fetch(text)
    except CatalogError as error:
        return str(error)
    pytest.fail(f"was not refused: {text}")


@pytest.mark.parametrize("text", FORBIDDEN_STATEMENTS)
def test_a_statement_that_does_not_read_is_named_by_its_kind(project, text):
    message = r"is refused, SQL is read-only here; expected SELECT|Parser Error"
    with pytest.raises(CatalogError, match=message):
        project.sql(filled(text, project))


def test_settings_are_locked(asked):
    for name, value in (
        ("enable_external_access", False),
        ("lock_configuration", True),
        ("autoinstall_known_extensions", False),
        ("autoload_known_extensions", False),
        ("temp_directory", ""),
    ):
        assert asked.sql_rows(f"SELECT current_setting('{name}')").rows == ((value,),), name


def test_what_reads_runs(asked):
    assert len(asked.sql("PIVOT images ON label USING count(*) GROUP BY cohort")) == 2
    assert len(asked.sql("SELECT * FROM query('FROM patients')")) == 22
    assert len(asked.sql("FROM query_table('patients')")) == 22
    assert len(asked.sql("EXPLAIN ANALYZE SELECT count(*) FROM images"))
    assert len(asked.sql("UNPIVOT metrics ON low, high INTO NAME bound VALUE score"))
    assert len(asked.sql("SUMMARIZE images"))
    assert len(asked.sql("VALUES (1), (2)")) == 2
