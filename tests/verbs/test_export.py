"""`export`: one encoder's rows in a file of their own."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors import safe_open

from embedcache.errors import RunError


@pytest.mark.parametrize("kind", ["parquet", "npy", "safetensors"])
def test_exports_hold_rows_and_names(project, tmp_path, kind):
    project.extract("pixels")
    rows = project.embeddings("pixels", where="cohort = 'home'")
    files = project.export("pixels", tmp_path / f"out.{kind}", where="cohort = 'home'")
    if kind == "parquet":
        table = pq.read_table(files[0])
        X = np.stack(table["embedding"].to_pylist())
        names = table["image_id"].to_pylist()
        assert table.schema.metadata[b"fingerprint"].decode() == rows.fingerprint
    elif kind == "npy":
        X = np.load(files[0])
        names = [line.split(",")[0] for line in files[1].read_text().splitlines()[1:]]
    else:
        with safe_open(files[0], "numpy") as held:
            X = held.get_tensor("embedding")
            names = json.loads(held.metadata()["image_id"])
    assert np.array_equal(X.astype(np.float32), rows.X)
    assert tuple(names) == rows.image_id


def test_an_unknown_export_format_is_refused(project, tmp_path):
    project.extract("pixels")
    with pytest.raises(RunError, match=r"out\.xls: no format 'xls'; expected parquet, npy, safet"):
        project.export("pixels", tmp_path / "out.xls")
