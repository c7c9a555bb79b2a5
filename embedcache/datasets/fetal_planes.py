"""FETAL_PLANES_DB: 12,400 images of 1,792 patients, Spain (Zenodo 3904280, CC BY 4.0).

Burgos-Artizzu et al. 2020, Scientific Reports 10:10200. The table separates by ';', its last header
is 'Train ' and its cells end in a space; image names lack their extension.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from embedcache.datasets.tables import images_folder, read_table
from embedcache.errors import ManifestError

TABLE: Final = "FETAL_PLANES_DB_data.csv"
COHORT: Final = "spain"
_COLUMNS: Final = (
    "Image_name",
    "Patient_num",
    "Plane",
    "Brain_plane",
    "Operator",
    "US_Machine",
    "Train",
)
_NAME: Final = re.compile(r"Patient(\d{5})_Plane(\d)_(\d+)_of_(\d+)")
# The digit in a name says the plane once more.
PLANES: Final = {
    "1": "Other",
    "2": "Fetal abdomen",
    "3": "Fetal brain",
    "4": "Maternal cervix",
    "5": "Fetal femur",
    "6": "Fetal thorax",
}


def fetal_planes_rows(
    root: Path, *, table: Path | None = None, cohort: str = COHORT
) -> list[dict[str, str]]:
    """Return the manifest's rows, paths relative to `root`.

    Parameters
    ----------
    root
        Folder of the unpacked download, with `Images/`.
    table
        Metadata table of the download; None where it lies in `root`.
    cohort
        Name of the cohort.

    Raises
    ------
    ManifestError
        The table is missing or is not the published one; names file, line and value.
    """
    file = table or root / TABLE
    folder = images_folder(root)
    return [_row(file, line, row, folder, cohort) for line, row in read_table(file, _COLUMNS, ";")]


def _row(file: Path, line: int, row: dict[str, str], folder: str, cohort: str) -> dict[str, str]:
    name, plane, number = row["Image_name"], row["Plane"], row["Patient_num"]
    parsed = _NAME.fullmatch(name)
    if parsed is None or not number.isdigit() or int(parsed[1]) != int(number):
        raise ManifestError(
            f"{file}:{line}: Image_name '{name}' and Patient_num '{number}' do not agree; expected "
            "PatientNNNNN_PlaneD_I_of_N"
        )
    if PLANES.get(parsed[2]) != plane:
        raise ManifestError(
            f"{file}:{line}: Plane '{plane}' of '{name}', its name says "
            f"'{PLANES.get(parsed[2], parsed[2])}'"
        )
    if row["Train"] not in {"0", "1"}:
        raise ManifestError(f"{file}:{line}: Train '{row['Train']}', expected 0 or 1")
    return {
        "image_id": name,
        "path": f"{folder}{name}.png",
        "patient_id": f"ES-{int(number):05d}",
        "label": plane,
        "cohort": cohort,
        "center": "Spain",
        "split": "train" if row["Train"] == "1" else "test",
        "device": row["US_Machine"],
        "operator": row["Operator"],
        "brain_plane": row["Brain_plane"],
    }
