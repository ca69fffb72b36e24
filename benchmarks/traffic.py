"""Send tasks and time them, from one process with Celery's own client on Redis."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from celery import Celery
from programs import Failed

#: Seconds without any result until a contestant is given up.
PATIENCE = 300.0


@dataclass
class Window:
    """What was seen while some tasks ran."""

    tasks: int
    seconds: float
    #: Of each task, from before it was sent until its result was here; seconds.
    latencies: list[float]

    @property
    def rate(self) -> float:
        return self.tasks / self.seconds


@dataclass
class Client:
    """Tasks in flight on one queue, and what to do when one is back."""

    app: Celery
    check: Callable[[], None]
    waiting: set[Any] = field(default_factory=set)
    #: How many results have come; and why the first failed task failed.
    arrived: int = 0
    failure: str | None = None

    def send(self, queue: str, task: str, args: Any, then: Callable[[Any, float], None]) -> None:
        """Send one task; ``then(value, latency)`` is called by `drain` when it is back."""
        sent = time.perf_counter()

        def back(result: Any) -> None:
            latency = time.perf_counter() - sent
            self.waiting.discard(result)
            self.arrived += 1
            if result.successful():
                then(result.result, latency)
            else:  # raised by `drain`: what a callback raises may vanish
                self.failure = self.failure or f"{type(result.result).__name__}: {str(result.result)[:300]}"

        result = self.app.send_task(task, args=args, queue=queue)
        self.waiting.add(result)
        result.then(back)

    def drain(self) -> None:
        """Wait for one message from the result back end, and check the contestant while there is none."""
        deadline, before = time.monotonic() + PATIENCE, self.arrived
        while self.waiting and self.arrived == before:
            self.app.backend.result_consumer.drain_events(timeout=1)
            if self.arrived == before:
                self.check()
            if time.monotonic() > deadline:
                raise Failed(f"no result within {PATIENCE:g} s")
        if self.failure:
            raise Failed(f"a task failed: {self.failure}")

    def gather(self, queue: str, task: str, several: list[Any]) -> list[Any]:
        """Send all, wait for all; their values, in the order in which they came."""
        values: list[Any] = []
        for args in several:
            self.send(queue, task, args, lambda value, _: values.append(value))
        while self.waiting:
            self.drain()
        return values

    def closed_loop(self, queue: str, task: str, tasks: Iterator[Any], *, in_flight: int, seconds: float) -> Window:
        """Keep ``in_flight`` tasks on their way; the first ``in_flight`` results fill the pipe and do not count.

        Lasts until ``seconds`` have passed and as many results have counted as are in flight.
        """
        came: list[tuple[float, float]] = []
        going = True

        def back(_: Any, latency: float) -> None:
            came.append((time.perf_counter(), latency))
            if going:
                self.send(queue, task, next(tasks), back)

        for _ in range(in_flight):
            self.send(queue, task, next(tasks), back)
        while len(came) < 2 * in_flight or came[-1][0] < came[in_flight - 1][0] + seconds:
            self.drain()
        going = False
        counted = came[in_flight:]
        window = Window(len(counted), counted[-1][0] - came[in_flight - 1][0], [latency for _, latency in counted])
        while self.waiting:
            self.drain()
        return window

    def burst(self, queue: str, task: str, tasks: Iterator[Any], *, count: int) -> Window:
        """Send ``count`` tasks as fast as possible; the time is from the first one sent to the last one back."""
        latencies: list[float] = []
        started = time.perf_counter()
        for _ in range(count):
            self.send(queue, task, next(tasks), lambda _, latency: latencies.append(latency))
        while self.waiting:
            self.drain()
        return Window(count, time.perf_counter() - started, latencies)
