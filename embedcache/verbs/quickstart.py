"""`quickstart`: the generated cohort, ready for the other verbs."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pyarrow as pa

from embedcache.data.manifest import read_manifest, write_manifest
from embedcache.datasets.phantom import phantom_rows, write_images
from embedcache.errors import ManifestError
from embedcache.workspace import MANIFEST_NAME, Workspace, find_workspace

MODELS: Final = ("efficientnet-lite0", "random:efficientnet-lite0")


def prepare(folder: Path, *, seed: int = 0) -> Workspace:
    """Write the generated cohort's manifest and pictures, where they are not there yet.

    Raises
    ------
    ManifestError
        Another manifest is in the way.
    """
    file = folder / MANIFEST_NAME
    rows = phantom_rows(seed)
    if file.exists():
        image_id = read_manifest(file).columns["image_id"]
        if list(image_id) != [row["image_id"] for row in rows]:
            raise ManifestError(
                f"{file} is another manifest than the quickstart's, which would replace it; pass "
                "an empty folder as --into"
            )
    else:
        write_manifest(file, rows)
    for _ in write_images(rows, folder, seed):
        pass
    return find_workspace(folder)


def describe(table: pa.Table) -> str:
    """Return one line on the images: how many, of whom, where."""
    cohort, patient = table["cohort"].to_pylist(), table["patient_id"].to_pylist()
    parts = []
    for name in dict.fromkeys(cohort):
        patients = {who for who, where in zip(patient, cohort, strict=True) if where == name}
        parts.append(f"{cohort.count(name)} images of {len(patients)} patients in '{name}'")
    return ", ".join(parts)
