"""Any folder with one sub-folder a class; the patient is read out of each path."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from embedcache.data.images import SUFFIXES
from embedcache.data.spelling import spelling_twins, twins_text
from embedcache.datasets.folder_files import LeftOut, find_files
from embedcache.errors import ManifestError


@dataclass(frozen=True, slots=True)
class FolderRows:
    """The rows of a data set's manifest, and what is not in them.

    Parameters
    ----------
    rows
        Cells by column, one row an image, paths relative to the data set's folder.
    left_out
        Files and folders that give no image, and why.
    notes
        Lines on what may be wrong with the rows.
    """

    rows: list[dict[str, str]]
    left_out: tuple[LeftOut, ...] = ()
    notes: tuple[str, ...] = ()


def folder_rows(
    root: Path,
    *,
    patient: str,
    cohort: str | None = None,
    prefix: str = "",
    exclude: Sequence[str] = (),
) -> FolderRows:
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
    exclude
        Globs of files and folders to leave out; see `find_files`.

    Raises
    ------
    ManifestError
        No such folder, no images, no class folders, a bad expression, or a path that it finds no
        patient in.
    """
    if not root.is_dir():
        raise ManifestError(f"{root}: no such folder; pass the folder of class folders as --root")
    pattern = _compiled(patient)
    files = find_files(root, exclude)
    if not files.frames:
        raise _no_images(root, files.left_out)
    matches = {path: _search(path, pattern) for path in files.frames}
    rows = [
        {
            "image_id": image,
            "path": image,
            "patient_id": f"{prefix}{matches[path][0]}",
            "label": path.partition("/")[0],
            "cohort": cohort or root.resolve().name,
        }
        for path, n_frames in files.frames.items()
        for image in _images(path, n_frames)
    ]
    notes = (*files.notes, *_patient_notes(rows, matches), *_class_notes(matches))
    return FolderRows(rows, files.left_out, notes)


def _images(path: str, n_frames: int) -> list[str]:
    """Return the pictures of one file: itself, or its frames where it holds several."""
    return [path] if n_frames == 1 else [f"{path}#{number}" for number in range(n_frames)]


def _no_images(root: Path, left_out: Sequence[LeftOut]) -> ManifestError:
    outside = [item.path for item in left_out if item.kind == "no class"]
    if outside:
        place = f"{root.name}/CLASS/IMAGE"
        return ManifestError(
            f"{root}: image '{outside[0]}' lies in no class folder; expected {place}"
        )
    kinds = Counter(item.kind for item in left_out)
    others = ", ".join(f"{n} {kind}" for kind, n in kinds.items()) or "nothing"
    first = f", first '{left_out[0].path}' ({left_out[0].reason})" if left_out else ""
    return ManifestError(
        f"{root}: no images ({', '.join(SUFFIXES)}) below it; expected CLASS/IMAGE; left out: "
        f"{others}{first}"
    )


def _compiled(patient: str) -> re.Pattern[str]:
    try:
        return re.compile(patient)
    except re.error as error:
        raise ManifestError(f"--patient '{patient}' is no regular expression: {error}") from None


def _search(path: str, pattern: re.Pattern[str]) -> tuple[str, int, int]:
    """Return the patient that an expression finds in a path, and where: its first and last end."""
    group = "patient" if "patient" in pattern.groupindex else min(1, pattern.groups)
    match = pattern.search(path)
    name = match[group].strip() if match and match[group] else None
    if not match or not name:
        raise ManifestError(
            f"--patient '{pattern.pattern}' finds no patient in '{path}'; it must find one in "
            "every image's path, e.g. --patient '(P[0-9]+)_'; leave other images out with "
            "--exclude"
        )
    return name, *match.span(group)


def _patient_notes(
    rows: Sequence[dict[str, str]], matches: dict[str, tuple[str, int, int]]
) -> Iterator[str]:
    """Say what is odd about the patients: found in the class, or spelt in several ways."""
    in_class = [path for path, (_, _, end) in matches.items() if end <= path.index("/")]
    if in_class:
        alone = ", so that each class has one patient of its own" if _one_a_class(rows) else ""
        yield (
            f"the expression finds the patient of {len(in_class)} images in the name of the class "
            f"folder{alone}, first '{matches[in_class[0]][0]}' in '{in_class[0]}'; let it match "
            "behind that, as in --patient '/.*?(P[0-9]+)'"
        )
    elif _one_a_class(rows):
        yield "each class has one patient of its own; is --patient right?"
    for what in ("patient_id", "label"):
        twins = spelling_twins(row[what] for row in rows)
        if twins:
            yield (
                f"{sum(map(len, twins))} values of {what} differ in spelling only: "
                f"{twins_text(twins)}"
            )


def _one_a_class(rows: Sequence[dict[str, str]]) -> bool:
    pairs = {(row["label"], row["patient_id"]) for row in rows}
    labels, patients = {label for label, _ in pairs}, {patient for _, patient in pairs}
    return len(pairs) == len(labels) == len(patients) < len(rows) and len(labels) > 1


def _class_notes(matches: dict[str, tuple[str, int, int]]) -> Iterator[str]:
    """Say where the classes may be other folders than the uppermost ones."""
    below: defaultdict[str, set[str]] = defaultdict(set)
    for path, (_, first, _) in matches.items():
        label, *folders, _ = path.split("/")
        is_of_patient = bool(folders) and first < len(label) + 1 + len(folders[0])
        below[label].add("" if is_of_patient or not folders else folders[0])
    shared = set.intersection(*below.values()) - {""}
    if len(below) == 1:
        label = next(iter(below))
        deeper = f"; the folders in it are {_few(sorted(below[label]))}" if shared else ""
        yield f"all images are in one class folder, so that '{label}' is the only label{deeper}"
    elif len(shared) > 1:
        yield (
            f"each of the class folders {_few(sorted(below))} holds {_few(sorted(shared))}: the "
            "labels are the upper ones; if the lower ones are the classes, write each upper one as "
            "a --root of its own, with --append"
        )


def _few(names: Sequence[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:4])
    return f"{shown} and {len(names) - 4} more" if len(names) > 4 else shown
