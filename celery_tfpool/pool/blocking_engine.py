"""The pool for brokers without an event loop (filesystem, memory): billiard's own, watched, and safe from crashes.

Its children share two pipes, whose locks the kernel gives back when a child dies
that holds one, and are started from one thread that lasts as long as the pool:
Celery's children ask the kernel to be killed when their parent ends
(``PR_SET_PDEATHSIG``), and to the kernel the parent is the *thread* that
forked.  Otherwise that is the supervisor's or the autoscaler's, which end at a
warm shutdown before running tasks are awaited.
"""

from __future__ import annotations

import fcntl
import os
import queue
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import IO, Any

from billiard import reduction

from .._celery import BlockingPoolNames, PipeNames, is_alive
from ..processes import GRACE
from .bases import BlockingPool, SimpleQueue
from .child_main import BlockingWorker, Worker
from .watched import Watched


class TFBlockingPool(Watched, BlockingPoolNames, BlockingPool):
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
        """Pipes whose locks do not outlast who holds them."""
        super().set_up_queues()
        self.replace_queues(lambda context: CrashSafeQueue(ctx=context))

    @staticmethod
    def finish_tasks(inqueue: Any, task_handler: Any, pool: Any) -> None:
        """The original, if need be."""
        # The original takes the reader's lock, which an idle child holds, to
        # empty the pipe for a task handler that is stuck writing to it.
        task_handler.join(GRACE)
        if task_handler.is_alive():
            BlockingPoolNames.finish_tasks(inqueue, task_handler, pool)


class CrashSafeQueue(PipeNames, SimpleQueue):
    """A pipe that children share, which stays usable however one of them ends while it holds a lock.

    An idle child always holds the reader's lock.  In billiard its death locks
    out all others, and the end of the worker, for ever.
    """

    def __init__(self, *, ctx: Any) -> None:
        super().__init__(ctx=ctx)
        self.set_locks(ProcessLock(), ProcessLock())

    def discard(self) -> None:
        """Read away what is in the pipe, or comes within 0.1 s, whole or not; for when nobody is left to read it."""
        while self.reader.poll(0.1):
            os.read(self.reader.fileno(), 1 << 16)


class ProcessLock:
    """A lock among this process and its children, which the kernel gives back when the process that has it ends.

    A semaphore stays taken: by SIGKILL, and by the exception of a signal's handler between the instant when the
    semaphore is taken and the ``with`` that would release it.  Threads of one process do not exclude each other.
    """

    def __init__(self) -> None:
        self._file: IO[bytes] = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  # as long as the lock

    def __getstate__(self) -> Any:
        return reduction.DupFd(self._file.fileno())

    def __setstate__(self, file: Any) -> None:
        self._file = open(file.detach(), "r+b", buffering=0)  # noqa: SIM115

    def acquire(self, block: bool = True) -> bool:
        """Take it; or return False if another process has it and ``block`` is False."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | (0 if block else fcntl.LOCK_NB))
        except BlockingIOError:
            return False
        return True

    def release(self) -> None:
        """Give it back."""
        fcntl.lockf(self._file, fcntl.LOCK_UN)

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


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
