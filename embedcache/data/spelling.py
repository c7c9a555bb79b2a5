"""Names that differ in their spelling only: `007` and `7`, `P-8` and `p8`, two forms of an `ë`."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Final

from embedcache.visible import is_invisible, visible_text

# Letters that look like Latin ones, at least as capitals: Cyrillic, then Greek.
_FOREIGN: Final = "авекмнорстухіјѕαβεζηικμνορτυχ"
_LATIN: Final = "abekmhopctyxijsabezhikmnoptyx"
_LOOK_ALIKES: Final = str.maketrans(_FOREIGN + _FOREIGN.upper(), _LATIN + _LATIN.upper())
_DASHES: Final = re.compile(r"[-\u2010-\u2015\u2212]+")
_GAPS: Final = re.compile(r"[\s_.]+")
_WHOLE_NUMBER: Final = re.compile(r"(\d+)\.0+")  # what pandas makes of a number among gaps
_DIGITS: Final = re.compile(r"\d+")
_SHOWN: Final = 3  # groups in a message


def spelling_key(name: str) -> str:
    """Return a text that is the same for every likely spelling of a name.

    Case, Unicode form, invisible characters, look-alike letters, leading zeros of each number and
    separators do not count, nor does the `.0` of a whole number. A separator between two digits
    and a sign at either end do: `1-1` is not `11`, `-1` not `1`, `HER2+` not `HER2-`.
    """
    text = "".join(
        str(unicodedata.decimal(character, character))
        for character in unicodedata.normalize("NFKC", name)
        if character.isspace() or not is_invisible(character)
    ).strip()
    text = unicodedata.normalize("NFKC", text.casefold()).translate(_LOOK_ALIKES)
    number = _WHOLE_NUMBER.fullmatch(text)
    text = number[1] if number else text
    text = re.sub(r"(?<=\w)[\s_.-]*-[\s_.-]*(?=\w)", " ", _DASHES.sub("-", text))
    text = re.sub(r"(?<=\d) (?=\d)", "-", _GAPS.sub(" ", text)).replace(" ", "")
    return _DIGITS.sub(lambda digits: digits[0].lstrip("0") or "0", text)


def spelling_twins(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Return groups of different names that are spellings of one, each in order of appearance.

    Parameters
    ----------
    names
        Names of patients or labels; a name may occur more than once, an empty one is none.
    """
    spellings: defaultdict[str, dict[str, None]] = defaultdict(dict)
    for name in dict.fromkeys(filter(None, names)):
        spellings[spelling_key(name)][name] = None
    return [tuple(group) for group in spellings.values() if len(group) > 1]


def spellings_text(names: Sequence[str]) -> str:
    """Return names in quotes; those that look alike show the characters that set them apart."""
    shown = [visible_text(name) for name in names]
    looks = {unicodedata.normalize("NFKC", name).translate(_LOOK_ALIKES).strip() for name in shown}
    if len(looks) < len(names):
        shown = [name.encode("unicode_escape").decode() for name in names]
    return ", ".join(f"'{name}'" for name in shown)


def twins_text(twins: Sequence[Sequence[str]]) -> str:
    """Return the first groups of `spelling_twins` as a message shows them, and how many more."""
    more = f"; and {len(twins) - _SHOWN} more" if len(twins) > _SHOWN else ""
    return "; ".join(map(spellings_text, twins[:_SHOWN])) + more
