"""The pool for brokers without an event loop (filesystem, memory): billiard's own, watched, and safe from crashes.

Its children share two pipes, whose locks are given back here when a child dies
that holds one, and are started from one thread that lasts as long as the pool:
Celery's children ask the kernel to be killed when their parent ends
(``PR_SET_PDEATHSIG``), and to the kernel the parent is the *thread* that
forked.  Otherwise that is the supervisor's or the autoscaler's, which end at a
warm shutdown before running tasks are awaited.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import billiard.pool
from billiard.queues import SimpleQueue

from .._celery import BlockingPoolNames, PipeNames, is_alive
from ..processes import GRACE
from . import fork_guard
from .child_main import BlockingWorker, Worker
from .child_rules import ChildState
from .watched import Watched

#: Seconds in which a process that has a lock has noted that.
_MOMENT = 0.01


class TFBlockingPool(Watched, BlockingPoolNames, billiard.pool.Pool):  # type: ignore[misc]
    """The engine for all other brokers."""

    child_class: type[Worker] = BlockingWorker

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._starter = LastingThread("child-starter")
        super().__init__(*args, **kwargs)

    def create_child(self, slot: int) -> Any:
        """From the thread that lasts as long as the pool."""
        if threading.current_thread() is threading.main_thread():
            return super().create_child(slot)
        return self._starter.call(super().create_child, slot)

    def join(self) -> None:
        """Await tasks and children, whatever has become of those."""
        while self.task_handler.is_alive():  # perhaps it writes a task larger than the pipe
            self.task_handler.join(1.0)
            self._kill_overdue()
            if not any(is_alive(process) for process in self.processes):
                self.tasks.discard()
        super().join()
        self._starter.stop()

    def terminate(self) -> None:
        """End children at once."""
        super().terminate()
        self._starter.stop()

    def set_up_queues(self) -> None:
        """Pipes whose locks can be given back."""
        super().set_up_queues()
        self.replace_queues(lambda context: CrashSafeQueue(ctx=context))

    def _can_change_to_spawn(self) -> bool:
        # The locks of the shared pipes were made for fork, and children have them.
        return fork_guard.can_spawn() and not self.processes

    def _on_child_end(self, state: ChildState | None, process: Any) -> None:
        for pipe in (self.tasks, self.results):
            pipe.release_of(process.pid)
        super()._on_child_end(state, process)

    @staticmethod
    def finish_tasks(inqueue: Any, task_handler: Any, pool: Any) -> None:
        """The original, which takes the reader's lock, given back first by whoever has died with it."""
        # The original takes the reader's lock, which an idle child holds, to
        # empty the pipe for a task handler that is stuck writing to it.
        task_handler.join(GRACE)
        if task_handler.is_alive():
            for process in pool:
                if not is_alive(process):
                    inqueue.release_of(process.pid)
            BlockingPoolNames.finish_tasks(inqueue, task_handler, pool)


class CrashSafeQueue(PipeNames, SimpleQueue):  # type: ignore[misc]
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
        self._share(state[1])

    def get_payload(self) -> Any:
        """Bytes of the next message; waits for it."""
        with self.locks[0], _held(self._reading):
            return self.reader.recv_bytes()

    def send_payload(self, value: Any) -> None:
        """Send one message of bytes; waits while the pipe is full."""
        with self.locks[1], _held(self._writing):
            self.writer.send_bytes(value)

    def discard(self) -> None:
        """Read away what is in the pipe, or comes within 0.1 s, whole or not; for when nobody is left to read it."""
        while self.reader.poll(0.1):
            os.read(self.reader.fileno(), 1 << 16)

    def release_of(self, pid: int) -> None:
        """Release what the process ``pid``, which is dead, held."""
        for holder, lock in zip(self._holders, self.locks, strict=True):
            if holder.value != pid:
                continue
            # It may be free all the same: worker main ends a child by a signal as soon as it has read its last word,
            # and that may come before the child has erased the note.
            if lock.acquire(False):
                holder.value = 0
                lock.release()
                continue
            time.sleep(_MOMENT)  # whoever has it by now may be about to say so
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
