"""The program that a pool child runs: billiard's, prepared before the user's code and loaded after it."""

from __future__ import annotations

import faulthandler
import functools
import logging
import os
import sys
from dataclasses import replace
from typing import Any

import billiard.compat
from celery.platforms import EX_FAILURE
from celery.utils.log import get_logger

from .. import processes
from .._celery import ChildNames, judge_memory_by
from ..errors import ModelLoadError
from . import child
from .bases import AsynPoolWorker, BlockingPoolWorker
from .child_rules import Status
from .plan import Plan

logger: logging.Logger = get_logger(__name__)

#: Sent by a child to worker main: (pid, status).  Beside billiard's ACK … DEATH and Celery's WORKER_UP.
CHILD_STATUS = 87


class Worker(ChildNames):
    """Mixin of both engines' Worker, the program that a child runs."""

    plan: Plan = Plan()

    def __reduce__(self) -> Any:
        reduced: Any = super().__reduce__()
        return functools.partial(_rebuild, reduced[0], self.plan), reduced[1]

    def after_fork(self) -> None:
        """Prepare before any of the user's code; end when the models could not be had after it.

        Celery logs what a handler of ``worker_process_init`` raises, and goes on; so what became of ours is looked at.
        """
        _show_where_aborted()
        child.prepare(self.plan)
        child.follow_init(self._report)
        if self.max_memory_per_child:  # type: ignore[attr-defined]
            judge_memory_by(private_memory)
        super().after_fork()  # type: ignore[misc]
        _show_where_aborted()  # billiard has set signal handlers of its own
        if self.initializer is None:  # type: ignore[attr-defined]  # a pool without Celery, whose initializer sends it
            child.on_process_init()
        try:
            child.check_init()
        except Exception as exc:
            is_ours = isinstance(exc, ModelLoadError)
            reason = exc if is_ours else f"{type(exc).__name__}: {exc}"
            logger.error("child %d: %s", os.getpid(), reason, exc_info=not is_ours)
            raise SystemExit(EX_FAILURE) from None

    def on_loop_start(self, pid: int) -> None:
        """Say that this child is ready, to us and then to Celery."""
        self._report(replace(child.status(), ready=True))
        super().on_loop_start(pid)  # type: ignore[misc]

    def _report(self, status: Status) -> None:
        self.outq.put((CHILD_STATUS, (os.getpid(), status)))  # type: ignore[attr-defined]

    def before_task(self) -> None:
        """End a child that a load was interrupted in."""
        if child.must_retire():
            raise SystemExit(0)


def _show_where_aborted() -> None:
    """Worker main ends a stuck child with SIGABRT: let that print the child's stack, stuck in native code or not."""
    if sys.__stderr__ is not None:
        faulthandler.disable()
        faulthandler.enable(sys.__stderr__)


def _rebuild(cls: type[Worker], plan: Plan, *args: Any) -> Worker:
    worker = cls(*args)
    worker.plan = plan
    return worker


def private_memory() -> int:
    """KiB that this process alone has written: what its end would give back."""
    written = processes.written_here()
    return int(billiard.compat.mem_rss()) if written is None else written // 1024


class AsyncWorker(Worker, AsynPoolWorker):
    """A child on an event loop's pipes."""


class BlockingWorker(Worker, BlockingPoolWorker):
    """A child on shared pipes."""
