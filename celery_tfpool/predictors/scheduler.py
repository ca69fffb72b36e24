"""From requests to batches to answers: what a predictor does all day.

A `Batcher` says which requests go next, threads compute them, and the loop,
which never waits, answers.  So requests gather while a batch is computed, and
the next batch starts before the answers of the last one are sent.  Where calls
in one thread each do more than one call in all, several threads compute, each a
batch of its own, as long as batches are full.

Knows nothing of sockets: who asks is an `Asker`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from .. import processes
from ..errors import PredictionError, PredictionTimeout, PredictorOverloaded, TFPoolError
from ..runners.convert import concatenate, short
from ..runners.structure import CannotEncode
from ..settings import Settings
from . import served_model
from .batching import Batcher, Part
from .busyness import LoadBoard
from .casualties import Computing
from .codec import decode, encode
from .framing import BadMessage
from .served_model import Abandoned, Call, NotByRows, ServedModel

logger = logging.getLogger(__name__)


@dataclass
class Statistics:
    """What a predictor has done since the worker started, in Triton's words; seconds are sums."""

    request_success: int = 0
    request_failure: int = 0
    #: Rows, and calls that computed them.
    inference_count: int = 0
    execution_count: int = 0
    #: Requests that have waited, and how long.
    queue_count: int = 0
    queue_duration: float = 0.0
    compute_duration: float = 0.0

    @classmethod
    def of_board(cls, board: LoadBoard, index: int) -> Statistics:
        """Of predictor ``index`` and all that it has replaced."""
        statistics, numbers = cls(), board.counters(index)
        for (name, default), number in zip(list(vars(statistics).items()), numbers, strict=False):
            setattr(statistics, name, type(default)(number))
        return statistics


class Asker(Protocol):
    """Whoever waits for an answer."""

    def answer(self, head: dict[str, Any], body: Sequence[Any] = ()) -> None:
        """Send the answer to the one request that it waits for."""


@dataclass(eq=False)
class Request:
    """One request, from its arrival to its answer."""

    asker: Asker
    #: Of whoever asks; no two requests of a worker have the same.
    number: int
    model: ServedModel
    x: Any
    batch_size: int | None
    #: Whether it must not share a call; whether it was admitted already, by a predictor that has died.
    alone: bool
    again: bool
    arrived: float
    #: When nobody waits any more, by ``time.monotonic``, and the limit to be named then; None: no answer is needed.
    deadline: float
    limit: str | None
    #: None until it is prepared.
    call: Call | None = None
    #: Outputs of its parts, by their first row.
    pieces: dict[int, Any] = field(default_factory=dict)
    done_rows: int = 0
    started: float | None = None
    is_over: bool = False

    def is_wanted(self) -> bool:
        return not self.is_over and time.monotonic() < self.deadline

    @property
    def rows(self) -> int:
        """As they count for the queue: what is computed in one go is one."""
        return 1 if self.call is None or self.call.is_whole else self.call.rows


@dataclass(eq=False)
class Batch:
    """What is being computed."""

    parts: Sequence[Part[Request]]
    since: float
    #: Where it is noted what is computed.
    places: list[int]

    @property
    def first(self) -> Call | None:
        return self.parts[0].request.call

    @property
    def rows(self) -> int:
        return sum(part.rows for part in self.parts)

    @property
    def inferences(self) -> int:
        return sum(_inferences(part) for part in self.parts)

    @property
    def parallel(self) -> int:
        return self.first.parallel if self.first else 1


def _inferences(part: Part[Request]) -> int:
    call = part.request.call
    return 0 if call is None else call.rows if call.is_whole else part.rows


