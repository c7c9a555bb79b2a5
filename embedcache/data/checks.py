"""Checks of what a caller gives, by the classes of options that take it."""

from __future__ import annotations

import math
from typing import Any, get_args

from embedcache.errors import RunError


def check_choice(word: str, value: str, choices: Any) -> None:
    """Raise `RunError` unless a value is one of a Literal's; the message names them."""
    if value not in get_args(choices):
        raise RunError(f"no {word} '{value}'; it may be {', '.join(get_args(choices))}")


def check_at_least(word: str, value: int | None, least: int) -> None:
    """Raise `RunError` unless a whole number is at least so large; None is no number.

    One that no table can hold is refused too.
    """
    if value is not None and (isinstance(value, bool) or value < least):
        raise RunError(f"{word} is {value}; expected a whole number from {least}")
    if value is not None and value >= 2**63:
        raise RunError(f"{word} is {value}; expected a whole number below 2**63")


def check_above_0(word: str, value: float | None) -> None:
    """Raise `RunError` unless a number is above 0 and finite; None is no number."""
    if value is not None and not 0 < value < math.inf:
        raise RunError(f"{word} is {value}; expected a number above 0")
