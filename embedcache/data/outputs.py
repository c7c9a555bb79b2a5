"""Files that a user names to be written: what may lie there already, and is replaced."""

from __future__ import annotations

import codecs
import csv
from pathlib import Path
from typing import Final

from embedcache.data.manifest import REQUIRED
from embedcache.errors import RunError

_BEGINNINGS: Final = {"parquet": b"PAR1", "npy": b"\x93NUMPY", "json": b"["}
_HEAD: Final = 65536  # bytes that are looked at
_STORE_DOCUMENT: Final = "embedcache.json"
_WAY_OUT: Final = "name another file as -o, or pass --overwrite"


def check_place(file: Path) -> None:
    """Check that a file of the user's may be written at a place: no folder, and in no store.

    Raises
    ------
    RunError
        It may not.
    """
    if file.is_dir():
        raise RunError(f"{file}: a folder; name a file as -o")
    for folder in file.resolve().parents:
        if (folder / _STORE_DOCUMENT).is_file():
            raise RunError(f"{file}: inside the store {folder}; name a file elsewhere as -o")


def check_output(file: Path, kind: str, *, overwrite: bool = False) -> None:
    """Check that nothing but an earlier output of its kind is replaced; a pipe or device is none.

    Parameters
    ----------
    file
        File that is to be written.
    kind
        Format of what is to be written: 'parquet', 'npy', 'safetensors', 'json', 'csv' or 'table'.
    overwrite
        Whether any file is replaced, but for a store's.

    Raises
    ------
    RunError
        Something else lies there: a manifest, an image, a file of another format.
    """
    check_place(file)
    if overwrite or not file.is_file():
        return
    with file.open("rb") as stream:
        head = stream.read(_HEAD)
    if head and not _is_output(head, kind):
        raise RunError(f"{file}: holds something that is no {kind}; {_WAY_OUT}")
    if kind in {"csv", "table"} and _is_manifest(head):
        raise RunError(f"{file}: holds a manifest; {_WAY_OUT}")


def _is_output(head: bytes, kind: str) -> bool:
    if kind == "safetensors":
        return b'"embedding":' in head  # not weights
    if kind in _BEGINNINGS:
        return head.startswith(_BEGINNINGS[kind])
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)  # whose end may be half a character
    except UnicodeDecodeError:
        return False
    return b"\0" not in head


def _is_manifest(head: bytes) -> bool:
    line = head.decode("utf-8-sig", errors="replace").partition("\n")[0]
    header = {name.strip() for name in next(csv.reader([line.strip()]), [])}
    return header.issuperset(REQUIRED)
