"""Text from outside as a terminal may be shown it: nothing in it moves, hides or breaks a line."""

from __future__ import annotations

import os
import unicodedata
from typing import Final

# Characters without a glyph that Unicode counts among letters and marks.
_FILLERS: Final = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0")
_HIDDEN: Final = {"Cc", "Cf", "Cs", "Cn", "Co", "Zl", "Zp"}


def is_invisible(character: str) -> bool:
    """Return whether a character shows nothing, or steers how others are shown.

    Control and format characters, line separators, overrides of the writing direction, variation
    selectors, fillers, and halves of surrogate pairs, as which bytes that are not UTF-8 come in.
    """
    return (
        unicodedata.category(character) in _HIDDEN
        or character in _FILLERS
        or "\ufe00" <= character <= "\ufe0f"
        or "\U000e0100" <= character <= "\U000e01ef"
    )


def has_invisible(text: str) -> bool:
    """Return whether a text has a character that shows nothing."""
    # The first two tests answer for nearly every text, in a tenth of the time.
    return not (text.isascii() and text.isprintable()) and any(map(is_invisible, text))


def is_blank(text: str) -> bool:
    """Return whether a text shows nothing at all."""
    return not text or (has_invisible(text) and all(map(is_invisible, text)))


def is_unicode(text: str) -> bool:
    """Return whether a text can be UTF-8: bytes that are not come in as halves of surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def as_unicode(text: str) -> str | None:
    """Return a text of the command line, whose bytes may be UTF-8 where the locale is not.

    None where they are not.
    """
    try:
        return text if is_unicode(text) else os.fsencode(text).decode()
    except UnicodeError:
        return None


def visible_text(text: str) -> str:
    r"""Return a text with each invisible character as its escape: `\n`, `\x1b`, `\u200b`."""
    if not has_invisible(text):
        return text
    return "".join(
        character.encode("unicode_escape").decode() if is_invisible(character) else character
        for character in text
    )
