"""Classes of Celery and billiard that are extended here.  They have no types; type checkers see `Untyped`."""
# ruff: noqa: D101, D102 - their own docstrings say what they are

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:

    class Untyped:
        """A class of which nobody knows the types."""

        def __init__(self, *args: Any, **kwargs: Any) -> None: ...
        def __getattr__(self, name: str) -> Any: ...

    class TaskPool(Untyped):
        def on_start(self) -> None: ...
        def on_stop(self) -> None: ...
        def on_terminate(self) -> None: ...

    class AsynPool(Untyped): ...

    class BlockingPool(Untyped):
        def join(self) -> None: ...
        def terminate(self) -> None: ...

    class AsynPoolWorker(Untyped): ...

    class BlockingPoolWorker(Untyped): ...

    class SimpleQueue(Untyped): ...

    class StartStopStep(Untyped): ...

else:
    from billiard.pool import Pool as BlockingPool
    from billiard.pool import Worker as BlockingPoolWorker
    from billiard.queues import SimpleQueue
    from celery.bootsteps import StartStopStep
    from celery.concurrency.asynpool import AsynPool
    from celery.concurrency.asynpool import Worker as AsynPoolWorker
    from celery.concurrency.prefork import TaskPool

__all__ = [
    "AsynPool",
    "AsynPoolWorker",
    "BlockingPool",
    "BlockingPoolWorker",
    "SimpleQueue",
    "StartStopStep",
    "TaskPool",
]
