"""The pool for brokers with an event loop (Redis, AMQP): Celery's own, watched.

Private names used, because there is no public way: ``_event_process_exit`` of
Celery's pool.
"""

from __future__ import annotations

from typing import Any

import billiard.pool
from celery.concurrency import asynpool

from .child_main import AsyncWorker
from .watched import Watched


class TFAsynPool(Watched, asynpool.AsynPool):  # type: ignore[misc]
    """The engine for brokers with an event loop."""

    child_class = AsyncWorker

    def _event_process_exit(self, hub: Any, proc: Any, looks: int = 100) -> None:
        # A process closes its files an instant before it can be waited for.  The original looks once, and the next
        # look is that of a timer of 5 s.
        super()._event_process_exit(hub, proc)
        if proc in self._pool and looks and self._state == billiard.pool.RUN:
            hub.call_later(0.02, self._event_process_exit, hub, proc, looks - 1)
