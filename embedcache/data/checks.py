"""Checks of what a caller gives, by the classes of options that take it."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any, get_args

from embedcache.errors import RunError


def check_choice(word: str, value: str, choices: Any) -> None:
    """Raise `RunError` unless a value is one of a Literal's; the message names them."""
    if value not in get_args(choices):
        raise RunError(f"no {word} '{value}'; it may be {', '.join(get_args(choices))}")


def check_at_least(word: str, value: Any, least: int) -> None:
    """Raise `RunError` unless a whole number is at least so large; None is no number.

    One that no table can hold is refused too.
    """
    is_whole = isinstance(value, Integral) and not isinstance(value, bool)
    if value is not None and not (is_whole and value >= least):
        raise RunError(f"{word} is {value!r}; expected a whole number from {least}")
    if value is not None and value >= 2**63:
        raise RunError(f"{word} is {value}; expected a whole number below 2**63")


def check_above_0(word: str, value: Any) -> None:
    """Raise `RunError` unless a number is above 0 and finite; None is no number."""
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if value is not None and not (is_number and 0 < value < math.inf):
        raise RunError(f"{word} is {value!r}; expected a number above 0")
