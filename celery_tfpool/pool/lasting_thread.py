"""A thread that lives as long as the pool, to start children from.

Celery's children ask the kernel to be killed when their parent ends
(``PR_SET_PDEATHSIG``), and to the kernel the parent is the *thread* that
forked.  Without an event loop that is the supervisor's or the autoscaler's,
which end at a warm shutdown before running tasks are awaited.

Not a ``ThreadPoolExecutor``: in a child the thread that forked is the main
thread, and the end of a grandchild would try to join it.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any


class LastingThread:
    """Runs calls of other threads one after the other, until it is stopped.  Does not keep the process alive."""

    def __init__(self, name: str) -> None:
        self._calls: queue.SimpleQueue[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]] | None]
        self._calls = queue.SimpleQueue()
        self._lock, self._is_stopped = threading.Lock(), False
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Return what ``function`` returns there, or raise what it raises.

        Raises:
            RuntimeError: the thread was stopped.
        """
        future: Future[Any] = Future()
        with self._lock:
            if self._is_stopped:
                raise RuntimeError("this thread was stopped and calls nothing any more")
            self._calls.put((future, function, args))
        return future.result()

    def stop(self) -> None:
        """End the thread after the calls that wait."""
        with self._lock:
            self._is_stopped = True
            self._calls.put(None)

    def _run(self) -> None:
        while call := self._calls.get():
            future, function, args = call
            try:
                future.set_result(function(*args))
            except BaseException as exc:  # the caller's to handle, in its own thread
                future.set_exception(exc)
