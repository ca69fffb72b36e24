"""The pipe that all children of a `TFBlockingPool` share.

Private names used, because there is no public way: ``_rlock``, ``_wlock``,
``_reader`` and ``_writer`` of billiard's queue.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from billiard.queues import SimpleQueue


class CrashSafeQueue(SimpleQueue):  # type: ignore[misc]
    """A pipe that children share, which stays usable when one of them is killed while it holds a lock.

    An idle child always holds the reader's lock.  In billiard its death locks
    out all others, and the end of the worker, for ever.
    """

    def __init__(self, *, ctx: Any) -> None:
        super().__init__(ctx=ctx)
        self._share((ctx.Value("i", 0, lock=False), ctx.Value("i", 0, lock=False)))

    def _share(self, holders: tuple[Any, Any]) -> None:
        #: Of each lock: the process that holds it, or 0.
        self._holders = self._reading, self._writing = holders

    def __getstate__(self) -> Any:
        return super().__getstate__(), self._holders

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state[0])
        self._poll = self._reader.poll
        self._share(state[1])

    def get_payload(self) -> Any:
        with self._rlock, _held(self._reading):
            return self._reader.recv_bytes()

    def send_payload(self, value: Any) -> None:
        with self._wlock, _held(self._writing):
            self._writer.send_bytes(value)

    def discard(self) -> None:
        """Read away what is in the pipe, or comes within 0.1 s, whole or not; for when nobody is left to read it."""
        while self._reader.poll(0.1):
            os.read(self._reader.fileno(), 1 << 16)

    def release_of(self, pid: int) -> None:
        """Release what the process ``pid``, which is dead, held."""
        for holder, lock in zip(self._holders, (self._rlock, self._wlock), strict=True):
            if holder.value == pid:
                holder.value = 0
                lock.release()


@contextlib.contextmanager
def _held(holder: Any) -> Iterator[None]:
    holder.value = os.getpid()
    try:
        yield
    finally:
        holder.value = 0
