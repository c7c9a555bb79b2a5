"""Folders of encoders: how they are named, what tells them, and the document that each holds."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from typing import Any, Final

from embedcache.errors import StoreCorruptError, StoreReadError
from embedcache.files.backend import Location
from embedcache.files.documents import read_document

ENCODER_DOCUMENT: Final = "encoder.json"
COMMITS: Final = "commit"
SEGMENTS: Final = "seg"
# Entries of which a folder of embeddings has one at least, whatever it has lost.
_STORE_PARTS: Final = frozenset({ENCODER_DOCUMENT, f"{COMMITS}/", f"{SEGMENTS}/"})
_STORE_FOLDER: Final = re.compile(r"(?P<name>.+)-(?P<fingerprint>[0-9a-f]{12})")


def plain_name(name: str) -> str:
    """Return an encoder's name as folders have it."""
    return re.sub(r"[^A-Za-z0-9._]+", "-", name)


def same_name(first: str, second: str) -> bool:
    """Tell whether two names of encoders differ in hyphens and underscores at most."""
    return first.replace("_", "-") == second.replace("_", "-")


def read_encoder_document(folder: Location) -> dict[str, Any]:
    """Return the content of a folder's `encoder.json`, checked to be that of this folder.

    Raises
    ------
    StoreCorruptError
        It is missing, does not match its checksum, or is that of another folder.
    StoreReadError
        It is whole, and of a shape that this release does not know.
    """
    file = folder / ENCODER_DOCUMENT
    document = read_document(file)
    if not is_document_of(folder, document):
        problem = f"is that of another encoder, {document['name']}@{document['fingerprint'][:12]}"
        raise StoreCorruptError(
            f"{file} {problem}; give the folder its own name back", problem=problem
        )
    return document


def is_document_of(folder: Location, document: Mapping[str, Any]) -> bool:
    """Tell whether an encoder's document is that of the folder, as far as its name tells."""
    named = _STORE_FOLDER.fullmatch(folder.name)
    return named is None or str(document.get("fingerprint"))[:12] == named["fingerprint"]


def original_first(copies: list[Location]) -> list[Location]:
    """Return folders of one fingerprint, before all others the one named as its encoder."""
    if len(copies) == 1:
        return copies
    names = set()
    for folder in copies:
        # A copy may tell the name of the original whose document is damaged.
        with contextlib.suppress(StoreCorruptError, StoreReadError):
            names.add(plain_name(read_encoder_document(folder)["name"]))
    return sorted(copies, key=lambda folder: folder.name[:-13] not in names)


def store_folders(parent: Location) -> tuple[Location, ...]:
    """Return the folders named `<name>-<12 hexadecimal digits>` that hold embeddings, by name."""
    named = filter(is_encoder_folder, parent.folders())
    return tuple(
        folder for folder in named if _STORE_PARTS & {entry.name for entry in folder.list()}
    )


def is_encoder_folder(folder: Location) -> bool:
    """Tell whether a folder is named as one that holds embeddings."""
    return _STORE_FOLDER.fullmatch(folder.name) is not None
