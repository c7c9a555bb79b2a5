"""What the makers of golden stores and their tests share: a cohort, its archive, and what is read.

Nothing of `embedcache` is imported but what both version 0.1 and this release have at one place.
"""

from __future__ import annotations

import csv
import json
import math
import shutil
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from embedcache.testing import write_cohort

HERE = Path(__file__).parent
# Derived files, files of one machine, and files of work under way: a store is whole without them.
LEFT_OUT = {"catalog.duckdb", "digests.tsv", "LOCK"}
LEFT_OUT_FOLDERS = {"pixels", "logs", "training"}
LEFT_OUT_PREFIXES = (".lock", ".active", ".tmp-")
PROMPTS = """\
template: "An ultrasound image of {}."
classes:
  abdomen: {labels: [abdomen], prompts: [the belly, the stomach]}
  brain: {labels: [brain], prompts: [the head]}
  femur: {labels: [femur], prompts: [a thigh, a long bone, a leg]}
"""
WORDS = {"belly": "abdomen", "stomach": "abdomen", "head": "brain"}


def write_project(folder: Path) -> None:
    """Write two cohorts, one image of the second broken, and columns for every task."""
    manifest = write_cohort(folder, n_patients=12, n_images=1, cohorts=("home", "abroad"))
    rows = [
        dict(zip(manifest.columns, cells, strict=True))
        for cells in zip(*manifest.columns.values(), strict=True)
    ]
    for row in rows:
        number = int(row["patient_id"].rpartition("-")[2])
        brightness = np.asarray(Image.open(folder / row["path"]), np.float64).mean()
        row["ga_weeks"] = f"{10 + brightness / 8 + number / 10:.1f}"
        organs = {"abdomen": ["trunk"], "brain": ["head"], "femur": []}[row["label"]]
        if brightness > 128 or number % 4 == 0:
            organs = [*organs, "bright"]
        row["findings"] = "|".join(organs) or "-"
        # The official split of the protocol 'fetalclip'; other cohorts have none.
        row["split"] = ("test" if number % 3 == 2 else "train") if row["cohort"] == "home" else ""
    rows[0]["ga_weeks"] = ""  # nobody knows
    rows[-1]["findings"] = ""
    with (folder / "data_manifest.csv").open("w", newline="") as stream:
        table = csv.DictWriter(stream, rows[0], lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    (folder / "images" / "abroad-003_brain_0.png").write_bytes(b"not an image")
    (folder / "prompts.yaml").write_text(PROMPTS)


class FakeTexts:
    """A text half that knows the mean embedding of each class.

    Parameters
    ----------
    X
        Embeddings, shape (n, dim).
    label
        Class of each embedding, shape (n,).
    """

    def __init__(self, X: np.ndarray, label: Iterable[str]) -> None:
        names = np.array(list(label))
        self.middle = X.mean(axis=0)
        self._means = {
            name: X[names == name].mean(axis=0) - self.middle for name in sorted(set(names))
        }

    def encode(self, texts: list[str]) -> np.ndarray:
        """Return the direction of the class that each text speaks of."""
        return np.stack(
            [
                self._means[next((WORDS[word] for word in WORDS if word in text), "femur")]
                for text in texts
            ]
        )


def plain(table: str, row: dict[str, Any]) -> dict[str, Any]:
    """Return a row of SQL as JSON holds it: a map as an object, NaN as null.

    Scores are never NULL, and all other numbers never NaN, so that a null says which it was.
    """
    cells: dict[str, Any] = {}
    for name, value in row.items():
        is_score = table == "metrics" and name in {"value", "low", "high"}
        assert not (is_score and value is None), row
        if isinstance(value, float) and not math.isfinite(value):
            assert is_score, row
            assert math.isnan(value), row
            cells[name] = None
        else:
            cells[name] = dict(value) if name == "p" and value is not None else value
    return cells


def answers(project: Any, queries: dict[str, str]) -> dict[str, list[dict[str, Any]]]:
    """Return what the project says to some queries, by their names, as JSON can hold it."""
    return {
        name: [plain(name, row) for row in project.sql(query).to_pylist()]
        for name, query in queries.items()
    }


def records(folder: Path) -> list[dict[str, Any]]:
    """Return `run.json` of every run of a project, by the run's name."""
    files = sorted((folder / ".embedcache" / "runs").glob("*/run.json"))
    return [json.loads(file.read_text()) for file in files]


def image_rows(project: Any, store: Any) -> list[dict[str, Any]]:
    """Return every image's row of a store, or None, as JSON can hold it without loss."""
    images = project.images().select(["image_id", "sha256"]).to_pylist()
    held = {key: store.read([key])[0].tolist() for key in store.row_keys()}
    return [{**image, "row": held.get(image["sha256"])} for image in images]


def write_expected(file: Path, expected: dict[str, Any]) -> None:
    """Write what must be read from a store, a row a line; a table of SQL names its columns once."""
    parts = []
    for name, value in expected.items():
        if name in expected["queries"]:
            columns = list(value[0]) if value else []
            cells = ",\n".join(compact([row[column] for column in columns]) for row in value)
            parts.append(f'"{name}":{{"columns":{compact(columns)},"rows":[\n{cells}\n]}}')
        elif isinstance(value, list):
            parts.append(f'"{name}":[\n' + ",\n".join(map(compact, value)) + "\n]")
        else:
            parts.append(f'"{name}":{compact(value)}')
    file.write_text("{\n" + ",\n".join(parts) + "\n}\n")
    assert read_expected(file) == expected


def read_expected(file: Path) -> dict[str, Any]:
    """Return what must be read from a store, each row of a table of SQL as an object."""
    expected = json.loads(file.read_text())
    for name in expected["queries"]:
        table = expected[name]
        expected[name] = [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]
    return expected


def compact(value: Any) -> str:
    """Return strict JSON on one line."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def pack(folder: Path, file: Path) -> None:
    """Write the archive of a project: the same bytes for the same files."""
    store = folder / ".embedcache"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            is_in_store = path.is_relative_to(store)
            is_left_out = (
                path.name in LEFT_OUT
                or path.name.startswith(LEFT_OUT_PREFIXES)
                or (is_in_store and path.relative_to(store).parts[0] in LEFT_OUT_FOLDERS)
            )
            if not is_left_out:
                entry = zipfile.ZipInfo(path.relative_to(folder).as_posix(), (2025, 1, 1, 0, 0, 0))
                entry.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(entry, path.read_bytes(), compresslevel=9)


def unpack(file: Path, folder: Path) -> None:
    """Unpack a golden store into a folder."""
    shutil.unpack_archive(file, folder)
