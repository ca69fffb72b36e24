"""Start, await, restart and stop predictors; worker main's side of them.

One asyncio program in a thread of its own: a coroutine for each predictor, which
starts it, awaits that it is ready and that it ends, and starts it again; and a
server that tells children how one ended.  Nothing that a peer says or does not
say makes it wait, and when it cannot go on the worker stops with the reason.

Each predictor has a listening socket that is made here and outlives it: a
request that comes while a predictor is being replaced waits in the socket's
queue.  Predictors are forked by a forkserver of `multiprocessing`, so that they
inherit nothing of worker main.

Knows nothing of Celery: what stops the worker is given.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import json
import logging
import multiprocessing
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from .. import processes
from ..errors import TFPoolError
from ..processes import GRACE, MAX_FAILED_STARTS, CrashLoop
from ..runners.convert import short
from ..settings import ModelPath
from . import busyness, folder, server
from .busyness import LoadBoard
from .client import Predictors, ask_statistics, coroner_path, socket_path
from .scheduler import Statistics
from .server import Job

logger = logging.getLogger(__name__)

#: Seconds between two looks at whether the worker should stop, and until a predictor must answer for its statistics.
_TICK, _STATS_TIMEOUT = 0.2, 1.0
#: Seconds that somebody may take to say which predictor's end he asks for, and that he is let wait for it.
_PATIENCE = 10.0
#: Bytes of such a question; ends of one predictor that are remembered.
_MOST_BYTES, _MOST_ENDS = 1000, 100
#: How often the system may refuse to start a process, and seconds until it is asked again.
_TRIES, _PAUSE = 4, 0.5


class CannotStart(TFPoolError):
    """Predictors could not be started.

    Args: the reason.
    """

    template = "no predictor could be started: {0}"


class _CannotGoOn(Exception):
    """Why a predictor is not started any more."""


def assign(models: Sequence[ModelPath], count: int) -> list[tuple[ModelPath, ...]]:
    """Which models each of ``count`` predictors has: all, or those with the fewest models where a number is given."""
    has: list[list[ModelPath]] = [[] for _ in range(count)]
    for model in models:
        wanted = count if model.predictors is None else min(count, model.predictors)
        for one in sorted(has, key=len)[:wanted]:
            one.append(model)
    return [tuple(one) for one in has]


@dataclass(eq=False)
class _Predictor:
    """What is known of one predictor; times are of ``time.monotonic``."""

    index: int
    models: tuple[ModelPath, ...]
    listener: socket.socket
    crash_loop: CrashLoop = field(default_factory=lambda: CrashLoop(MAX_FAILED_STARTS))
    process: Any = None
    #: What it says is read from this descriptor.
    link: int = -1
    started: float = 0.0
    facts: dict[str, Any] | None = None
    restarts: int = -1
    #: How the last processes of this predictor ended, by pid; and the last of all.
    ends: dict[int, str] = field(default_factory=dict)
    last_end: str = ""
    #: Why the last start failed, in the process's own words.
    failure: str = ""
    #: Why it is not started any more.
    gave_up: str = ""
    #: Set, and replaced by another, when it has ended.
    news: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def pid(self) -> int | None:
        return None if self.process is None else self.process.pid

    def end_of(self, pid: int | None) -> str:
        """How it ended, if it has; it need not be known which process it was."""
        return self.gave_up or (self.last_end if pid is None else self.ends.get(pid, ""))


class Supervisor:
    """The predictors of one worker.

    Args:
        models: of each predictor.
        job: makes the job of a predictor of its index, models, and the folder of sockets; may raise.
        give_up: called with the reason when a predictor cannot be kept alive.
        startup_timeout: seconds until a predictor must be ready.
        preload: modules that the forkserver imports, if it does not run yet.
        program: of each predictor; told its job, its listening socket, and where to say that it is ready.
    """

    def __init__(
        self,
        models: Sequence[tuple[ModelPath, ...]],
        *,
        job: Callable[[int, tuple[ModelPath, ...], str], Job],
        give_up: Callable[[str], None],
        startup_timeout: float,
        preload: Sequence[str] = ("celery_tfpool.predictors.nursery",),
        program: Callable[[Job, socket.socket, Any], None] = server.main,
    ) -> None:
        self._models, self._job, self._give_up, self._timeout = models, job, give_up, startup_timeout
        self._program = program
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(list(preload))
        self._predictors: list[_Predictor] = []
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._gave_up = ""
        self._stop_lock, self._stopping = threading.Lock(), threading.Event()
        self._is_started = False
        self.folder = ""
        self._folder_lock: int | None = None

    # -- from worker main ------------------------------------------------------

    def start(self, tick: Callable[[], None]) -> dict[str, tuple[tuple[int, ...], dict[str, Any]]]:
        """Start all, and wait until they are ready; by model, which have it and what they say of it.

        Args:
            tick: called all the while; whatever it raises ends the wait.

        Raises:
            CannotStart: one failed several times in a row, or there is no place for their sockets.
        """
        # A predictor ignores the SIGTERM that multiprocessing sends at the end of this process.
        atexit.register(self.stop)
        try:
            self._make_sockets()
            self._thread = threading.Thread(target=self._run, name="supervisor of predictors", daemon=True)
            self._thread.start()
            while not all(one.facts for one in self._predictors):
                tick()
                if self._gave_up:
                    raise CannotStart(self._gave_up)
                time.sleep(_TICK / 10)
            self._is_started = True
        except BaseException:
            self.stop()
            raise
        return self._served()

    def _make_sockets(self) -> None:
        try:
            self.folder, self._folder_lock = folder.make()
            busyness.make(self.folder, len(self._models))
            self._board = LoadBoard(self.folder)
            self._coroner = folder.listening(coroner_path(self.folder))
            for index, models in enumerate(self._models):
                listener = folder.listening(socket_path(self.folder, index))
                self._predictors.append(_Predictor(index, models, listener))
        except OSError as exc:
            where = self.folder or "the folder of temporary files"
            raise CannotStart(f"their sockets cannot be made in {where}: {exc.strerror or exc}") from exc

    def stop(self) -> None:
        """End all predictors, which nobody needs any more, and remove what is on disk; returns within seconds."""
        atexit.unregister(self.stop)
        with self._stop_lock:
            if self._stopping.is_set():
                return
            if self._is_started:
                self._log_statistics()
            self._stopping.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            with contextlib.suppress(RuntimeError):  # the loop is closed
                if self._loop is not None:
                    self._loop.call_soon_threadsafe(self._news.set)
            self._thread.join(GRACE)
        for one in self._predictors:
            if one.process is not None:
                with contextlib.suppress(OSError):
                    one.process.kill()
                one.process.join(GRACE)
            one.listener.close()
        if self._folder_lock is not None:
            os.close(self._folder_lock)
            shutil.rmtree(self.folder, ignore_errors=True)

    def client(self, response_timeout: float, max_request_bytes: int) -> Predictors:
        """What children need to know."""
        return Predictors(self.folder, self._served(), response_timeout, max_request_bytes)

    def facts(self) -> list[dict[str, Any]]:
        """Of each predictor: pid, models, restarts, and its own statistics; JSON-friendly."""
        return [
            {
                "index": one.index,
                "pid": one.pid,
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
        for one in self._predictors:
            stats = Statistics.of_board(self._board, one.index)
            if not stats.execution_count:
                continue
            logger.info(
                "predictor %d (pid %s): %d requests, %d of them failed; %d rows in %d batches (%.1f rows a batch); "
                "a request waited %.1f ms, a batch took %.1f ms; %d restarts",
                one.index,
                one.pid,
                stats.request_success + stats.request_failure,
                stats.request_failure,
                stats.inference_count,
                stats.execution_count,
                stats.inference_count / stats.execution_count,
                1e3 * stats.queue_duration / max(1, stats.queue_count),
                1e3 * stats.compute_duration / stats.execution_count,
                one.restarts,
            )

    # -- the asyncio program ------------------------------------------------------

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except BaseException as exc:  # whatever it is, nobody would replace predictors from now on
            logger.critical("the thread that keeps predictors alive has failed", exc_info=True)
            self._stop_worker(f"the thread that keeps predictors alive has failed: {type(exc).__name__}: {short(exc)}")

    async def _main(self) -> None:
        self._loop, self._news = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_unix_server(self._tell, sock=self._coroner, limit=_MOST_BYTES)
        keepers = [asyncio.ensure_future(self._keep(one)) for one in self._predictors]
        while not self._stopping.is_set():
            await self._news.wait()
        for task in keepers:
            task.cancel()
        await asyncio.gather(*keepers, return_exceptions=True)
        server.close()

    async def _keep(self, one: _Predictor) -> None:
        """The life of one predictor, as often as it lives."""
        try:
            while True:
                await self._start(one)
                await self._until_end(one)
        except asyncio.CancelledError:
            raise
        except _CannotGoOn as exc:
            self._give_one_up(one, str(exc))
        except Exception as exc:  # it would not be replaced any more
            logger.critical("predictor %d cannot be kept alive", one.index, exc_info=True)
            self._give_one_up(one, f"predictor {one.index} cannot be kept alive: {type(exc).__name__}: {short(exc)}")

    async def _start(self, one: _Predictor) -> None:
        for tries_left in reversed(range(_TRIES)):
            try:
                one.process, one.link = await _in_thread(self._new_process, one)
                break
            except Exception as exc:
                reason = f"predictor {one.index} cannot be started: {type(exc).__name__}: {short(exc)}"
                if not tries_left or not isinstance(exc, (OSError, MemoryError, EOFError)):
                    raise _CannotGoOn(reason) from exc
                logger.error("%s; trying again in %g s", reason, _PAUSE)
                await asyncio.sleep(_PAUSE)
        one.started, one.facts, one.failure = time.monotonic(), None, ""
        one.restarts += 1

    def _new_process(self, one: _Predictor) -> tuple[Any, int]:
        """The process, and the descriptor from which its words can be read; runs in a thread."""
        job = self._job(one.index, one.models, self.folder)
        receiver, sender = self._context.Pipe(duplex=False)
        try:
            process = self._context.Process(
                target=self._program, args=(job, one.listener, sender), name=f"Predictor-{one.index}", daemon=True
            )
            with processes.allowed_to_start():
                process.start()
            if self._stopping.is_set():  # nobody else knows of it
                process.kill()
            link = os.dup(receiver.fileno())
            os.set_blocking(link, False)
            return process, link
        finally:
            receiver.close()
            sender.close()

    async def _until_end(self, one: _Predictor) -> None:
        """Await that the process is ready, and that it ends; end it when it is overdue.

        Raises:
            _CannotGoOn: it has ended several times before it was ready.
        """
        loop, ready = asyncio.get_running_loop(), asyncio.Event()
        said = bytearray()

        def read() -> None:
            with contextlib.suppress(BlockingIOError):
                part = os.read(one.link, 1 << 16)
                said.extend(part)
                if not part:
                    loop.remove_reader(one.link)
                elif said.endswith(b"\n"):
                    self._hear(one, bytes(said))
                    ready.set()

        loop.add_reader(one.link, read)
        ended = asyncio.ensure_future(_ended(one.process))
        is_ready = asyncio.ensure_future(ready.wait())
        try:
            await asyncio.wait({ended, is_ready}, timeout=self._timeout, return_when=asyncio.FIRST_COMPLETED)
            if not is_ready.done() and not ended.done():
                await self._end_overdue(one, ended)
            await ended
            read()  # its last words
        finally:
            for task in (ended, is_ready):
                task.cancel()
            loop.remove_reader(one.link)
            os.close(one.link)
        await self._note_end(one)

    async def _end_overdue(self, one: _Predictor, ended: asyncio.Future[None]) -> None:
        logger.error(
            "predictor %d (pid %d): not ready after %.0f s; tf_startup_timeout is %g s. Killing it; "
            "see stderr for where it was",
            one.index,
            one.pid,
            time.monotonic() - one.started,
            self._timeout,
        )
        for number in (signal.SIGABRT, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.kill(one.process.pid, number)
            await asyncio.wait({ended}, timeout=GRACE)

    def _hear(self, one: _Predictor, said: bytes) -> None:
        words = json.loads(said)
        if "failed" in words:
            one.failure = words["failed"]
            logger.error("predictor %d (pid %d): %s", one.index, one.pid, one.failure)
            return
        one.facts = words["ready"]
        one.crash_loop.ended(ready=True)
        logger.info("predictor %d (pid %d): ready after %.1f s", one.index, one.pid, time.monotonic() - one.started)

    async def _note_end(self, one: _Predictor) -> None:
        was_ready, one.facts = one.facts is not None, None
        self._board.write(one.index, busyness.NOT_READY)
        ending = await _ending(one.process)
        one.last_end = one.ends[one.process.pid] = f"predictor {one.index} (pid {one.pid}) {ending}"
        while len(one.ends) > _MOST_ENDS:
            del one.ends[next(iter(one.ends))]
        one.news.set()
        one.news = asyncio.Event()
        if self._stopping.is_set():
            return
        logger.error("%s after %.1f s", one.last_end, time.monotonic() - one.started)
        if one.crash_loop.ended(was_ready):
            raise _CannotGoOn(
                f"predictor {one.index} ended {one.crash_loop.failed} times in a row before it was ready; "
                f"the last one {ending}: {one.failure or 'see above for what it said'}"
            )

    def _give_one_up(self, one: _Predictor, reason: str) -> None:
        """Let no child wait for a predictor that will not come."""
        one.gave_up = reason
        one.news.set()
        self._stop_worker(reason)
        one.listener.setblocking(False)
        with contextlib.suppress(OSError):
            while True:
                one.listener.accept()[0].close()
        with contextlib.suppress(OSError):
            one.listener.shutdown(socket.SHUT_RDWR)

    def _stop_worker(self, reason: str) -> None:
        self._gave_up = self._gave_up or reason
        if self._is_started and not self._stopping.is_set():
            logger.critical("worker stops: %s", reason)
            self._give_up(reason)

    # -- who ask how a predictor ended ---------------------------------------------

    async def _tell(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer ``[index, pid or null]`` on one line by how that predictor ended, as soon as it has."""
        try:
            index, pid = json.loads(await asyncio.wait_for(reader.readline(), _PATIENCE))
            one = self._predictors[int(index)]
            gone = asyncio.ensure_future(reader.read(1))  # whoever asked has closed
            deadline = time.monotonic() + _PATIENCE
            while not (words := one.end_of(pid)) and not gone.done() and time.monotonic() < deadline:
                news = asyncio.ensure_future(one.news.wait())
                await asyncio.wait({news, gone}, timeout=_PATIENCE, return_when=asyncio.FIRST_COMPLETED)
                news.cancel()
            gone.cancel()
            writer.write(words.encode() + b"\n")
        except (ValueError, TypeError, IndexError, OverflowError, RecursionError, OSError, asyncio.TimeoutError) as exc:
            logger.debug("somebody asked how a predictor ended in words that make no sense: %s", short(exc))
        finally:
            writer.close()