class Scheduler:
    """Decides with a `Batcher` which requests go next, and lets other threads compute them.

    Args:
        folder: where notes are kept for other processes; see `load_board` and `casualties`.
        index: of this predictor.
        threads: of ``computing``.
    """

    def __init__(
        self,
        models: dict[str, ServedModel],
        settings: Settings,
        computing: ThreadPoolExecutor,
        *,
        threads: int,
        folder: str,
        index: int,
    ) -> None:
        self.models, self._settings, self._index = models, settings, index
        self._computing = computing
        self._batcher: Batcher[Request] = Batcher(settings.batch_timeout, callers=0)
        self._board = LoadBoard(folder)
        self.statistics = Statistics.of_board(self._board, index)
        most = max((model.max_size for model in models.values()), default=1)
        self._notes = Computing(folder, index, (threads + 1) * most)
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._going = False
        self._running: list[Batch] = []
        self._tell_load()

    def connected(self, change: int) -> None:
        """So many more connections are open; one that goes may have been the one that the others waited for."""
        self._batcher.callers += change
        self._go_soon()

    # -- the path of a request ---------------------------------------------------

    def take(self, asker: Asker, head: dict[str, Any], body: memoryview) -> Request | None:
        """A message has come: answer it now, or return what is to be answered later.

        Raises:
            BadMessage: it is none of ours.
        """
        try:
            number = int(head["id"])
            if head["do"] == "stats":
                asker.answer({"id": number, "stats": self.facts()})
                return None
            request = Request(
                asker,
                number,
                self.models[head["model"]],
                decode(head["x"], body),
                head["batch_size"],
                bool(head["alone"]),
                bool(head["again"]),
                arrived=time.monotonic(),
                deadline=float(head["deadline"]),
                limit=head["limit"],
            )
        except (KeyError, TypeError, ValueError, RecursionError) as exc:
            raise BadMessage(f"a request that makes no sense ({type(exc).__name__}: {short(exc)})") from exc
        self._admit(request)
        return None if request.is_over else request

    def _admit(self, request: Request) -> None:
        """Let it wait, unless it is refused."""
        try:
            waiting, most = self._batcher.batches, self._settings.max_enqueued_batches
            if waiting >= most and not request.again:
                raise PredictorOverloaded(request.model.name, self._batcher.requests, most)
            request.call = request.model.prepare(request.x, request.batch_size, alone=request.alone)
        except Exception as exc:  # whatever comes of the user's values, or code
            self._refuse(request, exc)
            return
        self._enqueue(request)

    def _enqueue(self, request: Request) -> None:
        call = request.call
        key: Hashable
        if call is not None:
            request.x = None
            call.is_wanted = request.is_wanted
        if call is not None and call.key is not None:
            key, size = call.key, request.model.max_size
        else:  # alone, and cut as Keras would cut it
            key, size = request, 1 if call is None or call.is_whole else call.batch_size or 1
        self._batcher.add(
            request,
            rows=request.rows,
            key=key,
            max_size=size,
            parallel=call.parallel if call is not None else 1,
            now=time.monotonic(),
            weight=(call.rows if call is not None else 1) / request.model.rows_that_count,
        )
        self._tell_load()
        self._go_soon()

    def forget(self, request: Request) -> None:
        """Nobody waits for this request any more, or it is answered."""
        request.is_over = True
        self._batcher.remove(request)
        self._tell_load()

    def _go_soon(self) -> None:
        """`_go` when all that has come by now is received, and can share the batch."""
        if not self._going:
            self._going = True
            self._loop.call_soon(self._go)

    def _go(self) -> None:
        """Start all batches that may start now."""
        self._going = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = time.monotonic()
        while self._may_another() and (parts := self._batcher.take(now, len(self._running))):
            if not (parts := self._in_time(parts, now)):
                continue
            batch = Batch(parts, now, [self._notes.note(part.request.number) for part in parts])
            self._running.append(batch)
            for part in parts:
                if part.request.started is None:
                    part.request.started = now
                    self.statistics.queue_count += 1
                    self.statistics.queue_duration += now - part.request.arrived
            if batch.first is not None and batch.first.is_quick:
                # To wake another thread and be woken would take longer, on busy cores much longer.
                results, executions = _compute(parts, in_one_thread=False)
                self._account(batch, executions)
                self._answer(parts, results)
                self._go_soon()
                return
            # Alone it has all threads.
            crowded = len(self._running) > 1 or self._batcher.is_due(now, len(self._running))
            future = self._loop.run_in_executor(self._computing, partial(_compute, parts, in_one_thread=crowded))
            future.add_done_callback(partial(self._computed, batch))
        if not self._running and (delay := self._batcher.delay(now)) is not None:
            self._timer = self._loop.call_later(delay, self._go)

    def _in_time(self, parts: Sequence[Part[Request]], now: float) -> list[Part[Request]]:
        """Those for which somebody still waits; the others are refused."""
        for request in {part.request for part in parts if now >= part.request.deadline}:
            seconds = round(request.deadline - request.arrived, 3)
            late = PredictionTimeout(request.model.name, seconds, request.limit)
            self._refuse(request, Abandoned() if request.limit is None else late)
        return [part for part in parts if not part.request.is_over]

    def _may_another(self) -> bool:
        """Whether nothing is being computed next to which nothing else may be."""
        return all(len(self._running) < batch.parallel for batch in self._running)

    def _computed(self, batch: Batch, future: asyncio.Future[tuple[list[Any], int]]) -> None:
        results, executions = future.result()
        self._account(batch, executions)
        try:
            self._go()  # first what computes, then what sends
        finally:
            self._answer(batch.parts, results)

    def _account(self, batch: Batch, executions: int) -> None:
        self._running.remove(batch)
        for place in batch.places:
            self._notes.erase(place)
        self.statistics.compute_duration += time.monotonic() - batch.since
        self.statistics.execution_count += executions
        self.statistics.inference_count += batch.inferences

    def _answer(self, parts: Sequence[Part[Request]], results: list[Any]) -> None:
        for part, result in zip(parts, results, strict=True):
            request = part.request
            if request.is_over:
                continue
            try:
                if isinstance(result, Call):
                    request.call = result
                    self._enqueue(request)
                else:
                    self._deliver(part, result)
            except Exception as exc:  # an answer that cannot be sent costs nobody else's
                self._refuse(request, exc)
        self._tell_load()

    def _deliver(self, part: Part[Request], result: Any) -> None:
        request = part.request
        if isinstance(result, BaseException):
            self._refuse(request, result)
            return
        request.pieces[part.start] = result
        request.done_rows += part.rows
        if request.done_rows < request.rows:
            return
        pieces = [piece for _, piece in sorted(request.pieces.items())]  # computed side by side, they end in any order
        try:
            description, body = encode(pieces[0] if len(pieces) == 1 else concatenate(pieces))
        except CannotEncode as exc:
            raise PredictionError(request.model.name, f"its outputs {exc}") from exc
        self.forget(request)
        self.statistics.request_success += 1
        request.asker.answer({"id": request.number, "outputs": description}, body)

    def _refuse(self, request: Request, exc: BaseException) -> None:
        self.forget(request)
        if isinstance(exc, Abandoned):
            return
        if not isinstance(exc, TFPoolError):
            exc = PredictionError(request.model.name, f"{type(exc).__name__}: {short(exc)}")
        self.statistics.request_failure += 1
        request.asker.answer({"id": request.number, "error": type(exc).__name__, "args": list(exc.args)})

    # -- what is known from outside ------------------------------------------------

    def facts(self) -> dict[str, Any]:
        """For ``celery inspect``; JSON-friendly."""
        return {
            **vars(self.statistics),
            "pending_request_count": self._batcher.requests,
            "pending_row_count": self._batcher.rows,
            "memory": processes.memory_of(os.getpid()),
        }

    def _tell_load(self) -> None:
        self._board.write(self._index, self._batcher.rows + sum(batch.rows for batch in self._running))
        self._board.count(self._index, list(vars(self.statistics).values()))

    def overdue(self, limit: float) -> Batch | None:
        """A batch that takes longer than so many seconds."""
        now = time.monotonic()
        return next((batch for batch in self._running if now - batch.since > limit), None)


