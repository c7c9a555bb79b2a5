"""The process of a command: its streams, its signals, and its end in bounded time."""

from __future__ import annotations

import atexit
import io
import logging
import os
import signal
import sys
import threading
from types import FrameType
from typing import Final, NoReturn

from embedcache.visible import visible_text

# What was encoded is flushed within that time; a thread that waits for a dead drive is not.
_FAREWELL_S: Final = 10.0
_arrived: list[int] = []


class Terminated(BaseException):
    """SIGTERM arrived; raised in the main thread so that a pass can put away what it has."""


class _QuietHandler(logging.StreamHandler[io.TextIOWrapper]):
    """Prints what the library has to say while it works, as long as somebody can read it."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a line with names from outside escaped."""
        return visible_text(super().format(record))

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's own name
        """Pass over a line that cannot be printed."""


def prepare() -> None:
    """Make streams, signals and the log those of a command."""
    _open_streams()
    logging.getLogger("embedcache").addHandler(_QuietHandler())
    logging.getLogger("embedcache").setLevel(logging.INFO)
    if not os.environ.get("EMBEDCACHE_DEBUG"):
        threading.excepthook = _on_thread_error
    signal.signal(signal.SIGTERM, _on_signal)
    # Where Ctrl-C is ignored, as in a job in the background, it stays so.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _on_signal)


def _open_streams() -> None:
    """Open to nowhere what the caller has closed, or the first files opened would be in its place.

    What a library prints would then be written into a file of the store.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", encoding="utf-8"))  # noqa: SIM115, PTH123 - they stay open
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that is not of its encoding is escaped
            stream.reconfigure(errors="backslashreplace")


def _on_thread_error(arguments: threading.ExceptHookArgs) -> None:
    """Say in a line what has ended a library's own thread, such as TensorBoard's on a full disk."""
    reason = " ".join(f"{arguments.exc_type.__name__}: {arguments.exc_value}".split())
    logging.getLogger("embedcache").warning("a thread has ended early: %s", reason)


def _on_signal(number: int, frame: FrameType | None) -> NoReturn:
    """End the command in order, and at a second signal, or after a while, at once."""
    del frame
    _arrived.append(number)
    signal.signal(number, signal.SIG_DFL)
    ending = threading.Timer(_FAREWELL_S, os._exit, [128 + number])
    ending.daemon = True
    ending.start()
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt


def arrived_signal() -> int | None:
    """Return the number of the signal that is to end the command; None where there was none.

    A library may have turned the exception of a signal into one of its own.
    """
    return _arrived[0] if _arrived else None


def end(code: int) -> NoReturn:
    """End the process: a signal that arrives from now on ends it without a word."""
    for number in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(number) is _on_signal:
            signal.signal(number, signal.SIG_DFL)
    # At the end zarr waits a little for its thread, and fails where the machine is too busy for it.
    if zarr_threads := sys.modules.get("zarr.core.sync"):
        atexit.unregister(zarr_threads.cleanup_resources)
    sys.exit(code)
