"""The files below a folder of images: which are pictures of the cohort, and why others are not."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Final, Literal

from embedcache.data.dicom import count_frames
from embedcache.data.images import (
    DICOM_SUFFIXES,
    SUFFIXES,
    decode_image,
    picture_size,
    split_frame,
)
from embedcache.errors import ImageReadError
from embedcache.files.cores import usable_cores
from embedcache.files.regular import open_regular, read_regular
from embedcache.files.threads import ReadingThreads
from embedcache.visible import is_unicode

LeftOutKind = Literal["excluded", "hidden", "mask", "no image", "no class", "unreadable"]

# Folders that file servers and operating systems add, in lower case; those with a dot go too.
_FOREIGN_FOLDERS: Final = frozenset(
    {"@eadir", "@recycle", "@recently-snapshot", "@tmp", "#recycle", "#snapshot", "$recycle.bin"}
    | {"__macosx", "lost+found", "recycler", "system volume information", "network trash folder"}
)
_MASK: Final = (
    r"(?:ma?sks?|masked|seg(?:s|mented|mentations?|mentation ?masks?)?|labels?|lbls?|label ?maps?"
    r"|ann(?:ot?)?|annotations?|annotated|gts?|ground[ _-]?truths?|bin(?:ary)?|contours?|rois?"
    r"|overlays?|outlines?|thumb(?:s|nails?)?|previews?)"
)
_MASK_FOLDER: Final = re.compile(rf"(?:.*[ _.-])?{_MASK}(?:[ _.-]*t[rs])?", re.IGNORECASE)
_MASK_STEM: Final = re.compile(
    rf"(?P<image>.+?)[ _.-]+\(?{_MASK}\)?(?:[ _.-]*\(?\d+\)?)?|{_MASK}[ _.-]+(?P<image_after>.+)",
    re.IGNORECASE,
)
_NO_SUFFIX: Final = re.compile(r"[^.]+|[\d.]+")  # IM_0001, or a DICOM UID


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A file or folder that gives no image.

    Parameters
    ----------
    kind
        What it is: 'excluded' by the user, 'hidden' or a file server's, a 'mask' or the like of an
        image beside it, 'no image', an image in 'no class' folder, or one that is 'unreadable'.
    path
        Its path below the root; that of a folder ends in a slash.
    reason
        Why it is left out, in a few words.
    """

    kind: LeftOutKind
    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class FolderFiles:
    """The files below a folder, told apart.

    Parameters
    ----------
    frames
        Number of pictures in each image file, by its path below the root, sorted by path.
    left_out
        Everything else, sorted by path.
    notes
        Lines on what is taken and may be wrong.
    """

    frames: dict[str, int]
    left_out: tuple[LeftOut, ...]
    notes: tuple[str, ...]


def find_files(root: Path, exclude: Sequence[str] = ()) -> FolderFiles:
    """Return the image files below a folder of class folders, and what else lies there.

    Parameters
    ----------
    root
        The folder.
    exclude
        Globs of what to leave out, held against each path below the root and each part of it.
    """
    paths: list[str] = []
    left_out: list[LeftOut] = []
    matched: set[str] = set()
    for path, problem in _walk(root):
        globs = [glob for glob in exclude if _matches(path, glob)]
        matched.update(globs)
        if globs:
            left_out.append(LeftOut("excluded", path, f"--exclude '{globs[0]}'"))
        elif _is_hidden(PurePosixPath(path).name):
            left_out.append(LeftOut("hidden", path, "hidden, or a file server's"))
        elif problem:
            left_out.append(LeftOut("unreadable", path, problem))
        else:
            paths.append(path)
    frames: dict[str, int] = {}
    with ReadingThreads(max(2, usable_cores())) as pool:
        for path, look in zip(paths, pool.map(lambda path: _look(root, path), paths), strict=True):
            if isinstance(look, LeftOut):
                left_out.append(look)
            elif "/" not in path:
                left_out.append(LeftOut("no class", path, "lies in no class folder"))
            else:
                frames[path] = look
    masks = _masks(frames)
    left_out += [LeftOut("mask", path, f"belongs to '{image}'") for path, image in masks.items()]
    frames = {path: frames[path] for path in sorted(frames) if path not in masks}
    notes = [f"--exclude '{glob}' matches nothing" for glob in exclude if glob not in matched]
    return FolderFiles(
        frames,
        tuple(sorted(left_out, key=lambda item: item.path)),
        (*notes, *_mask_notes(frames), *_format_notes(frames)),
    )


def _walk(root: Path) -> Iterator[tuple[str, str]]:
    """Yield each file's path below `root`, and folders that are not entered; with what is wrong."""
    errors: list[OSError] = []
    for folder, names, files in os.walk(root, onerror=errors.append):
        below = Path(folder).relative_to(root).as_posix()
        prefix = "" if below == "." else f"{below}/"
        for name in list(names):
            is_link = Path(folder, name).is_symlink()
            if is_link or _is_hidden(name):
                names.remove(name)
                yield f"{prefix}{name}/", "a link to a folder, which is not followed"
        for name in files:
            yield f"{prefix}{name}", ""
    for error in errors:
        yield f"{Path(error.filename).relative_to(root).as_posix()}/", str(error.strerror)


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _FOREIGN_FOLDERS