# -- in a thread that computes -----------------------------------------------------


def _compute(parts: Sequence[Part[Request]], *, in_one_thread: bool) -> tuple[list[Any], int]:
    """Of each part the outputs, or the exception that is to be its answer; and how many calls it took.

    Of a request that is to be prepared only here, the prepared call.
    """
    if (request := parts[0].request).call is None:
        return [_prepared(request)], 0
    calls = [Part(part.request.call, part.start, part.stop) for part in parts if part.request.call is not None]
    model = calls[0].request.model
    try:
        return served_model.run(calls, in_one_thread=in_one_thread), 1
    except NotByRows:
        model.has_no_rows(calls[0].request.compiled)
    except BaseException as exc:  # anything at all may come out of a model
        if len(parts) == 1:
            return [exc], 1
        logger.warning(
            "model %r: a batch of %d requests failed (%s: %s); computing them one by one",
            model.name,
            len(parts),
            type(exc).__name__,
            short(exc),
        )
    return [_alone(call) for call in calls], 1 + len(calls)


def _prepared(request: Request) -> Any:
    try:
        return request.model.prepare_slowly(request.x, request.batch_size, alone=request.alone)
    except BaseException as exc:  # whatever the model's own code raises is the answer
        return exc


def _alone(part: Part[Call]) -> Any:
    try:
        return served_model.alone(part)
    except BaseException as exc:  # the answer to this one
        return exc
