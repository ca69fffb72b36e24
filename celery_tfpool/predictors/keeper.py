"""One predictor in worker main: started, awaited to be ready and to end, and started again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .. import processes
from ..model_path import ModelPath
from ..processes import GRACE, MAX_FAILED_STARTS, CrashLoop
from ..runners.convert import short
from .awaiting import ended, ending, in_thread
from .busyness import LoadBoard
from .connection import ask_statistics
from .messages import Failed, ModelFacts, words_of
from .statistics import Figures, Statistics

logger: logging.Logger = logging.getLogger(__name__)

#: Ends of one predictor that are remembered.
_MOST_ENDS = 100
#: How often the system may refuse to start a process, and seconds until it is asked again.
_TRIES, _PAUSE = 4, 0.5
#: Seconds until a predictor must answer for its statistics.
_STATS_TIMEOUT = 1.0


class _CannotGoOn(Exception):
    """Why a predictor is not started any more."""


@dataclass(eq=False)
class Keeper:
    """What keeps one predictor alive, and what is known of it; times are of ``time.monotonic``."""

    index: int
    models: tuple[ModelPath, ...]
    listener: socket.socket
    #: Starts its process; that, and the descriptor from which its words can be read.  Called in a thread of its own.
    new_process: Callable[[Keeper], tuple[Any, int]]
    #: Seconds until it must be ready.
    timeout: float
    #: Called when it is not ready any more.
    on_end: Callable[[int], None]
    #: Set when its end is wanted.
    stopping: threading.Event
    crash_loop: CrashLoop = field(default_factory=lambda: CrashLoop(MAX_FAILED_STARTS))
    process: Any = None
    #: Whether a process is being started.
    is_starting: bool = False
    #: What it says is read from this descriptor.
    link: int = -1
    started: float = 0.0
    facts: dict[str, ModelFacts] | None = None
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
        """Of its present process, or of the last one."""
        return None if self.process is None else self.process.pid

    def end_of(self, pid: int | None) -> str:
        """How it ended, if it has; it need not be known which process it was."""
        return self.gave_up or (self.last_end if pid is None else self.ends.get(pid, ""))

    def described(self, folder: str) -> dict[str, Any]:
        """Pid, models, restarts, and its own statistics, for which it is asked; JSON-friendly."""
        return {
            "index": self.index,
            "pid": self.pid,
            "ready": self.facts is not None,
            "models": {name: vars(facts) for name, facts in (self.facts or {}).items()}
            or {model.name: {} for model in self.models},
            "restarts": self.restarts,
            "last_end": self.last_end,
            "stats": ask_statistics(folder, self.index, _STATS_TIMEOUT) if self.facts else None,
        }

    def figures(self, board: LoadBoard) -> Figures:
        """What it and those that it has replaced have done, without asking it."""
        statistics = Statistics.of_board(board, self.index)
        return Figures(self.index, self.facts is not None, self.restarts, board.rows(self.index), statistics)

    def kill(self) -> None:
        """End its process, which nobody needs any more; returns within seconds."""
        if self.process is not None:
            processes.kill(self.process)
            self.process.join(GRACE)

    async def keep(self) -> str:
        """Live its life, as often as it lives; returns the reason why it cannot be started any more."""
        try:
            while True:
                await self._start()
                await self._until_end()
        except _CannotGoOn as exc:
            return str(exc)
        except Exception as exc:  # it would not be replaced any more
            logger.critical("predictor %d cannot be kept alive", self.index, exc_info=True)
            return f"predictor {self.index} cannot be kept alive: {type(exc).__name__}: {short(exc)}"

    async def _start(self) -> None:
        tries_left = _TRIES
        while True:
            tries_left -= 1
            self.is_starting = True
            try:
                starting = in_thread(self.new_process, self, discard=_discard)
                self.process, self.link = await asyncio.wait_for(starting, self.timeout)
                break
            except asyncio.TimeoutError:
                processes.end_forkserver()
                tries_left = min(tries_left, 1)
                reason = f"the forkserver has not started it within {self.timeout:g} s (tf_startup_timeout)"
            except Exception as exc:
                reason = f"{type(exc).__name__}: {short(exc)}"
                if not isinstance(exc, (OSError, MemoryError, EOFError)):
                    tries_left = 0
            finally:
                self.is_starting = False
            reason = f"predictor {self.index} cannot be started: {reason}"
            if not tries_left:
                raise _CannotGoOn(reason)
            logger.error("%s; trying again in %g s", reason, _PAUSE)
            await asyncio.sleep(_PAUSE)
        self.started, self.facts, self.failure = time.monotonic(), None, ""
        self.restarts += 1

    async def _until_end(self) -> None:
        """Await that the process is ready, and that it ends; end it when it is overdue.

        Raises:
            _CannotGoOn: it has ended several times before it was ready.
        """
        loop, ready = asyncio.get_running_loop(), asyncio.Event()
        said = bytearray()

        def read() -> None:
            with contextlib.suppress(BlockingIOError):
                part = os.read(self.link, 1 << 16)
                said.extend(part)
                if not part:
                    loop.remove_reader(self.link)
                elif said.endswith(b"\n"):
                    self._hear(bytes(said))
                    ready.set()

        loop.add_reader(self.link, read)
        its_end = asyncio.ensure_future(ended(self.process))
        is_ready = asyncio.ensure_future(ready.wait())
        try:
            await asyncio.wait({its_end, is_ready}, timeout=self.timeout, return_when=asyncio.FIRST_COMPLETED)
            if not is_ready.done() and not its_end.done():
                await self._end_overdue(its_end)
            await its_end
            read()  # its last words
        finally:
            for task in (its_end, is_ready):
                task.cancel()
            loop.remove_reader(self.link)
            os.close(self.link)
        await self._note_end()

    async def _end_overdue(self, its_end: asyncio.Future[None]) -> None:
        logger.error(
            "predictor %d (pid %d): not ready after %.0f s; tf_startup_timeout is %g s. Killing it; "
            "see stderr for where it was",
            self.index,
            self.pid,
            time.monotonic() - self.started,
            self.timeout,
        )
        for number in (signal.SIGABRT, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, number)
            await asyncio.wait({its_end}, timeout=GRACE)

    def _hear(self, said: bytes) -> None:
        words = words_of(said)
        if isinstance(words, Failed):
            self.failure = words.reason
            logger.error("predictor %d (pid %d): %s", self.index, self.pid, self.failure)
            return
        self.facts = words.models
        self.crash_loop.ended(ready=True)
        logger.info("predictor %d (pid %d): ready after %.1f s", self.index, self.pid, time.monotonic() - self.started)

    async def _note_end(self) -> None:
        was_ready, self.facts = self.facts is not None, None
        self.on_end(self.index)
        how = await ending(self.process)
        self.last_end = self.ends[self.process.pid] = f"predictor {self.index} (pid {self.pid}) {how}"
        while len(self.ends) > _MOST_ENDS:
            del self.ends[next(iter(self.ends))]
        self.news.set()
        self.news = asyncio.Event()
        if self.stopping.is_set():
            return
        logger.error("%s after %.1f s", self.last_end, time.monotonic() - self.started)
        if self.crash_loop.ended(was_ready):
            raise _CannotGoOn(
                f"predictor {self.index} ended {self.crash_loop.failed} times in a row before it was ready; "
                f"the last one {how}: {self.failure or 'see above for what it said'}"
            )


def _discard(started: tuple[Any, int]) -> None:
    """End a process that was started too late; it would answer requests, and nobody would know of it."""
    process, link = started
    processes.kill(process)
    os.close(link)