def _matches(path: str, glob: str) -> bool:
    return any(fnmatchcase(name, glob) for name in (path, *PurePosixPath(path).parts))


def _look(root: Path, path: str) -> int | LeftOut:
    """Return how many pictures a file holds, or why it gives none."""
    file = root / path
    suffix = file.suffix.lower()
    may_be_image = suffix in SUFFIXES or bool(_NO_SUFFIX.fullmatch(file.name))
    try:
        with open_regular(file) as stream:
            is_dicom = stream.read(132)[128:] == b"DICM"
        is_picture = not is_dicom and picture_size(str(file)) != (0, 0)
        if not (is_dicom or suffix in SUFFIXES or (may_be_image and is_picture)):
            return LeftOut("no image", path, "no image by its suffix")
        _check_name(path)
        if is_dicom or suffix in DICOM_SUFFIXES:
            return _n_frames(file)
        if not is_picture:
            decode_image(read_regular(file), on_note=lambda _: None)  # which says why
    except OSError as error:
        if not may_be_image:
            return LeftOut("no image", path, str(error))
        return LeftOut("unreadable", path, error.strerror or str(error))
    return 1


def _n_frames(file: Path) -> int:
    n_frames = count_frames(read_regular(file))
    if n_frames > 1 and split_frame(f"{file}#0")[1] is None:
        raise ImageReadError(f"{n_frames} frames; give it the suffix .dcm, so that each has a name")
    return n_frames


def _check_name(path: str) -> None:
    """Raise `ImageReadError` for a path that a manifest cannot hold as it is."""
    if not is_unicode(path):
        raise ImageReadError("its name is not UTF-8; rename it")
    if "\\" in path:
        raise ImageReadError("a backslash in its path; rename it")
    if path != path.strip():
        raise ImageReadError("its path begins or ends with a space; rename it")
    if split_frame(path)[1] is not None:
        raise ImageReadError("its name ends like the number of a frame; rename it")


def _masks(paths: Iterable[str]) -> dict[str, str]:
    """Return the paths of masks and the like, each with the image that it belongs to.

    It has the name of an image beside it with an addition, or lies in a folder of masks that has
    a part with such an image beside it.
    """
    images: dict[tuple[str, str], str] = {}
    suspects = []
    for path in paths:
        places = _places_of_image(path)
        if places:
            suspects.append((path, places))
        else:
            _add_image(images, path)
    masks = {}
    # The shorter name first: 'a_roi' may turn out to be the image of 'a_roi_mask'.
    for path, places in sorted(suspects, key=lambda item: (len(item[0]), item[0])):
        image = next((images[place] for place in places if place in images), None)
        if image is None:
            _add_image(images, path)
        else:
            masks[path] = image
    return masks


def _add_image(images: dict[tuple[str, str], str], path: str) -> None:
    *folders, _ = PurePosixPath(path).parts
    for depth in range(len(folders) + 1):
        images.setdefault(("/".join(folders[:depth]), PurePosixPath(path).stem.lower()), path)


def _places_of_image(path: str) -> list[tuple[str, str]]:
    """Return folder and stem of the images that a file would belong to if it was a mask."""
    *folders, _ = PurePosixPath(path).parts
    stem = PurePosixPath(path).stem
    match = _MASK_STEM.fullmatch(stem)
    image = (match["image"] or match["image_after"]) if match else stem
    depths = [i for i, folder in enumerate(folders) if _MASK_FOLDER.fullmatch(folder)]
    places = [("/".join(folders), image.lower())] if match else []
    for depth in depths[-1:]:
        above = "/".join(folders[:depth])
        places += [(above, image.lower()), (above, stem.lower())]
    return places


def _mask_notes(paths: Iterable[str]) -> Iterator[str]:
    alike = [path for path in paths if _MASK_STEM.fullmatch(PurePosixPath(path).stem)]
    if alike:
        yield (
            f"{len(alike)} images are named like masks, but no image lies beside them, first "
            f"'{alike[0]}'; leave them out with --exclude if they are masks"
        )


def _format_notes(paths: Iterable[str]) -> Iterator[str]:
    """Say how many images lie beside one of the same name with another suffix."""
    formats: defaultdict[PurePosixPath, list[str]] = defaultdict(list)
    for path in paths:
        formats[PurePosixPath(path).with_suffix("")].append(path)
    several = [path for group in formats.values() if len(group) > 1 for path in group]
    if several:
        yield (
            f"{len(several)} images have the name of another but for the suffix, first "
            f"'{several[0]}' and '{several[1]}'; leave one format out with --exclude if they are "
            "the same pictures"
        )
