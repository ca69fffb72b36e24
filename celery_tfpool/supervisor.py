"""Start, await, restart and stop predictors; worker main's side of them.

Each predictor has a listening socket that is made here and outlives it: a
request that comes while a predictor is being replaced waits in the socket's
queue.  One thread waits for predictors to become ready, to end, and for
children that ask how one ended.

Knows nothing of Celery: what stops the worker, and how a process may be
started now, is given.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import json
import logging
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from . import load_board, predictor
from .config import ModelPath
from .errors import TFPoolError
from .load_board import LoadBoard
from .predictor import Job
from .predictor_client import Predictors, ask_statistics, coroner_path, socket_path
from .watching import GRACE, MAX_FAILED_STARTS, CrashLoop

logger = logging.getLogger(__name__)

_PREFIX = "celery_tfpool-"
#: Connections that may wait to be accepted, while a predictor is being replaced.
_BACKLOG = 1024
#: Seconds between two looks at whether the worker should stop, and until a predictor must answer for its statistics.
_TICK, _STATS_TIMEOUT = 0.2, 1.0


class CannotStart(TFPoolError):
    """Predictors could not be started.

    Args: the reason.
    """

    template = "no predictor could be started: {0}"


def assign(models: Sequence[ModelPath], count: int) -> list[tuple[ModelPath, ...]]:
    """Which models each of ``count`` predictors has: all, or those with the fewest models where a number is given."""
    has: list[list[ModelPath]] = [[] for _ in range(count)]
    for model in models:
        wanted = count if model.predictors is None else min(count, model.predictors)
        for one in sorted(has, key=len)[:wanted]:
            one.append(model)
    return [tuple(one) for one in has]


@dataclass
class _Predictor:
    """What is known of one predictor; times are of ``time.monotonic``."""

    index: int
    models: tuple[ModelPath, ...]
    listener: socket.socket
    crash_loop: CrashLoop = field(default_factory=lambda: CrashLoop(MAX_FAILED_STARTS))
    process: Any = None
    link: Connection | None = None
    started: float = 0.0
    aborted_at: float | None = None
    facts: dict[str, Any] | None = None
    restarts: int = -1
    #: How the processes of this predictor ended, by pid; and the last of all.
    ends: dict[int, str] = field(default_factory=dict)
    last_end: str = ""
    #: Why the last start failed, in the process's own words.
    failure: str = ""


class Supervisor:
    """The predictors of one worker.

    Args:
        job: makes the job of a predictor of its index, models, and the folder of sockets.
        context: the multiprocessing context for the next process; may raise, which stops the worker.
        fork_lock: held while a process is started, so that no two forks inherit each other's pipes.
        give_up: called once with the reason when predictors cannot be kept alive.
        startup_timeout: seconds until a predictor must be ready.
    """

    def __init__(
        self,
        models: Sequence[tuple[ModelPath, ...]],
        *,
        job: Callable[[int, tuple[ModelPath, ...], str], Job],
        context: Callable[[], Any],
        fork_lock: threading.Lock,
        give_up: Callable[[str], None],
        startup_timeout: float,
    ) -> None:
        self._job, self._context, self._fork_lock, self._give_up = job, context, fork_lock, give_up
        self._timeout = startup_timeout
        self._models = models
        self._predictors: list[_Predictor] = []
        self._asking: list[tuple[socket.socket, int, int | None]] = []
        self._thread: threading.Thread | None = None
        self._gave_up = ""
        self._stopping = False

    # -- from worker main ------------------------------------------------------

    def start(self, tick: Callable[[], None]) -> dict[str, tuple[tuple[int, ...], dict[str, Any]]]:
        """Start all, and wait until they are ready; by model, which have it and what they say of it.

        Args:
            tick: called all the while; whatever it raises ends the wait.

        Raises:
            CannotStart: one failed several times in a row.
        """
        # A predictor ignores the SIGTERM that multiprocessing sends at the end of this process.
        atexit.register(self.stop)
        self.folder = _make_folder()
        self._lock = _locked(self.folder)
        load_board.make(self.folder, len(self._models))
        self._board = LoadBoard(self.folder)
        self._coroner = _listening(coroner_path(self.folder))
        self._wake_receiver, self._wake_sender = os.pipe()
        try:
            for index, models in enumerate(self._models):
                self._predictors.append(_Predictor(index, models, _listening(socket_path(self.folder, index))))
            for one in self._predictors:
                self._start(one)
            while not all(one.facts for one in self._predictors):
                tick()
                self._look(_TICK)
                if self._gave_up:
                    raise CannotStart(self._gave_up)
        except BaseException:
            self.stop()
            raise
        self._thread = threading.Thread(target=self._watch, name="supervisor of predictors", daemon=True)
        self._thread.start()
        return self._served()

    def stop(self) -> None:
        """End all predictors, which nobody needs any more, and remove what is on disk."""
        atexit.unregister(self.stop)
        if self._stopping:
            return
        self._stopping = True
        if self._thread is not None:
            with contextlib.suppress(OSError):  # somebody has removed the folder
                self._log_statistics()
            os.write(self._wake_sender, b".")
            self._thread.join()
        for one in self._predictors:
            if one.process is not None:
                one.process.kill()
                one.process.join()
            one.listener.close()
        with contextlib.suppress(OSError):
            self._coroner.close()
        os.close(self._wake_receiver)
        os.close(self._wake_sender)
        shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._lock)

    def client(self, response_timeout: float, max_request_bytes: int) -> Predictors:
        """What children need to know."""
        return Predictors(self.folder, self._served(), response_timeout, max_request_bytes)

    def facts(self) -> list[dict[str, Any]]:
        """Of each predictor: pid, models, restarts, and its own statistics; JSON-friendly."""
        return [
            {
                "index": one.index,
                "pid": one.process.pid,
                "ready": one.facts is not None,
                "models": one.facts or {model.name: {} for model in one.models},
                "restarts": one.restarts,
                "last_end": one.last_end,
                "stats": ask_statistics(self.folder, one.index, _STATS_TIMEOUT) if one.facts else None,
            }
            for one in self._predictors
        ]

    def _served(self) -> dict[str, tuple[tuple[int, ...], dict[str, Any]]]:
        found: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {}
        for one in self._predictors:
            for name, facts in (one.facts or {}).items():
                indices, _ = found.get(name, ((), None))
                found[name] = (*indices, one.index), facts
        return found

    def _log_statistics(self) -> None:
        for one in self.facts():
            stats = one["stats"]
            if not stats or not stats["execution_count"]:
                continue
            requests = max(1, stats["request_success"] + stats["request_failure"])
            logger.info(
                "predictor %d (pid %d): %d requests, %d of them failed; %d rows in %d batches (%.1f rows a batch); "
                "a request waited %.1f ms, a batch took %.1f ms; %d restarts",
                one["index"],
                one["pid"],
                requests,
                stats["request_failure"],
                stats["inference_count"],
                stats["execution_count"],
                stats["inference_count"] / stats["execution_count"],
                1e3 * stats["queue_duration"] / requests,
                1e3 * stats["compute_duration"] / stats["execution_count"],
                one["restarts"],
            )

    # -- the life of a predictor -------------------------------------------------

    def _start(self, one: _Predictor) -> None:
        context = self._context()
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(
            target=predictor.main,
            args=(self._job(one.index, one.models, self.folder), one.listener, sender),
            name=f"Predictor-{one.index}",
            daemon=True,
        )
        with self._fork_lock:
            process.start()
        sender.close()
        one.process, one.link, one.started = process, receiver, time.monotonic()
        one.facts, one.aborted_at, one.failure = None, None, ""
        one.restarts += 1

    def _watch(self) -> None:
        while not self._stopping and not self._gave_up:
            self._look(None)
        if self._gave_up:
            self._refuse_all()

    def _look(self, timeout: float | None) -> None:
        """Wait for something to happen, and see to it."""
        sources: dict[Any, Callable[[], None]] = {self._wake_receiver: lambda: None}
        sources[self._coroner_socket()] = self._hear
        for one in self._predictors:
            sources[one.process.sentinel] = lambda one=one: self._ended(one)  # type: ignore[misc]
            if one.link is not None:
                sources[one.link] = lambda one=one: self._read(one)  # type: ignore[misc]
        links = {one.link for one in self._predictors}
        ready: list[Any] = wait(list(sources), self._next_deadline(timeout))
        for source in sorted(ready, key=lambda source: source not in links):  # last words before the end
            sources[source]()
        for one in self._predictors:
            self._end_if_overdue(one)
        self._answer_who_ask()

    def _coroner_socket(self) -> Any:
        return self._coroner

    def _next_deadline(self, timeout: float | None) -> float | None:
        now = time.monotonic()
        delays = [max(0.0, _deadline(one, self._timeout) - now) for one in self._predictors if one.facts is None]
        return min(delays if timeout is None else [*delays, timeout], default=None)

    def _read(self, one: _Predictor) -> None:
        assert one.link is not None
        try:
            said = json.loads(one.link.recv_bytes())
        except (EOFError, OSError):
            one.link.close()
            one.link = None
            return
        if "failed" in said:
            one.failure = said["failed"]
            logger.error("predictor %d (pid %d): %s", one.index, one.process.pid, one.failure)
        else:
            one.facts = said["ready"]
            one.crash_loop.ended(ready=True)
            logger.info(
                "predictor %d (pid %d): ready after %.1f s", one.index, one.process.pid, time.monotonic() - one.started
            )

    def _ended(self, one: _Predictor) -> None:
        one.process.join()
        if one.link is not None:
            self._read(one)
        was_ready = one.facts is not None
        one.last_end = f"predictor {one.index} (pid {one.process.pid}) {_ending(one.process.exitcode)}"
        one.ends[one.process.pid] = one.last_end
        one.facts = None
        self._board.write(one.index, load_board.NOT_READY)
        if self._stopping:
            return
        logger.error("%s after %.1f s", one.last_end, time.monotonic() - one.started)
        if one.crash_loop.ended(was_ready):
            reason = one.failure or "see above for what it said"
            self._stop_worker(
                f"predictor {one.index} ended {one.crash_loop.failed} times in a row before it was ready; "
                f"the last one {_ending(one.process.exitcode)}: {reason}"
            )
            return
        try:
            self._start(one)
        except TFPoolError as exc:  # what the fork guard says
            self._stop_worker(str(exc))

    def _stop_worker(self, reason: str) -> None:
        self._gave_up = reason
        if self._thread is not None:
            logger.critical("worker stops: %s", reason)
            self._give_up(reason)

    def _end_if_overdue(self, one: _Predictor) -> None:
        now = time.monotonic()
        if one.facts is not None or now < _deadline(one, self._timeout):
            return
        if one.aborted_at is None:
            logger.error(
                "predictor %d (pid %d): not ready after %.0f s; tf_startup_timeout is %g s. Killing it; "
                "see stderr for where it was",
                one.index,
                one.process.pid,
                now - one.started,
                self._timeout,
            )
            one.aborted_at = now
            _signal(one.process.pid, signal.SIGABRT)
        else:
            _signal(one.process.pid, signal.SIGKILL)

    # -- who ask how a predictor ended ---------------------------------------------

    def _hear(self) -> None:
        with contextlib.suppress(OSError, EOFError, ValueError):
            connection, _ = self._coroner.accept()
            index, pid = json.loads(connection.recv(1000))
            self._asking.append((connection, index, pid))

    def _answer_who_ask(self) -> None:
        waiting = []
        for connection, index, pid in self._asking:
            one = self._predictors[index]
            end = one.ends.get(pid, "") if pid else one.last_end
            if self._gave_up or end:
                with contextlib.suppress(OSError), connection:
                    connection.sendall((self._gave_up or end).encode() + b"\n")
            else:
                waiting.append((connection, index, pid))
        self._asking = waiting

    def _refuse_all(self) -> None:
        """Let no child wait for a predictor that will not come."""
        self._answer_who_ask()
        for one in self._predictors:
            one.listener.setblocking(False)
            with contextlib.suppress(OSError):
                while True:
                    one.listener.accept()[0].close()
            with contextlib.suppress(OSError):
                one.listener.shutdown(socket.SHUT_RDWR)
        while not self._stopping:
            for source in wait([self._wake_receiver, self._coroner_socket()]):
                if source is not self._wake_receiver:
                    self._hear()
            self._answer_who_ask()


def _deadline(one: _Predictor, timeout: float) -> float:
    return one.started + timeout if one.aborted_at is None else one.aborted_at + GRACE


def _ending(exitcode: int) -> str:
    return f"was ended by {signal.Signals(-exitcode).name}" if exitcode < 0 else f"ended with exit code {exitcode}"


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


# -- the folder of sockets -----------------------------------------------------------


def _make_folder() -> str:
    """A new folder that only its owner can enter; removes those of workers that were killed."""
    parent = os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
    if len(parent) > 60 or not os.access(parent, os.W_OK):  # a socket's path ends at 107 characters
        parent = "/tmp"
    for folder in Path(parent).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            if folder.stat().st_uid == os.getuid() and _is_abandoned(folder):
                shutil.rmtree(folder, ignore_errors=True)
    return tempfile.mkdtemp(prefix=_PREFIX, dir=parent)


def _locked(folder: str) -> int:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    return descriptor


def _is_abandoned(folder: Path) -> bool:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    # Its maker may be about to lock it.
    return time.time() - folder.stat().st_mtime > 60


def _listening(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    listener.listen(_BACKLOG)
    return listener
