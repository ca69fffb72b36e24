"""TFPrefork: Celery's prefork pool with time to load, a fork guard, and an end to crash loops.

`TFPrefork` is Celery's own ``TaskPool`` on the two engines of `engines`.

Importing this module is how the pool is chosen, so it adds `bootstep.Models`
to Celery's worker blueprint, where it does nothing for other pools.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Sequence
from typing import Any

import celery
from celery.concurrency.prefork import TaskPool
from celery.exceptions import WorkerShutdown
from celery.platforms import EX_FAILURE
from celery.utils.log import get_logger
from celery.worker import WorkController

from . import control as control  # registers `celery inspect tfpool`, in workers that no command line started, too
from . import fork_guard, memory, pack_cache
from .child import Plan
from .engines import TFAsynPool, TFBlockingPool
from .errors import ForkGuardError
from .packer import Packing

logger = get_logger(__name__)

WorkController.Blueprint.default_steps.add("celery_tfpool.bootstep:Models")


class TFPrefork(TaskPool):  # type: ignore[misc]
    """Celery's prefork pool, in which TensorFlow and Keras work.

    Choose it with ``celery -A proj worker --pool=celery_tfpool:TFPrefork``.
    """

    Pool = TFAsynPool
    BlockingPool = TFBlockingPool

    #: What `bootstep.Models` decided; a pool without a worker has the defaults.
    plan = Plan()
    #: What became of each model, as `bootstep.Models` found out.
    packings: Sequence[Packing] = ()
    forking_enable: bool

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._held: list[int] = []

    def on_start(self) -> None:
        try:
            self.guard_fork()
        except ForkGuardError as exc:
            logger.critical("%s", exc)
            raise WorkerShutdown(EX_FAILURE) from exc
        self.options["plan"] = self.plan
        # What is there now stays for all children: the collector would write to the pages of each object it looks
        # at, and so copy them, in each child.
        gc.collect()
        gc.freeze()
        super().on_start()

    def on_stop(self) -> None:
        super().on_stop()
        self._let_go()

    def on_terminate(self) -> None:
        super().on_terminate()
        self._let_go()

    def hold(self, folder: str) -> bool:
        """Keep the pack in ``folder`` from being removed until the pool stops; whether it is there."""
        descriptor = pack_cache.hold(folder)
        if descriptor is not None:
            self._held.append(descriptor)
        return descriptor is not None

    def _let_go(self) -> None:
        """Undo what was done to this process: a worker that is embedded in a program ends before it."""
        gc.unfreeze()
        while self._held:
            os.close(self._held.pop())

    def guard_fork(self) -> None:
        """Decide between fork and spawn for the children that are to be started.

        Raises:
            ForkGuardError: TensorFlow is initialised here, and spawn is not
                possible or not wanted.
        """
        if not self.forking_enable:
            return
        method = fork_guard.start_method(
            self.plan.settings.fork_guard,
            can_spawn=fork_guard.can_spawn(),
            why_not=f"Celery {celery.__version__} cannot spawn children instead (5.7 and newer can)",
        )
        self.forking_enable = method == "fork"

    @property
    def start_method(self) -> str:
        return "fork" if self.forking_enable else "spawn"

    def children(self) -> list[dict[str, Any]]:
        """Of each child: slot, pid, whether it is ready, its models and its memory in bytes; JSON-friendly."""
        known = getattr(self._pool, "children", {})
        return [
            {
                "slot": state.slot,
                "pid": pid,
                "ready": state.ready,
                "loading": state.loading,
                "models": state.models,
                "memory": memory.of_process(pid),
            }
            for pid, state in sorted(known.items(), key=lambda item: item[1].slot)
            if state.slot >= 0  # the last words of a child that has ended have none
        ]
