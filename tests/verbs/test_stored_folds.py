"""`folds`: assigned once, stored, shared by all probes."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from edits import add_column

import embedcache
from embedcache.data import fold_tables
from embedcache.errors import RunError
from embedcache.files.durable import crc32c


def test_folds_are_assigned_once_and_shared(project):
    table, sizes = project.folds()
    files = list(Path(project.workspace.folds).iterdir())
    assert project.folds()[0].patients == table.patients
    assert list(Path(project.workspace.folds).iterdir()) == files
    assert sum(size.n_images for size in sizes) == 72
    project.extract("pixels")
    (outcome,) = project.probe("pixels")
    assert outcome.record.request.data.folds_id == table.folds_id
    stored = project.sql("SELECT patient_id, fold FROM folds").to_pylist()
    assert {row["patient_id"]: row["fold"] for row in stored} == table.patients


def test_a_stored_fold_table_is_used_even_if_it_would_be_made_otherwise_today(project, monkeypatch):
    project.extract("pixels")
    table, _ = project.folds()
    monkeypatch.setattr(fold_tables, "assign_folds", lambda *_, **__: pytest.fail("assigned again"))
    assert project.folds()[0] == table


def test_a_table_that_another_release_of_arrow_wrote_is_not_stored_twice(project, tmp_path):
    table, _ = project.folds()
    [file] = Path(project.workspace.folds).iterdir()
    rows = pq.read_table(file)
    data = io.BytesIO()
    pq.write_table(rows, data, compression="none")
    other = file.with_name(f"{table.folds_id}.{crc32c(data.getvalue()):08x}.parquet")
    other.write_bytes(data.getvalue())
    file.unlink()
    assert project.folds()[0] == table
    given = tmp_path / "given.csv"
    lines = (f"{patient},{fold}" for patient, fold in table.patients.items())
    given.write_text("\n".join(["patient_id,fold", *lines]))
    project.folds(folds=given)
    assert sum(one.name.startswith(table.folds_id) for one in other.parent.iterdir()) == 1
    # A store of an earlier release may have both.
    pq.write_table(rows, file, compression="zstd")
    query = f"SELECT count(*) AS n FROM folds WHERE folds_id = '{table.folds_id}'"
    assert project.sql(query)["n"].to_pylist() == [len(table.patients)]


def with_centres(folder, centre):
    """Give each image of a project a centre by the number of its patient."""
    add_column(
        folder,
        "center",
        lambda lines: [centre(int(re.search(r"(?:home|abroad)-(\d+)", x)[1])) for x in lines],
    )


def test_each_centre_is_tested_by_the_others_and_sql_tells_which_is_which(
    project, tmp_path, command
):
    with_centres(tmp_path, lambda number: "abc"[number % 3])
    project.extract("pixels")
    (outcome,) = project.probe("pixels", folds_by="center", n_resamples=100)
    assert outcome.record.request.question.folds_by == "center"
    assert outcome.record.request.question.n_folds == 3
    rows = project.sql(
        "SELECT DISTINCT folds.value, images.center, predictions.fold FROM predictions "
        "JOIN runs USING (run_id) JOIN folds USING (folds_id, patient_id) "
        "JOIN images USING (image_id) WHERE role = 'in-domain' ORDER BY ALL"
    ).to_pylist()
    assert [tuple(row.values()) for row in rows] == [("a", "a", 0), ("b", "b", 1), ("c", "c", 2)]
    (usual,) = project.probe("pixels", folds=3, n_resamples=100)
    assert usual.run_id != outcome.run_id
    answer = command("folds", "--folds-by", "center")
    header, _, first, *_ = answer.out.splitlines()
    assert header.split()[:2] == ["fold", "center"]
    assert first.split()[:2] == ["0", "a"]
    assert ", by center; patients:" in answer.out


def test_lost_folds_by_a_column_are_made_again_though_the_manifest_says_otherwise(
    project, tmp_path
):
    with_centres(tmp_path, lambda number: "abc"[number % 3])
    project.extract("pixels")
    project.probe("pixels", folds_by="center", n_resamples=100)
    [file] = Path(project.workspace.folds).iterdir()
    written = file.read_bytes()
    manifest = tmp_path / "data_manifest.csv"
    lines = manifest.read_text().splitlines()
    manifest.write_text("\n".join([lines[0], *(f"{line[:-1]}a" for line in lines[1:])]) + "\n")
    file.unlink()
    again = embedcache.open(tmp_path)
    assert again.verify(repair=True).is_whole
    assert file.read_bytes() == written


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--folds-by", "center", "--folds", "3"], 2, "name --folds or --folds-by, not both"),
        (["--folds", "3", "--folds-by", "center"], 2, "name --folds or --folds-by, not both"),
        (["--folds-by", "center"], 5, "12 of 12 patients have images of two or more values"),
        (["--folds-by", "cohort"], 1, "every training image has the 'cohort' 'home'"),
        (["--folds-by", "planet"], 1, "no column 'planet' in the manifest"),
    ],
)
def test_folds_by_a_column_that_cannot_be_are_refused(
    project, tmp_path, command, arguments, code, message
):
    add_column(tmp_path, "center", lambda lines: ["ab"[i % 2] for i in range(len(lines))])
    answer = command("folds", *arguments)
    assert (answer.code, answer.out) == (code, "")
    assert message in answer.err
    with pytest.raises(RunError, match="folds 3 and folds by 'center' are named; name one"):
        project.folds(folds=3, folds_by="center")
    with pytest.raises(RunError, match="folds 5 and folds by 'center' are named; name one"):
        project.folds(folds=5, folds_by="center")


def test_a_column_of_two_values_has_folds_but_no_probe(project, tmp_path):
    with_centres(tmp_path, lambda number: "ab"[number % 2])
    project.extract("pixels")
    assert project.folds(folds_by="center")[0].values == ("a", "b")
    with pytest.raises(RunError, match="2 folds leave none to choose C on; .* or --folds-by a col"):
        project.probe("pixels", folds_by="center")
