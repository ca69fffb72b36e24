"""Worker main's eye on each child, for both of Celery's engines.

Worker main knows of each child whether it became ready and since when it loads,
kills one that is stuck, asks the fork guard before each fork, and ends a crash
loop.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from typing import Any

from billiard.common import human_status
from celery.platforms import EX_FAILURE
from celery.utils.log import get_logger
from celery.worker import state as worker_state

from .._celery import PoolNames, has_started, is_wanted_end
from ..errors import ForkGuardError
from ..processes import GRACE, MAX_FAILED_STARTS, CrashLoop
from . import fork_guard
from .child_main import CHILD_STATUS, Worker
from .child_rules import ChildState, Status
from .plan import Plan

logger: logging.Logger = get_logger(__name__)


class Watched(PoolNames):
    """Mixin of both engines: follows each child, replaces a stuck one, ends a crash loop."""

    child_class: type[Worker]

    def __init__(self, *args: Any, plan: Plan, **kwargs: Any) -> None:
        self.plan = plan
        self.children: dict[int, ChildState] = {}
        self._crash_loop = CrashLoop(MAX_FAILED_STARTS)
        self._stopping = False
        #: Since when the pool is seen to be closing.
        self._closing_since: float | None = None
        #: Whether a child is being started that may speak before it is noted in `children`.
        self._starting = False
        # Celery's own deadline for a replacement has nothing to say; ours is first.
        kwargs["proc_alive_timeout"] = plan.startup_timeout + 4 * GRACE
        super().__init__(*args, **kwargs)

    def Worker(self, *args: Any, **kwargs: Any) -> Worker:
        """A child's program, which knows the plan."""
        worker = self.child_class(*args, **kwargs)
        worker.plan = self.plan
        return worker

    def create_result_handler(self, **kwargs: Any) -> Any:
        """The original, which also hears what children say of themselves, and ends those that hang in their start."""
        handler = super().create_result_handler(**kwargs)  # type: ignore[misc]
        handler.state_handlers[CHILD_STATUS] = self._on_child_status
        stop = handler.stop

        def stop_and_end_unready(timeout: float | None = None) -> None:
            stop(timeout)
            self._end_unready()

        handler.stop = stop_and_end_unready  # join() calls it when all results are in, and before it awaits children
        return handler

    def _end_unready(self) -> None:
        """Kill the children that do not end by themselves because they hang in their start; they have no task."""
        deadline = time.monotonic() + GRACE
        for process in list(self.processes):
            state = self.children.get(process.pid)
            if not has_started(process) or (state and state.ready):
                continue
            process.join(max(0.0, deadline - time.monotonic()))
            if process.exitcode is None:
                self._kill_unready(process.pid, state)
                process.join()
            self._on_child_end(state, process)

    def _kill_unready(self, pid: int, state: ChildState | None) -> None:
        if state is None or state.killed_at is None:
            logger.warning("child %d is not ready and the worker stops: killing it", pid)
        if state is not None:
            state.killed_at = time.monotonic()
        _signal(pid, signal.SIGKILL)

    def _on_child_status(self, pid: int, status: Status) -> None:
        # A child may speak before the thread that started it goes on to note its slot; asked first, because that
        # thread first notes the child and then says that it has.
        starting, now = self._starting, time.monotonic()
        if pid not in self.children and not starting:
            return  # the last words of a child that is gone
        self.children.setdefault(pid, ChildState(slot=-1, started=now)).update(status, now)
        if status.ready:
            self._crash_loop.ended(ready=True)

    def create_child(self, slot: int) -> Any:
        """Start a child if it may be, and follow it."""
        if not self._may_start():
            return None
        self._starting = True
        try:
            process = super().create_child(slot)
            self.children.setdefault(process.pid, ChildState(slot=slot, started=time.monotonic())).slot = slot
        finally:
            self._starting = False
        for pid in [pid for pid, state in list(self.children.items()) if state.slot < 0]:
            self.children.pop(pid, None)  # these were last words, too
        return process

    def _may_start(self) -> bool:
        """Whether a child may be started now, by the method in use or, if need be, by spawn."""
        if self._stopping:
            return False
        if self.start_method != "fork":
            return True
        try:
            method = fork_guard.start_method(
                self.plan.settings.fork_guard,
                can_spawn=fork_guard.can_spawn(),
                why_not="No replacement child can be started",
            )
        except ForkGuardError as exc:
            self._stop_worker(str(exc))
            return False
        if method == "spawn":
            self.spawn_from_now_on()
        return True

    def join_ended(self, shutdown: bool) -> Any:
        """The original; before, end who is overdue, and afterwards note who has ended."""
        self._kill_overdue()
        before = {process.pid: process for process in self.processes}
        try:
            return super().join_ended(shutdown)
        finally:
            for process in self.processes:
                before.pop(process.pid, None)
            for pid, process in before.items():
                self._on_child_end(self.children.pop(pid, None), process)

    def did_start_ok(self) -> bool:
        """True: a child that failed to start is replaced, or ends the worker with a reason, as later ones are."""
        self.join_ended(shutdown=False)
        return True

    def _on_child_end(self, state: ChildState | None, process: Any) -> None:
        if state is None or not self.is_running:
            return
        if is_wanted_end(process) or not self._crash_loop.ended(state.ready):
            return
        self._stop_worker(
            f"{self._crash_loop.failed} children in a row ended before they were ready; the last one (slot "
            f"{state.slot}, pid {process.pid}) {human_status(process.exitcode)} after "
            f"{time.monotonic() - state.started:.1f} s. The reason stands above. "
            "A model that needs longer to load needs a larger tf_startup_timeout"
        )

    def _kill_overdue(self) -> None:
        now, timeout = time.monotonic(), self.plan.startup_timeout
        if not self.is_running and self._closing_since is None:
            self._closing_since = now
        for process in list(self.processes):
            state = self.children.get(process.pid)
            if state and state.unwanted(now, self._closing_since):
                self._kill_unready(process.pid, state)
                continue
            reason = state.overdue(now, timeout) if state else None
            if not state or not reason:
                continue
            if state.killed_at is None:
                message = "child %d (slot %d): %s; tf_startup_timeout is %g s. Killing it; see stderr for where it was"
                logger.error(message, process.pid, state.slot, reason, timeout)
                state.killed_at = now
                _signal(process.pid, signal.SIGABRT)  # at which faulthandler shows where it was
            elif now - state.killed_at > GRACE:
                _signal(process.pid, signal.SIGKILL)

    def _stop_worker(self, reason: str) -> None:
        if not self._stopping:
            self._stopping = True
            logger.critical("worker stops: %s", reason)
            worker_state.should_stop = EX_FAILURE


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
