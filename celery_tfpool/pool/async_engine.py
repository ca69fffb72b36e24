"""The pool for brokers with an event loop (Redis, AMQP): Celery's own, watched."""

from __future__ import annotations

from typing import Any

from .._celery import AsyncPoolNames
from .bases import AsynPool
from .child_main import AsyncWorker, Worker
from .watched import Watched


class TFAsynPool(Watched, AsyncPoolNames, AsynPool):
    """The engine for brokers with an event loop."""

    child_class: type[Worker] = AsyncWorker

    def on_process_exit(self, hub: Any, process: Any, looks: int = 100) -> None:
        """The original, and again until the process can be waited for."""
        # A process closes its files an instant before it can be waited for.  The original looks once, and the next
        # look is that of a timer of 5 s.
        super().on_process_exit(hub, process)
        if process in self.processes and looks and self.is_running:
            hub.call_later(0.02, self.on_process_exit, hub, process, looks - 1)
