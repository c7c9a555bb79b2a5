"""Threads that read files: one that a dead disk holds up holds up neither Ctrl-C nor the exit."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Final, Self, TypeVar

_T = TypeVar("_T")
_R = TypeVar("_R")
_Task = tuple[Future[Any], Callable[..., Any], tuple[Any, ...]]
_LAST_S: Final = 1.0  # what tasks under way are given after an error before they are left alone


class ReadingThreads:
    """A pool of threads, like `ThreadPoolExecutor`, that the interpreter does not wait for.

    Leaving its `with` block waits for all tasks; where an exception leaves it, for a second.

    Parameters
    ----------
    n_threads
        Number of threads, at least 1.
    initializer
        Function that each thread calls first.
    """

    def __init__(self, n_threads: int, initializer: Callable[[], object] = lambda: None) -> None:
        self._tasks: SimpleQueue[_Task | None] = SimpleQueue()
        self._is_over = False
        self._threads = [
            threading.Thread(target=self._work, args=(initializer,), name="read", daemon=True)
            for _ in range(n_threads)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        self._is_over = kind is not None
        for _thread in self._threads:
            self._tasks.put(None)
        until = time.monotonic() + _LAST_S
        for thread in self._threads:
            thread.join(None if kind is None else max(0.0, until - time.monotonic()))

    def submit(self, function: Callable[..., _R], *arguments: Any) -> Future[_R]:
        """Return the future result of a call, made by one of the threads."""
        future: Future[_R] = Future()
        self._tasks.put((future, function, arguments))
        return future

    def map(self, function: Callable[[_T], _R], items: Iterable[_T]) -> Iterator[_R]:
        """Return the results of a call for each item, in order; all calls are put in at once."""
        futures = [self.submit(function, item) for item in items]
        return (future.result() for future in futures)

    def _work(self, initializer: Callable[[], object]) -> None:
        initializer()
        while (task := self._tasks.get()) is not None and not self._is_over:
            future, function, arguments = task
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(function(*arguments))
            except BaseException as error:  # whoever waits for the result raises it
                future.set_exception(error)
