"""Decide which requests share a batch, and when the batch must go.

Nothing here knows about processes, sockets or TensorFlow, and nothing waits:
the caller says what time it is.  That keeps every rule testable in
microseconds, and leaves the waiting to the event loop of `predictor`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
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
        """How many there are."""
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
    """Requests that may share a batch: those that fit into one in the order in which they came, and larger ones."""

    max_size: int
    parallel: int
    small: deque[_Waiting[T]] = field(default_factory=deque)
    #: The first is the one whose turn it is.
    large: deque[_Waiting[T]] = field(default_factory=deque)
    rows: int = 0
    #: Whether the next batch is for a large one, because the last was not.
    is_turn_of_large: bool = False
    #: When a batch was taken last.
    served: float = -math.inf

    @property
    def since(self) -> float:
        """Since when the oldest request waits."""
        return min(waiting.since for waiting in (*islice(self.small, 1), *self.large))

    @property
    def waiting(self) -> Iterator[_Waiting[T]]:
        return chain(self.small, self.large)

    def add(self, waiting: _Waiting[T]) -> None:
        (self.small if waiting.rows <= self.max_size else self.large).append(waiting)
        self.rows += waiting.rows

    def take(self, now: float) -> list[Part[T]]:
        """The next batch: small ones in their order, what is left of it for a part of a large one; or all for that."""
        self.served = now
        parts: list[Part[T]] = []
        room = self.max_size
        if not (self.large and self.is_turn_of_large):
            while self.small and self.small[0].left <= room:
                parts.append(self._part_of(self.small.popleft(), room))
                room -= parts[-1].rows
        self.is_turn_of_large = room == 0 or not self.large
        if self.large and room:
            waiting = self.large.popleft()
            parts.append(self._part_of(waiting, room))
            if waiting.left:
                self.large.append(waiting)
        return parts

    def _part_of(self, waiting: _Waiting[T], room: int) -> Part[T]:
        part = Part(waiting.request, waiting.start, waiting.start + min(waiting.left, room))
        waiting.start = part.stop
        self.rows -= part.rows
        return part

    def remove(self, request: T) -> None:
        for some in (self.small, self.large):
            for waiting in [waiting for waiting in some if waiting.request is request]:
                some.remove(waiting)
                self.rows -= waiting.left


@dataclass
class Batcher(Generic[T]):
    """Queues of requests, one for each key, that say when a batch must leave.

    Requests with equal keys may share a batch.  A batch is due when the rows
    of a key fill one, or when the oldest request of that key has waited
    ``max_wait`` seconds, or when all ``callers`` wait, of whom each has one
    request at a time, so that nobody is left to come; whichever is first.  Of
    several keys that are due the one goes first that has waited longest, since
    its oldest request came or since its last batch was taken, so nobody starves.

    A request that is larger than a batch takes turns with all others: of its
    own key by every second batch at most, while others wait, and of other keys
    as if the rest of it had just come.

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
        request counts for in `batches`, by default the part of a batch that it fills; never more than one, since the
        rest of it takes turns with others.
        """
        queue = self._queues.setdefault(key, _Queue(max_size, parallel))
        queue.add(_Waiting(request, rows, now, min(1.0, rows / max_size if weight is None else weight)))

    def delay(self, now: float) -> float | None:
        """Seconds until a batch is due; None when nothing waits."""
        return min((self._delay(queue, now) for queue in self._queues.values()), default=None)

    def is_due(self, now: float, running: int = 0) -> bool:
        """Whether a batch may leave while ``running`` are being computed."""
        return self._next(now, running) is not None

    def take(self, now: float, running: int = 0) -> list[Part[T]]:
        """The next batch if one is due: whole requests in their order, and a part of one larger than a batch."""
        key = self._next(now, running)
        if key is None:
            return []
        parts = self._queues[key].take(now)
        self._forget_if_empty(key)
        return parts

    def remove(self, request: T) -> None:
        """Forget what still waits of ``request``."""
        for key, queue in list(self._queues.items()):
            queue.remove(request)
            self._forget_if_empty(key)

    @property
    def batches(self) -> float:
        """How many full batches' worth of requests wait."""
        return sum(one.weight * one.left / max(1, one.rows) for queue in self._queues.values() for one in queue.waiting)

    @property
    def requests(self) -> int:
        """How many wait."""
        return sum(len(queue.small) + len(queue.large) for queue in self._queues.values())

    @property
    def rows(self) -> int:
        """How many there are."""
        return sum(queue.rows for queue in self._queues.values())

    def _next(self, now: float, running: int) -> Hashable | None:
        """The key whose turn it is, if its batch may leave."""
        due = [(max(q.since, q.served), q.served, key) for key, q in self._queues.items() if self._delay(q, now) <= 0]
        if not due:
            return None
        key = min(due, key=lambda item: item[:2])[2]
        queue = self._queues[key]
        return key if not running or (running < queue.parallel and queue.rows >= queue.max_size) else None

    def _delay(self, queue: _Queue[T], now: float) -> float:
        if queue.rows >= queue.max_size or self.requests >= self.callers:
            return 0.0
        return max(0.0, queue.since + self.max_wait - now)

    def _forget_if_empty(self, key: Hashable) -> None:
        if not (self._queues[key].small or self._queues[key].large):
            del self._queues[key]