# -- processes ----------------------------------------------------------------------


async def _in_thread(function: Callable[..., Any], *args: Any) -> Any:
    """What ``function`` returns in a thread that nobody waits for when this one ends."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()

    def set_unless_over(setter: Callable[[Any], None], value: Any) -> None:
        if not future.done():
            setter(value)

    def run() -> None:
        try:
            value = function(*args)
            setter = future.set_result
        except BaseException as exc:
            value, setter = exc, future.set_exception
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(set_unless_over, setter, value)

    threading.Thread(target=run, name="starter of predictors", daemon=True).start()
    return await future


async def _ended(process: Any) -> None:
    """Wait for the end of ``process``, which is no child of this one."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    except OSError:  # Linux before 5.3; this one ends with the forkserver, too
        await _readable(process.sentinel)
        return
    try:
        await _readable(descriptor)
    finally:
        os.close(descriptor)


async def _readable(descriptor: int) -> None:
    loop, event = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(descriptor, event.set)
    try:
        await event.wait()
    finally:
        loop.remove_reader(descriptor)


async def _ending(process: Any) -> str:
    """How ``process`` ended, which the forkserver says a moment after."""
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(_readable(process.sentinel), 1.0)
    exitcode = process.exitcode
    if exitcode is None:
        return "ended, nobody knows how"
    return f"was ended by {signal.Signals(-exitcode).name}" if exitcode < 0 else f"ended with exit code {exitcode}"
