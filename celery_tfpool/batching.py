"""Decide which requests share a batch, and when the batch must go.

Nothing here knows about processes, sockets or TensorFlow, and nothing waits:
the caller says what time it is.  That keeps every rule testable in
microseconds, and leaves the waiting to the event loop of `predictor`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Part(Generic[T]):
    """Rows ``start`` to ``stop`` of a request, in a batch."""

    request: T
    start: int
    stop: int

    @property
    def rows(self) -> int:
        return self.stop - self.start


@dataclass
class _Waiting(Generic[T]):
    request: T
    rows: int
    since: float
    weight: float
    #: Rows that earlier batches have taken.
    start: int = 0

    @property
    def left(self) -> int:
        return self.rows - self.start


@dataclass
class _Queue(Generic[T]):
    """Requests that may share a batch, in the order in which they came."""

    max_size: int
    parallel: int
    waiting: deque[_Waiting[T]] = field(default_factory=deque)
    rows: int = 0


@dataclass
class Batcher(Generic[T]):
    """First-in, first-out queues of requests, one for each key, that say when a batch must leave.

    Requests with equal keys may share a batch.  A batch is due when the rows
    of a key fill one, or when the oldest request of that key has waited
    ``max_wait`` seconds, or when all ``callers`` wait, of whom each has one
    request at a time, so that nobody is left to come; whichever is first.  Of
    several keys that are due the one whose oldest request came first goes
    first, so nobody starves.

    While batches are computed another one leaves only if it is that key's turn,
    if it is full, and if fewer are computed than may be of that key.
    """

    max_wait: float
    callers: float = math.inf
    _queues: dict[Hashable, _Queue[T]] = field(default_factory=dict)

    def add(
        self,
        request: T,
        *,
        rows: int,
        key: Hashable,
        max_size: int,
        now: float,
        parallel: int = 1,
        weight: float | None = None,
    ) -> None:
        """Let ``request`` wait for a batch of at most ``max_size`` rows; the size that a key came with first counts.

        ``parallel`` is how many batches of the key may be computed at a time; ``weight`` is how many batches the
        request counts for in `batches`, by default the part of a batch that it fills.
        """
        queue = self._queues.setdefault(key, _Queue(max_size, parallel))
        queue.waiting.append(_Waiting(request, rows, now, rows / max_size if weight is None else weight))
        queue.rows += rows

    def delay(self, now: float) -> float | None:
        """Seconds until a batch is due; None when nothing waits."""
        return min((self._delay(queue, now) for queue in self._queues.values()), default=None)

    def is_due(self, now: float, running: int = 0) -> bool:
        """Whether a batch may leave while ``running`` are being computed."""
        return self._next(now, running) is not None

    def take(self, now: float, running: int = 0) -> list[Part[T]]:
        """The next batch if one is due: whole requests in their order, or a part of one that is larger than a batch."""
        key = self._next(now, running)
        if key is None:
            return []
        parts: list[Part[T]] = []
        queue = self._queues[key]
        room = queue.max_size
        while queue.waiting and (queue.waiting[0].left <= room or not parts):
            first = queue.waiting[0]
            part = Part(first.request, first.start, first.start + min(first.left, room))
            parts.append(part)
            room -= part.rows
            queue.rows -= part.rows
            first.start = part.stop
            if not first.left:
                queue.waiting.popleft()
        self._forget_if_empty(key)
        return parts

    def remove(self, request: T) -> None:
        """Forget what still waits of ``request``."""
        for key, queue in list(self._queues.items()):
            for waiting in [waiting for waiting in queue.waiting if waiting.request is request]:
                queue.waiting.remove(waiting)
                queue.rows -= waiting.left
            self._forget_if_empty(key)

    @property
    def batches(self) -> float:
        """How many full batches' worth of requests wait."""
        waiting = (waiting for queue in self._queues.values() for waiting in queue.waiting)
        return sum(one.weight * one.left / max(1, one.rows) for one in waiting)

    @property
    def requests(self) -> int:
        return sum(len(queue.waiting) for queue in self._queues.values())

    @property
    def rows(self) -> int:
        return sum(queue.rows for queue in self._queues.values())

    def _next(self, now: float, running: int) -> Hashable | None:
        """The key whose turn it is, if its batch may leave."""
        due = [(queue.waiting[0].since, key) for key, queue in self._queues.items() if self._delay(queue, now) <= 0]
        if not due:
            return None
        key = min(due, key=lambda item: item[0])[1]
        queue = self._queues[key]
        return key if not running or (running < queue.parallel and queue.rows >= queue.max_size) else None

    def _delay(self, queue: _Queue[T], now: float) -> float:
        if queue.rows >= queue.max_size or self.requests >= self.callers:
            return 0.0
        return max(0.0, queue.waiting[0].since + self.max_wait - now)

    def _forget_if_empty(self, key: Hashable) -> None:
        if not self._queues[key].waiting:
            del self._queues[key]
