"""Pseudonyms in the place of ids: HMAC-SHA256 under a key that stays outside the store.

The same key gives the same pseudonym, so tables that were made apart can be joined. Without the key
nobody gets from a pseudonym to an id, not even by trying all ids that a hospital gives.
"""

from __future__ import annotations

import contextlib
import hmac
import secrets
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from embedcache.errors import ManifestError
from embedcache.files.durable import make_folder, publish

_KEY_BYTES: Final = 32
# Digits kept of a digest: 64 bits, so that of a million patients two share one in 1 of 3e7 cases.
_DIGITS: Final = 16
_PREFIXES: Final = {"patient_id": "P-", "image_id": "I-"}


class Pseudonyms:
    """The pseudonyms that one key gives.

    Parameters
    ----------
    key
        Secret bytes, 32 at least.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key

    def of(self, column: str, ids: Sequence[str]) -> tuple[str, ...]:
        """Return the pseudonym of each id.

        Parameters
        ----------
        column
            'patient_id' or 'image_id': equal texts of the two have other pseudonyms.
        ids
            Ids as the manifest has them.
        """
        return tuple(
            _PREFIXES[column]
            + hmac.digest(self._key, f"{column}\0{text}".encode(), "sha256").hex()[:_DIGITS]
            for text in ids
        )

    def rows(self, rows: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
        """Return rows of a manifest with pseudonyms of patients and images; the rest stays."""
        columns = {name: self.of(name, [row[name].strip() for row in rows]) for name in _PREFIXES}
        return [
            {**row, **{name: column[number] for name, column in columns.items()}}
            for number, row in enumerate(rows)
        ]


def read_key(file: Path) -> Pseudonyms:
    """Return the pseudonyms of the key in a file, which is made where it is not there.

    Raises
    ------
    ManifestError
        The file holds no key, is inside a store, or others can read it.
    StoreWriteError
        A new key cannot be written.
    """
    if any((folder / "embedcache.json").exists() for folder in file.resolve().parents):
        raise ManifestError(f"{file}: a key inside a store goes with it; name a file elsewhere")
    if not file.exists():
        make_folder(file.absolute().parent)
        with contextlib.suppress(FileExistsError):  # another process was first
            publish(file, secrets.token_hex(_KEY_BYTES).encode() + b"\n")
            file.chmod(0o600)
    if not file.is_file():
        raise ManifestError(f"{file}: no regular file; expected a file with a key")
    if file.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ManifestError(f"{file}: others can read this key; run `chmod 600 {file}`")
    try:
        key = file.read_bytes().strip()
    except OSError as error:
        raise ManifestError(f"{file}: {error.strerror}; expected a file with a key") from None
    if len(key) < _KEY_BYTES:
        raise ManifestError(
            f"{file}: a key of {len(key)} bytes, expected {_KEY_BYTES} or more; name a file that "
            "is not there, and a key is made"
        )
    return Pseudonyms(key)
