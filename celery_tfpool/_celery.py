"""Every private name of Celery, kombu and billiard that is used, each with the public way that is missing.

Seen in Celery 5.5 to 5.7 with billiard 4.2 to 4.3.  The mixins give public names
to what these classes call, or have, under private ones.  `gone` says which names
are not there any more.  Importing this module imports neither of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from operator import attrgetter
from typing import Any

from .processes import missing_names

#: Module → what of it is used.
NAMES = {
    "billiard.pool": "RUN mem_rss Pool._create_worker_process Pool._join_exited_workers Pool._setup_queues "
    "Pool._help_stuff_finish Worker._make_protected_receive",
    "billiard.queues": "SimpleQueue",
    "billiard.util": "get_pdeathsig",
    "celery._state": "_get_active_apps",
    "celery.bin.worker": "WORKERS_POOL worker",
    "celery.concurrency.asynpool": "AsynPool._event_process_exit",
    "celery.worker": "WorkController.Blueprint.default_steps",
}


def gone() -> list[str]:
    """Which names are not there any more, as ``module.name``."""
    return missing_names(NAMES)


# -- pools -------------------------------------------------------------------------


class PoolNames:
    """Of both of Celery's engines.

    Public way missing: billiard's pool has no hook around the start and the end of a child.
    """

    #: The children, in no order.
    processes: property = property(attrgetter("_pool"))

    def create_child(self, slot: int) -> Any:
        """Start a child; the original."""
        return super()._create_worker_process(slot)  # type: ignore[misc]

    def _create_worker_process(self, i: int) -> Any:
        return self.create_child(i)

    def join_ended(self, shutdown: bool) -> Any:
        """Take the children that have ended from `processes`; the original."""
        return super()._join_exited_workers(shutdown)  # type: ignore[misc]

    def _join_exited_workers(self, shutdown: bool = False) -> Any:
        return self.join_ended(shutdown)

    @property
    def is_running(self) -> bool:
        """Whether it is not closing, nor closed."""
        from billiard.pool import RUN

        return bool(self._state == RUN)  # type: ignore[attr-defined]

    @property
    def start_method(self) -> str:
        """By which children are started from now on."""
        return str(self._ctx.get_start_method())

    def spawn_from_now_on(self) -> None:
        """As Celery does for a pool that spawns from its start."""
        import billiard

        os.environ["FORKED_BY_MULTIPROCESSING"] = "1"
        billiard.set_start_method("spawn", force=True)
        self._ctx = billiard.get_context("spawn")
        self._Process = self._ctx.Process


class AsyncPoolNames(PoolNames):
    """Of the engine for brokers with an event loop.

    Public way missing: the end of a process is looked for once, and then every 5 s.
    """

    def on_process_exit(self, hub: Any, process: Any) -> None:
        """The files of ``process`` were closed; the original."""
        super()._event_process_exit(hub, process)  # type: ignore[misc]

    def _event_process_exit(self, hub: Any, proc: Any) -> None:
        self.on_process_exit(hub, proc)


class BlockingPoolNames(PoolNames):
    """Of the engine for all other brokers.

    Public way missing: its pipes are made inside, and a child that dies holding one's lock locks out all others.
    """

    def set_up_queues(self) -> None:
        """Make the pipes; the original."""
        super()._setup_queues()  # type: ignore[misc]

    def _setup_queues(self) -> None:
        self.set_up_queues()

    def replace_queues(self, make: Callable[[Any], PipeNames]) -> None:
        """Put those that ``make(context)`` gives in place of the original ones."""
        # The methods that the original made read these attributes when they are called.
        for name in ("_inqueue", "_outqueue"):
            getattr(self, name).close()
            setattr(self, name, make(self._ctx))
        self._quick_put = self.tasks.writer.send
        self._quick_get = self.results.reader.recv

    #: The pipes to children and from them, and the thread that writes tasks.
    tasks: property = property(attrgetter("_inqueue"))
    results: property = property(attrgetter("_outqueue"))
    task_handler: property = property(attrgetter("_task_handler"))

    @staticmethod
    def finish_tasks(inqueue: Any, task_handler: Any, pool: Any) -> None:
        """Empty the pipe for a thread that is stuck writing to it; the original."""
        from billiard.pool import Pool

        Pool._help_stuff_finish(inqueue, task_handler, pool)

    @classmethod
    def _help_stuff_finish(cls, inqueue: Any, task_handler: Any, pool: Any) -> None:
        cls.finish_tasks(inqueue, task_handler, pool)


class PipeNames:
    """Of billiard's pipe with a lock at either end.

    Public way missing: nobody else can give back the lock of a process that has died.
    """

    #: Its ends.
    reader: property = property(attrgetter("_reader"))
    writer: property = property(attrgetter("_writer"))

    def set_locks(self, reader: Any, writer: Any) -> None:
        """Have these in place of its own locks."""
        self._rlock, self._wlock = reader, writer

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state)  # type: ignore[misc]
        self._poll = self.reader.poll


def has_started(process: Any) -> bool:
    """Whether a child is more than planned.

    Public way missing: ``process.pid`` raises where it is not.
    """
    return process._popen is not None


def is_alive(process: Any) -> bool:
    """Whether a child lives, in words that any thread may ask.

    Public way missing: ``process.is_alive()`` insists on being asked by the process that started it.
    """
    return bool(process._is_alive())


def is_wanted_end(process: Any) -> bool:
    """Whether the pool itself has told a child to end.

    Public way missing: an exit code does not tell.
    """
    return bool(getattr(process, "_controlled_termination", False))


def engine_of(pool: Any) -> Any:
    """The engine of Celery's pool; None before it is started.

    Public way missing: ``TaskPool`` passes on a few of its methods only.
    """
    return pool._pool


# -- children ----------------------------------------------------------------------


class ChildNames:
    """Of the program that a child runs.

    Public way missing: nothing is asked before the next task is taken.
    """

    def before_task(self) -> None:
        """Called before the next task is waited for; may raise SystemExit."""

    def _make_protected_receive(self, conn: Any) -> Any:
        receive = super()._make_protected_receive(conn)  # type: ignore[misc]

        def receive_after(*args: Any, **kwargs: Any) -> Any:
            self.before_task()
            return receive(*args, **kwargs)

        return receive_after


def judge_memory_by(kibibytes: Callable[[], int]) -> None:
    """Let ``max-memory-per-child`` look at what this returns.

    Public way missing: it is the peak of the resident size, shared pages and all.
    """
    import billiard.pool

    billiard.pool.mem_rss = kibibytes


def bring_cffi() -> None:
    """Import here, once, what each child would import to ask the kernel to be killed when its parent ends.

    Public way missing: billiard imports it when it is needed; this, its harmless twin, needs the same.
    """
    from billiard.util import get_pdeathsig

    get_pdeathsig()


def known_apps() -> Iterator[Any]:
    """All Celery apps of this process.

    Public way missing: ``current_app`` of a thread that has none is another one.
    """
    from celery import _state

    yield from _state._get_active_apps()


# -- the command and the worker ----------------------------------------------------


def worker_command() -> tuple[Any, Any]:
    """The command ``celery worker``, and the type of its option ``--pool``.

    Public way missing: an option without ``app.user_options``, which are the user's, and a pool that has no setting.
    """
    from celery.bin.worker import WORKERS_POOL, worker

    return worker, WORKERS_POOL
