"""From requests to batches to answers: what a predictor does all day.

A `Batcher` says which requests go next, threads compute them, and the loop,
which never waits, answers.  So requests gather while a batch is computed, and
the next batch starts before the answers of the last one are sent.  Where calls
in one thread each do more than one call in all, several threads compute, each a
batch of its own, as long as batches are full.

Knows nothing of sockets: whoever asks is an `Asker`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from .. import processes
from ..errors import PredictionError, PredictorOverloaded
from ..runners.structure import CannotEncode
from ..settings import Settings
from .batching import Batcher, Part
from .busyness import LoadBoard
from .calls import Abandoned, Call
from .casualties import Computing
from .codec import encode
from .computing import compute
from .messages import Outputs, Refusal
from .requests import Batch, Request
from .served_model import ServedModel
from .statistics import Statistics

logger: logging.Logger = logging.getLogger(__name__)


class Scheduler:
    """Decides with a `Batcher` which requests go next, and lets other threads compute them.

    Args:
        folder: where notes are kept for other processes; see `busyness` and `casualties`.
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
        self.models: dict[str, ServedModel] = models
        self._settings, self._index, self._computing = settings, index, computing
        self._batcher: Batcher[Request] = Batcher(settings.batch_timeout, callers=0)
        self._board = LoadBoard(folder)
        self.statistics: Statistics = Statistics.of_board(self._board, index)
        most = max((model.max_size for model in models.values()), default=1)
        self._notes = Computing(folder, index, (threads + 1) * most + 1)
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._going, self._running = False, list[Batch]()
        self._tell_load()

    def connected(self, change: int) -> None:
        """So many more connections are open; one that goes may have been the one that the others waited for."""
        self._batcher.callers += change
        self._go_soon()

    # -- the path of a request ---------------------------------------------------

    def admit(self, request: Request) -> None:
        """Let it wait, unless it is refused."""
        asked = request.asked
        try:
            waiting, most = self._batcher.batches, self._settings.max_enqueued_batches
            if waiting >= most and not asked.again:
                raise PredictorOverloaded(request.model.name, self._batcher.requests, most)
            with self._notes.noted(asked.id):
                request.prepared(request.model.prepare(request.x, asked.batch_size, asked.alone, asked.outputs))
            self._enqueue(request)
        except Exception as exc:  # whatever comes of the user's values, or code
            self._refuse(request, exc)

    def _enqueue(self, request: Request) -> None:
        call = request.call
        key: Hashable
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
        request.end()
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
        while self._may_compute_another and (parts := self._batcher.take(now, len(self._running))):
            if not (parts := self._in_time(parts, now)):
                continue
            batch = Batch(parts, now)
            self._running.append(batch)
            try:
                if self._compute(batch):
                    self._go_soon()
                    return
            except Exception as exc:  # the system gives no thread, say
                logger.exception("a batch of %d requests cannot be computed", len(parts))
                self._account(batch, executions=0)
                self._answer(parts, [exc] * len(parts))
        if not self._running and (delay := self._batcher.delay(now)) is not None:
            self._timer = self._loop.call_later(delay, self._go)

    def _compute(self, batch: Batch) -> bool:
        """Compute a batch: at once if it is sure to be over in a moment, else in another thread; whether it is over."""
        for part in batch.parts:
            request = part.request
            batch.places.append(self._notes.note(request.asked.id))
            if request.started is None:
                request.started = batch.since
                self.statistics.count_start(waited=batch.since - request.arrived)
        if batch.first is not None and batch.first.is_quick:
            # To wake another thread and be woken would take longer, on busy cores much longer.
            results, executions = compute(batch.parts, in_one_thread=False)
            self._account(batch, executions)
            self._answer(batch.parts, results)
            return True
        # Alone it has all threads.
        crowded = len(self._running) > 1 or self._batcher.is_due(batch.since, len(self._running))
        job = partial(compute, batch.parts, in_one_thread=crowded)
        self._loop.run_in_executor(self._computing, job).add_done_callback(partial(self._computed, batch))
        return False

    @property
    def _may_compute_another(self) -> bool:
        return all(len(self._running) < batch.parallel for batch in self._running)

    def _in_time(self, parts: Sequence[Part[Request]], now: float) -> list[Part[Request]]:
        """Those for which somebody still waits; the others are refused."""
        for request in {part.request for part in parts if now >= part.request.asked.deadline}:
            self._refuse(request, request.too_late())
        return [part for part in parts if not part.request.is_over]

    def _computed(self, batch: Batch, future: asyncio.Future[tuple[list[Any], int]]) -> None:
        try:
            results, executions = future.result()
        except BaseException as exc:  # not the model's
            results, executions = [exc] * len(batch.parts), 0
        self._account(batch, executions)
        try:
            self._go()  # first what computes, then what sends
        finally:
            self._answer(batch.parts, results)

    def _account(self, batch: Batch, executions: int) -> None:
        if batch in self._running:
            self._running.remove(batch)
        for place in batch.places:
            self._notes.erase(place)
        batch.places.clear()
        self.statistics.count_batch(time.monotonic() - batch.since, executions, batch.inferences)

    def _answer(self, parts: Sequence[Part[Request]], results: list[Any]) -> None:
        for part, result in zip(parts, results, strict=True):
            request = part.request
            if request.is_over:
                continue
            try:
                if isinstance(result, Call):
                    request.prepared(result)
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
        with self._notes.noted(request.asked.id):  # nothing takes more memory than this
            try:
                description, body = encode(request.outputs())
            except CannotEncode as exc:
                raise PredictionError(request.model.name, f"its outputs {exc}") from exc
            self.forget(request)
            self.statistics.request_success += 1
            request.asker.answer(Outputs(request.asked.id, description), body)

    def _refuse(self, request: Request, exc: BaseException) -> None:
        self.forget(request)
        if isinstance(exc, Abandoned):
            return
        self.statistics.request_failure += 1
        request.asker.answer(Refusal.of(request.asked.id, request.model.name, exc))

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
        return next((batch for batch in self._running if time.monotonic() - batch.since > limit), None)
