"""Any folder with one sub-folder a class; the patient is read out of each path."""

from __future__ import annotations

import re
from pathlib import Path

from embedcache.data.dicom import count_frames
from embedcache.data.images import DICOM_SUFFIXES, SUFFIXES
from embedcache.errors import ImageReadError, ManifestError
from embedcache.files.regular import read_regular


def folder_rows(
    root: Path, *, patient: str, cohort: str | None = None, prefix: str = ""
) -> list[dict[str, str]]:
    """Return the manifest's rows, paths relative to `root`.

    Parameters
    ----------
    root
        Folder that holds one folder a class; images may lie deeper in it.
    patient
        Regular expression searched in each path below `root`; the patient is its group 'patient',
        else its first group, else all that it matched.
    cohort
        Name of the cohort; None for the folder's.
    prefix
        Text before each patient, which keeps patients of several cohorts apart.

    Raises
    ------
    ManifestError
        No such folder, no class folders, a bad expression, or a path that it finds no patient in.
    """
    if not root.is_dir():
        raise ManifestError(f"{root}: no such folder; pass the folder of class folders as --root")
    pattern = _compiled(patient)
    paths = sorted(
        path.relative_to(root)
        for path in root.rglob("*")
        # macOS leaves a file '._NAME' beside each file on foreign disks.
        if path.suffix.lower() in SUFFIXES and not path.name.startswith("._")
    )
    rows = []
    for path in paths:
        if len(path.parts) < 2:
            place = f"{root.name}/CLASS/IMAGE"
            raise ManifestError(f"{root}: image '{path}' lies in no class folder; expected {place}")
        rows += [
            {
                "image_id": image,
                "path": image,
                "patient_id": f"{prefix}{_patient_in(path, pattern)}",
                "label": path.parts[0],
                "cohort": cohort or root.resolve().name,
            }
            for image in _images(root, path)
        ]
    if not rows:
        suffixes = ", ".join(SUFFIXES)
        raise ManifestError(f"{root}: no images ({suffixes}) below it; expected CLASS/IMAGE")
    return rows


def _compiled(patient: str) -> re.Pattern[str]:
    try:
        return re.compile(patient)
    except re.error as error:
        raise ManifestError(f"--patient '{patient}' is no regular expression: {error}") from None


def _patient_in(path: Path, pattern: re.Pattern[str]) -> str:
    """Return the patient that an expression finds in a path."""
    group = "patient" if "patient" in pattern.groupindex else min(1, pattern.groups)
    match = pattern.search(path.as_posix())
    name = match[group] if match else None
    if not name:
        raise ManifestError(
            f"--patient '{pattern.pattern}' finds no patient in '{path.as_posix()}'; it must find "
            "one in every image's path, e.g. --patient '(P[0-9]+)_'"
        )
    return name


def _images(root: Path, path: Path) -> list[str]:
    """Return the pictures of one file: itself, or the frames of a DICOM file that holds several."""
    name = path.as_posix()
    if path.suffix.lower() not in DICOM_SUFFIXES:
        return [name]
    try:
        n_frames = count_frames(read_regular(root / path))
    except (ImageReadError, OSError) as error:
        raise ManifestError(f"{root / path}: {error}") from None
    return [name] if n_frames == 1 else [f"{name}#{number}" for number in range(n_frames)]
