"""Start, await, restart and stop predictors; worker main's side of them.

One asyncio program in a thread of its own: a coroutine for each predictor, which
starts it, awaits that it is ready and that it ends, and starts it again; and a
server that tells children how one ended.  Nothing that a peer says or does not
say makes it wait, and when it cannot go on the worker stops with the reason.

Each predictor has a listening socket that is made here and outlives it: a
request that comes while a predictor is being replaced waits in the socket's
queue.  Predictors are forked by a forkserver of `multiprocessing`, so that they
inherit nothing of worker main.  Knows nothing of Celery: what stops the worker is given.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import multiprocessing
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from .. import processes
from ..errors import TFPoolError
from ..model_path import ModelPath
from ..processes import GRACE
from ..runners.convert import short
from . import busyness, server
from .busyness import LoadBoard
from .client import Predictors
from .connection import coroner_path, socket_path
from .death_notices import MOST_BYTES, tell
from .folder import BACKLOG, Folder
from .keeper import Keeper
from .messages import ModelFacts
from .server import Job
from .statistics import Figures

logger: logging.Logger = logging.getLogger(__name__)


class CannotStart(TFPoolError):
    """Predictors could not be started.

    Args: the reason.
    """

    template = "no predictor could be started: {0}"


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
        self._predictors: list[Keeper] = []
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._gave_up = ""
        self._stop_lock, self._stopping = threading.Lock(), threading.Event()
        self._is_started = False
        self._pid = os.getpid()
        self._folder: Folder | None = None

    # -- from worker main ------------------------------------------------------

    def start(self, tick: Callable[[], None]) -> dict[str, tuple[tuple[int, ...], ModelFacts]]:
        """Start all, and wait until they are ready; by model, which have it and what they say of it.

        Args:
            tick: called all the while; whatever it raises ends the wait.

        Raises:
            CannotStart: one failed several times in a row, or there is no place for their sockets.
        """
        atexit.register(self.stop)  # a predictor ignores the SIGTERM that multiprocessing sends then
        try:
            self._make_sockets()
            self._thread = threading.Thread(target=self._run, name="supervisor of predictors", daemon=True)
            self._thread.start()
            while not all(one.facts for one in self._predictors):
                tick()
                if self._gave_up:
                    raise CannotStart(self._gave_up)
                time.sleep(processes.TICK)
            self._is_started = True
        except BaseException:
            self.stop()
            raise
        return self._served()

    def _make_sockets(self) -> None:
        try:
            self._folder = folder = Folder()
            busyness.make(folder.path, len(self._models))
            self._board = LoadBoard(folder.path)
            self._coroner = folder.listening(coroner_path(folder.path))
            for index, models in enumerate(self._models):
                listener = folder.listening(socket_path(folder.path, index))
                self._predictors.append(
                    Keeper(
                        index, models, listener, self._new_process, self._timeout, self._board.not_ready, self._stopping
                    )
                )
        except OSError as exc:
            where = self.folder or "the folder of temporary files"
            raise CannotStart(f"their sockets cannot be made in {where}: {exc.strerror or exc}") from exc

    def stop(self) -> None:
        """End all predictors, which nobody needs any more, and remove what is on disk; returns within seconds."""
        if os.getpid() != self._pid:
            return  # a fork of worker main, which has no say
        atexit.unregister(self.stop)
        with self._stop_lock:
            if self._stopping.is_set():
                return
            if self._is_started:
                self._log_statistics()
            self._stopping.set()
        if any(one.is_starting for one in self._predictors):
            processes.end_forkserver()  # which may not answer, and would be left over
        if self._thread is not None and self._thread is not threading.current_thread():
            with contextlib.suppress(RuntimeError):  # the loop is closed
                if self._loop is not None:
                    self._loop.call_soon_threadsafe(self._news.set)
            self._thread.join(GRACE)
        for one in self._predictors:
            one.kill()
        if self._folder is not None:
            self._folder.remove()

    @property
    def folder(self) -> str:
        """Where their sockets are; empty before there are any."""
        return self._folder.path if self._folder else ""

    def client(self, response_timeout: float, max_request_bytes: int) -> Predictors:
        """What children need to know."""
        return Predictors(self.folder, self._served(), response_timeout, max_request_bytes)

    def facts(self) -> list[dict[str, Any]]:
        """Of each predictor: pid, models, restarts, and its own statistics; JSON-friendly."""
        return [one.described(self.folder) for one in self._predictors]

    def _served(self) -> dict[str, tuple[tuple[int, ...], ModelFacts]]:
        found: dict[str, tuple[tuple[int, ...], ModelFacts]] = {}
        for one in self._predictors:
            for name, facts in (one.facts or {}).items():
                found[name] = (*found.get(name, ((),))[0], one.index), facts
        return found

    def _log_statistics(self) -> None:
        for one in self.figures():
            if one.statistics.execution_count:
                logger.info("predictor %d: %s; %d restarts", one.index, one.statistics, one.restarts)

    def figures(self) -> list[Figures]:
        """Of each predictor what it has done, without asking it."""
        return [one.figures(self._board) for one in self._predictors]

    # -- the asyncio program ------------------------------------------------------

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except BaseException as exc:  # whatever it is, nobody would replace predictors from now on
            logger.critical("the thread that keeps predictors alive has failed", exc_info=True)
            self._stop_worker(f"the thread that keeps predictors alive has failed: {type(exc).__name__}: {short(exc)}")

    async def _main(self) -> None:
        self._loop, self._news = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_unix_server(
            partial(tell, self._predictors), sock=self._coroner, limit=MOST_BYTES, backlog=BACKLOG
        )
        keepers = [asyncio.ensure_future(self._keep(one)) for one in self._predictors]
        while not self._stopping.is_set():
            await self._news.wait()
        for task in keepers:
            task.cancel()
        await asyncio.gather(*keepers, return_exceptions=True)
        server.close()

    def _new_process(self, one: Keeper) -> tuple[Any, int]:
        """The process, and the descriptor from which its words can be read; runs in a thread."""
        job = self._job(one.index, one.models, self.folder)
        receiver, sender = self._context.Pipe(duplex=False)
        try:
            process = self._context.Process(
                target=self._program, args=(job, one.listener, sender), name=f"Predictor-{one.index}", daemon=True
            )
            link = os.dup(receiver.fileno())
            os.set_blocking(link, False)
            try:
                with processes.allowed_to_start():
                    process.start()
            except BaseException:
                os.close(link)
                raise
            if self._stopping.is_set():  # who stops does not know of it
                processes.kill(process)
            return process, link
        finally:
            receiver.close()
            sender.close()

    async def _keep(self, one: Keeper) -> None:
        """Keep it alive; let no child wait for it when it will not come."""
        one.gave_up = reason = await one.keep()
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
