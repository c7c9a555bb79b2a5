"""Any folder with one sub-folder a class; the patient is read out of each path."""

from __future__ import annotations

import re
from pathlib import Path

from embedcache.data.images import DICOM_SUFFIXES, SUFFIXES, count_frames
from embedcache.errors import ImageReadError, ManifestError


def folder_rows(
    root: Path, *, patient: str, cohort: str | None = None, prefix: str = ""
) -> list[dict[str, str]]:
    """Return the manifest's rows, paths relative to `root`.

    Parameters
    ----------
    root
        Holds one folder a class; images may lie deeper in it.
    patient
        Regular expression that is searched in each path below `root`; its group 'patient', else
        its first group, else all that it matched, is the patient.
    cohort
        Name of the cohort; by default the folder's.
    prefix
        Put before each patient, to keep patients of several cohorts apart.

    Raises
    ------
    ManifestError
        No such folder, no class folders, a bad expression, or a path that it finds no patient in.
    """
    if not root.is_dir():
        raise ManifestError(f"{root}: no such folder; pass the folder of class folders as --root")
    try:
        pattern = re.compile(patient)
    except re.error as error:
        raise ManifestError(f"--patient '{patient}' is no regular expression: {error}") from None
    group = "patient" if "patient" in pattern.groupindex else min(1, pattern.groups)
    paths = sorted(
        path.relative_to(root)
        for path in root.rglob("*")
        if path.suffix.lower() in SUFFIXES and not path.name.startswith("._")
    )
    rows = []
    for path in paths:
        if len(path.parts) < 2:
            raise ManifestError(
                f"{root}: image '{path}' lies in no class folder; expected {root.name}/CLASS/IMAGE"
            )
        found = pattern.search(path.as_posix())
        name = found[group] if found else None
        if not name:
            raise ManifestError(
                f"--patient '{patient}' finds no patient in '{path.as_posix()}'; it must find one "
                "in every image's path, e.g. --patient '(P[0-9]+)_'"
            )
        rows += [
            {
                "image_id": image,
                "path": image,
                "patient_id": f"{prefix}{name}",
                "label": path.parts[0],
                "cohort": cohort or root.resolve().name,
            }
            for image in _images(root, path)
        ]
    if not rows:
        raise ManifestError(
            f"{root}: no images ({', '.join(SUFFIXES)}) below it; expected CLASS/IMAGE"
        )
    return rows


def _images(root: Path, path: Path) -> list[str]:
    """Return the pictures of one file: itself, or the frames of a DICOM file that holds several."""
    name = path.as_posix()
    if path.suffix.lower() not in DICOM_SUFFIXES:
        return [name]
    try:
        n_frames = count_frames((root / path).read_bytes())
    except (ImageReadError, OSError) as error:
        raise ManifestError(f"{root / path}: {error}") from None
    return [name] if n_frames == 1 else [f"{name}#{number}" for number in range(n_frames)]
