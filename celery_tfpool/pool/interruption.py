"""End what takes too long in the middle of a task, and keep the task's own alarm."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from billiard.pool import SIG_SOFT_TIMEOUT


@contextlib.contextmanager
def interruptible(seconds: float, too_long: Exception, on_interruption: Callable[[], None]) -> Iterator[None]:
    """Let ``seconds`` (with ``too_long``) and the task's soft time limit end the block.

    TensorFlow's import, as many a library, catches here and there whatever
    is raised in its middle and goes on.  So an interruption is raised again
    every second, and once more at the end of the block.

    Interrupts Python code only, and only in the main thread.  A load stuck in
    native code is ended by worker main, which kills the child.

    An alarm of the task's own rings when it would have, during the load or after it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    interruption: list[Exception] = []
    deadline = time.monotonic() + seconds
    left, interval = signal.setitimer(signal.ITIMER_REAL, 0)
    rings_at = time.monotonic() + left if left else math.inf

    def arm() -> None:
        signal.setitimer(signal.ITIMER_REAL, max(1e-6, min(rings_at, deadline) - time.monotonic()))

    def on_alarm(number: int, frame: Any) -> None:
        nonlocal rings_at
        now = time.monotonic()
        if interruption:
            raise interruption[0]
        if now >= deadline:
            interrupt(too_long)
        must_ring = now >= rings_at
        if must_ring:
            rings_at = rings_at + interval if interval else math.inf
        arm()
        if must_ring:
            ring(number, frame)

    def ring(number: int, frame: Any) -> None:
        if callable(alarm):
            try:
                alarm(number, frame)
            except Exception as error:
                interrupt(error)
        elif alarm is not signal.SIG_IGN:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGALRM)

    def interrupt(error: Exception) -> None:
        on_interruption()
        interruption.append(error)
        signal.setitimer(signal.ITIMER_REAL, 1, 1)
        raise interruption[0]

    def on_soft_time_limit(*arguments: Any) -> None:
        try:
            soft_time_limit(*arguments)  # type: ignore[operator,misc]
        except Exception as error:
            interrupt(error)

    soft_time_limit = signal.getsignal(SIG_SOFT_TIMEOUT)
    if callable(soft_time_limit):
        signal.signal(SIG_SOFT_TIMEOUT, on_soft_time_limit)
    alarm = signal.signal(signal.SIGALRM, on_alarm)
    arm()
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL if alarm is None else alarm)
        if rings_at < math.inf:
            signal.setitimer(signal.ITIMER_REAL, max(1e-6, rings_at - time.monotonic()), interval)
        if callable(soft_time_limit):
            signal.signal(SIG_SOFT_TIMEOUT, soft_time_limit)
        if interruption:
            raise interruption[0]
