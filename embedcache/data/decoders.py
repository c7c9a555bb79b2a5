"""What foreign decoders say, in one line: their warnings, thread by thread, and their errors."""

from __future__ import annotations

import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, cast

_DECODERS: Final = r"(PIL|pydicom|embedcache\.data)(\.|$)"
_LONGEST: Final = 400  # characters of a reason
# pydicom cites what it warns of, which may be the name of a patient.
_CITED: Final = re.compile(r"(Invalid value for VR \w\w).*", re.DOTALL)
# Of a decoder that stumbled over the bytes, not of one that says what is wrong with them.
_PYTHON_WORDS: Final = re.compile(
    r"NoneType|operand|\bobject\b|attribute|subscriptable|argument|out of (range|bounds)|unpack"
    r"|broadcast|reshape|invalid literal|codec can't|iterable|not supported between|sequence item"
    r"|could not convert|\bbuffer\b|dtype"
)

_lock = threading.Lock()
_heard: dict[int, list[str]] = {}  # warnings by the thread whose decoder warns
_show = warnings.showwarning  # what shows the warnings of all other threads


@contextmanager
def decoder_warnings() -> Iterator[list[str]]:
    """Collect the warnings of Pillow, pydicom and this room in this thread, one line each.

    `warnings.catch_warnings` is of the whole process: threads that decode side by side would undo
    each other's, and take each other's warnings.
    """
    thread = threading.get_ident()
    messages: list[str] = []
    with _lock:
        _listen()
        _heard[thread] = messages
    try:
        yield messages
    finally:
        with _lock:
            del _heard[thread]
            if not _heard:
                _stop_listening()


def _listen() -> None:
    """Have `_hear` called, again where another thread has left a `catch_warnings` meanwhile."""
    global _show
    warnings.filterwarnings("always", module=_DECODERS)
    if warnings.showwarning is not _hear:
        _show, warnings.showwarning = warnings.showwarning, _hear


def _stop_listening() -> None:
    ours = ("always", None, Warning, re.compile(_DECODERS), 0)
    with suppress(ValueError):
        list.remove(cast("list[object]", warnings.filters), ours)
    if warnings.showwarning is _hear:
        warnings.showwarning = _show


def _hear(message: Warning | str, *place: Any, **more: Any) -> None:
    messages = _heard.get(threading.get_ident())
    if messages is None:
        _show(message, *place, **more)
    elif (text := one_line(_CITED.sub(r"\1", str(message)))) not in messages:
        messages.append(text)


def one_line(text: str) -> str:
    """Return a text without line breaks and control characters, cut to a readable length."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}..."


def why_undecodable(error: Exception) -> str:
    """Return what a decoder's error says of a file, or that it makes no sense to the decoder."""
    if isinstance(error, MemoryError):
        return "there is not enough memory for it"
    text = one_line(str(error))
    if not text or isinstance(error, KeyError | RecursionError) or _PYTHON_WORDS.search(text):
        return f"damaged, or of a kind that its decoder does not know ({type(error).__name__})"
    return text
