"""The pool for brokers without an event loop (filesystem, memory): billiard's own, watched, and safe from crashes.

Its children share two pipes, whose locks are given back here when a child dies
that holds one, and are started from one thread that lasts as long as the pool:
Celery's children ask the kernel to be killed when their parent ends
(``PR_SET_PDEATHSIG``), and to the kernel the parent is the *thread* that
forked.  Otherwise that is the supervisor's or the autoscaler's, which end at a
warm shutdown before running tasks are awaited.

Private names used, because there is no public way: ``_create_worker_process``,
``_setup_queues`` and ``_help_stuff_finish`` of billiard's pool, ``_rlock``,
``_wlock``, ``_reader`` and ``_writer`` of its queue.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import billiard.pool
from billiard.queues import SimpleQueue

from ..processes import GRACE
from . import fork_guard
from .child_main import BlockingWorker
from .child_rules import ChildState
from .watched import Watched


class TFBlockingPool(Watched, billiard.pool.Pool):  # type: ignore[misc]
    """The engine for all other brokers."""

    child_class = BlockingWorker

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._starter = LastingThread("child-starter")
        super().__init__(*args, **kwargs)

    def _create_worker_process(self, i: int) -> Any:
        if threading.current_thread() is threading.main_thread():
            return super()._create_worker_process(i)
        return self._starter.call(super()._create_worker_process, i)

    def join(self) -> None:
        while self._task_handler.is_alive():  # perhaps it writes a task larger than the pipe
            self._task_handler.join(1.0)
            self._kill_overdue()
            if not any(process._is_alive() for process in self._pool):
                self._inqueue.discard()
        super().join()
        self._starter.stop()

    def terminate(self) -> None:
        super().terminate()
        self._starter.stop()

    def _setup_queues(self) -> None:
        super()._setup_queues()
        # The methods that super() made read these attributes when they are called.
        for name in ("_inqueue", "_outqueue"):
            getattr(self, name).close()
            setattr(self, name, CrashSafeQueue(ctx=self._ctx))
        self._quick_put = self._inqueue._writer.send
        self._quick_get = self._outqueue._reader.recv

    def _can_change_to_spawn(self) -> bool:
        # The locks of the shared pipes were made for fork, and children have them.
        return fork_guard.can_spawn() and not self._pool

    def _on_child_end(self, state: ChildState | None, process: Any) -> None:
        for pipe in (self._inqueue, self._outqueue):
            pipe.release_of(process.pid)
        super()._on_child_end(state, process)

    @staticmethod
    def _help_stuff_finish(inqueue: Any, task_handler: Any, pool: Any) -> None:
        # The original takes the reader's lock, which an idle child holds, to
        # empty the pipe for a task handler that is stuck writing to it.
        task_handler.join(GRACE)
        if task_handler.is_alive():
            for process in pool:
                if not process._is_alive():
                    inqueue.release_of(process.pid)
            billiard.pool.Pool._help_stuff_finish(inqueue, task_handler, pool)


class CrashSafeQueue(SimpleQueue):  # type: ignore[misc]
    """A pipe that children share, which stays usable when one of them is killed while it holds a lock.

    An idle child always holds the reader's lock.  In billiard its death locks
    out all others, and the end of the worker, for ever.
    """

    def __init__(self, *, ctx: Any) -> None:
        super().__init__(ctx=ctx)
        self._share((ctx.Value("i", 0, lock=False), ctx.Value("i", 0, lock=False)))

    def _share(self, holders: tuple[Any, Any]) -> None:
        #: Of each lock: the process that holds it, or 0.
        self._holders = self._reading, self._writing = holders

    def __getstate__(self) -> Any:
        return super().__getstate__(), self._holders

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state[0])
        self._poll = self._reader.poll
        self._share(state[1])

    def get_payload(self) -> Any:
        with self._rlock, _held(self._reading):
            return self._reader.recv_bytes()

    def send_payload(self, value: Any) -> None:
        with self._wlock, _held(self._writing):
            self._writer.send_bytes(value)

    def discard(self) -> None:
        """Read away what is in the pipe, or comes within 0.1 s, whole or not; for when nobody is left to read it."""
        while self._reader.poll(0.1):
            os.read(self._reader.fileno(), 1 << 16)

    def release_of(self, pid: int) -> None:
        """Release what the process ``pid``, which is dead, held."""
        for holder, lock in zip(self._holders, (self._rlock, self._wlock), strict=True):
            if holder.value == pid:
                holder.value = 0
                lock.release()


@contextlib.contextmanager
def _held(holder: Any) -> Iterator[None]:
    holder.value = os.getpid()
    try:
        yield
    finally:
        holder.value = 0


class LastingThread:
    """Runs calls of other threads one after the other, until it is stopped.  Does not keep the process alive.

    Not a ``ThreadPoolExecutor``: in a child the thread that forked is the main thread, and the end of a grandchild
    would try to join it.
    """

    def __init__(self, name: str) -> None:
        self._calls: queue.SimpleQueue[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]] | None]
        self._calls = queue.SimpleQueue()
        self._lock, self._is_stopped = threading.Lock(), False
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Return what ``function`` returns there, or raise what it raises.

        Raises:
            RuntimeError: the thread was stopped.
        """
        future: Future[Any] = Future()
        with self._lock:
            if self._is_stopped:
                raise RuntimeError("this thread was stopped and calls nothing any more")
            self._calls.put((future, function, args))
        return future.result()

    def stop(self) -> None:
        """End the thread after the calls that wait."""
        with self._lock:
            self._is_stopped = True
            self._calls.put(None)

    def _run(self) -> None:
        while call := self._calls.get():
            future, function, args = call
            try:
                future.set_result(function(*args))
            except BaseException as exc:  # the caller's to handle, in its own thread
                future.set_exception(exc)
