"""A process that owns models and predicts for all children, batching their requests.

One event loop receives, decides and answers; a thread beside it computes,
unless a model's calls are sure to be over in a moment.  So requests gather while a batch is
computed, and the next batch starts before the answers of the last one are sent.
Where calls in one thread each do more than one call in all, several threads
compute, each a batch of its own, as long as batches are full.

Whoever asks has one connection for each request in flight.  A connection that
is closed takes its request with it.  What a request and an answer say:

    {"do": "predict", "model", "x": description of the body, "batch_size"}
        → {"outputs": description of the body}
        → {"error": name of an error of `errors`, "args": its arguments}
    {"do": "stats"} → {"stats": …}

The other end is `predictor_client`; `supervisor` starts and ends this process.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import json
import logging
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from socket import socket
from typing import Any, NoReturn

from . import memory, runtime, served_model
from .arrays import CannotEncode, decode, encode
from .batching import Batcher, Part
from .config import ModelPath, Settings
from .errors import PredictionError, PredictorOverloaded, TFPoolError
from .load_board import LoadBoard
from .messages import BadMessage, Reader, message
from .models import Models
from .served_model import Call, NotByRows, ServedModel
from .values import concatenate, short
from .watching import GRACE

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """What one predictor process is told when it starts."""

    index: int
    models: tuple[ModelPath, ...]
    packs: tuple[tuple[str, str], ...]
    settings: Settings
    intra_op: int
    inter_op: int
    #: The folder of sockets, removed by this process if worker main is gone.
    folder: str
    parent: int
    #: Makes known, in a spawned process, what a forked one inherits: the app's modules, where the log goes.
    prepare: Callable[[], Any] | None = None


@dataclass
class Statistics:
    """What a predictor has done, in Triton's words; seconds are sums."""

    request_success: int = 0
    request_failure: int = 0
    #: Rows, and calls that computed them.
    inference_count: int = 0
    execution_count: int = 0
    #: Requests and rows that wait now.
    pending_request_count: int = 0
    pending_row_count: int = 0
    queue_duration: float = 0.0
    compute_duration: float = 0.0


# -- the process ---------------------------------------------------------------


def main(job: Job, listener: socket, link: Connection) -> None:
    """Load, say so over ``link``, and predict until killed; the program of the process.

    Sends over ``link`` JSON: ``{"ready": model → facts}`` or ``{"failed": reason}``.
    """
    # It ends when worker main says so or is gone: children need it until their last task is done.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    if sys.__stderr__ is not None:
        faulthandler.enable(sys.__stderr__)
    runtime.limit_threads(intra_op=job.intra_op, inter_op=job.inter_op, explicit=True)
    runtime.threads_per_session()
    if job.prepare is not None:
        job.prepare()
    try:
        asyncio.run(_serve(job, listener, link))
    finally:
        os._exit(1)  # TensorFlow's threads, and what worker main registered for its own end, have no say here


async def _serve(job: Job, listener: socket, link: Connection) -> None:
    loop = asyncio.get_running_loop()
    _watch_parent(loop, job)
    computing = ThreadPoolExecutor(job.intra_op, "compute")
    try:
        models = await loop.run_in_executor(computing, _load, job, computing)
    except Exception as exc:  # anything at all may come out of the user's file or function
        reason = str(exc) if isinstance(exc, TFPoolError) else f"{type(exc).__name__}: {short(exc)}"
        link.send_bytes(json.dumps({"failed": reason}).encode())
        return
    memory.keep_what_is_freed()  # not what loading took
    predictor = Predictor(job, models, computing)
    listener.setblocking(False)
    await loop.create_unix_server(lambda: _Conversation(predictor), sock=listener)
    predictor.watch_itself()
    link.send_bytes(json.dumps({"ready": {name: model.facts() for name, model in models.items()}}).encode())
    await loop.create_future()  # for ever


def _load(job: Job, computing: ThreadPoolExecutor) -> dict[str, ServedModel]:
    """Load and warm up all models, in a thread of ``computing``.

    Raises:
        ModelLoadError: of the first that fails.
    """
    models = Models(job.models, safe_mode=job.settings.safe_mode, packs=dict(job.packs))
    served = {}
    for model in job.models:
        started = time.monotonic()
        lazy = models.find(model.name)
        one = ServedModel(lazy.load(), model.max_batch_size or job.settings.max_batch_size, job.intra_op)
        one.warm_up(computing)
        served[model.name] = one
        logger.info(
            "predictor %d (pid %d): model %r from %r, loaded in %.2f s, warm after %.2f s%s; %s",
            job.index,
            os.getpid(),
            model.name,
            model.path,
            lazy.load_time,
            time.monotonic() - started,
            ", frozen" if one.is_frozen else "",
            _batches_of(one),
        )
    return served


def _batches_of(model: ServedModel) -> str:
    if model.alone:
        return f"requests are not batched: {model.alone}"
    at_a_time = f", {model.parallel} at a time" if model.parallel > 1 else ""
    return f"batches of up to {model.max_size} row{'s' * (model.max_size > 1)}{at_a_time}"


def _watch_parent(loop: asyncio.AbstractEventLoop, job: Job) -> None:
    """End this process, and remove the folder of sockets, when worker main is gone."""

    def gone() -> None:
        logger.error("predictor %d (pid %d): worker main is gone", job.index, os.getpid())
        _end_without_parent(job)

    try:
        descriptor = os.pidfd_open(job.parent)
    except ProcessLookupError:
        _end_without_parent(job)
    except OSError:  # Linux before 5.3

        def look() -> None:
            if os.getppid() != job.parent:
                gone()
            loop.call_later(1.0, look)

        look()
    else:
        loop.add_reader(descriptor, gone)
        if os.getppid() != job.parent:  # it ended, and another process has its number
            gone()


def _end_without_parent(job: Job) -> NoReturn:
    shutil.rmtree(job.folder, ignore_errors=True)
    os._exit(1)


# -- requests and batches --------------------------------------------------------


@dataclass(eq=False)
class _Request:
    """One request, from its arrival to its answer."""

    conversation: _Conversation
    call: Call
    arrived: float
    #: Outputs of its parts, in their order.
    pieces: list[Any] = field(default_factory=list)
    done_rows: int = 0
    started: float | None = None
    abandoned: bool = False


@dataclass(eq=False)
class _Batch:
    """What is being computed."""

    parts: Sequence[Part[_Request]]
    since: float

    @property
    def first(self) -> Call:
        return self.parts[0].request.call

    @property
    def rows(self) -> int:
        """As they count for the queue: a request that goes alone is one."""
        return sum(part.rows for part in self.parts)

    @property
    def inferences(self) -> int:
        return sum(part.rows if part.request.call.key else part.request.call.rows for part in self.parts)


class Predictor:
    """Decides with a `Batcher` which requests go next, and lets other threads compute them."""

    def __init__(self, job: Job, models: dict[str, ServedModel], computing: ThreadPoolExecutor) -> None:
        self.job, self.models = job, models
        self.statistics = Statistics()
        self._computing = computing
        self._batcher: Batcher[_Request] = Batcher(job.settings.batch_timeout, callers=0)
        self._board = LoadBoard(job.folder)
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._going = False
        self._running: list[_Batch] = []
        self._tell_load()

    def connected(self, change: int) -> None:
        """So many more connections are open; one that goes may have been the one that the others waited for."""
        self._batcher.callers += change
        self._go_soon()

    # From here to `_deliver` the path of a request.

    def take(self, conversation: _Conversation, head: dict[str, Any], body: memoryview) -> None:
        """A message has come; answer it, now or later.

        Raises:
            BadMessage: it is none of ours.
        """
        try:
            if head["do"] == "stats":
                conversation.answer({"stats": self.facts()})
                return
            request = self._request(conversation, head, body)
        except TFPoolError as exc:
            self._refuse(conversation, exc)
        except (KeyError, TypeError, ValueError) as exc:
            raise BadMessage(f"a request that makes no sense ({type(exc).__name__}: {exc})") from exc
        else:
            conversation.request = request
            self._go_soon()

    def _request(self, conversation: _Conversation, head: dict[str, Any], body: memoryview) -> _Request:
        model = self.models[head["model"]]
        waiting, most = self._batcher.batches, self.job.settings.max_enqueued_batches
        if waiting >= most:
            raise PredictorOverloaded(model.name, self._batcher.requests, most)
        call = model.prepare(decode(head["x"], body), head["batch_size"])
        request = _Request(conversation, call, time.monotonic())
        key, size = (call.key, model.max_size) if call.key else (request, 1)
        self._batcher.add(
            request,
            rows=call.rows if call.key else 1,
            key=key,
            max_size=size,
            parallel=call.parallel,
            now=request.arrived,
            weight=call.rows / model.rows_that_count,
        )
        self._tell_load()
        return request

    def forget(self, request: _Request) -> None:
        """Nobody waits for this request any more."""
        request.abandoned = True
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
            batch = _Batch(parts, now)
            self._running.append(batch)
            for part in parts:
                if part.request.started is None:
                    part.request.started = now
                    self.statistics.queue_duration += now - part.request.arrived
            if batch.first.is_quick:
                # To wake another thread and be woken would take longer, on busy cores much longer.
                results = _compute(parts, in_one_thread=False)
                self._account(batch)
                self._answer(parts, results)
                self._go_soon()
                return
            # Alone it has all threads.
            crowded = len(self._running) > 1 or self._batcher.is_due(now, len(self._running))
            future = self._loop.run_in_executor(self._computing, partial(_compute, parts, in_one_thread=crowded))
            future.add_done_callback(partial(self._computed, batch))
        if not self._running and (delay := self._batcher.delay(now)) is not None:
            self._timer = self._loop.call_later(delay, self._go)

    def _may_another(self) -> bool:
        """Whether nothing is being computed next to which nothing else may be."""
        return all(len(self._running) < batch.first.parallel for batch in self._running)

    def _computed(self, batch: _Batch, future: asyncio.Future[list[Any]]) -> None:
        self._account(batch)
        self._go()  # first what computes, then what sends
        self._answer(batch.parts, future.result())

    def _account(self, batch: _Batch) -> None:
        self._running.remove(batch)
        self.statistics.compute_duration += time.monotonic() - batch.since
        self.statistics.execution_count += 1
        self.statistics.inference_count += batch.inferences

    def _answer(self, parts: Sequence[Part[_Request]], results: list[Any]) -> None:
        for part, result in zip(parts, results, strict=True):
            if not part.request.abandoned:
                self._deliver(part, result)
        self._tell_load()

    def _deliver(self, part: Part[_Request], result: Any) -> None:
        request = part.request
        if isinstance(result, Exception):
            request.conversation.request = None
            self.forget(request)  # its other parts
            self._refuse(request.conversation, _error(request.call.model.name, result))
            return
        request.pieces.append(result)
        request.done_rows += part.rows
        if request.call.key and request.done_rows < request.call.rows:
            return
        request.conversation.request = None
        outputs = request.pieces[0] if len(request.pieces) == 1 else concatenate(request.pieces)
        try:
            description, body = encode(outputs)
        except CannotEncode as exc:
            self._refuse(request.conversation, PredictionError(request.call.model.name, f"its outputs {exc}"))
            return
        self.statistics.request_success += 1
        request.conversation.answer({"outputs": description}, body)

    def _refuse(self, conversation: _Conversation, error: TFPoolError) -> None:
        self.statistics.request_failure += 1
        conversation.answer({"error": type(error).__name__, "args": list(error.args)})

    # What is known from outside.

    def facts(self) -> dict[str, Any]:
        """For ``celery inspect``; JSON-friendly."""
        self.statistics.pending_request_count = self._batcher.requests
        self.statistics.pending_row_count = self._batcher.rows
        return {**asdict(self.statistics), "memory": memory.of_process(os.getpid())}

    def _tell_load(self) -> None:
        self._board.write(self.job.index, self._batcher.rows + sum(batch.rows for batch in self._running))

    def watch_itself(self) -> None:
        """End this process when a batch takes longer than anybody waits for it, or when this loop hangs."""
        limit = self.job.settings.response_timeout + GRACE
        late = [batch for batch in self._running if time.monotonic() - batch.since > limit]
        if late:
            logger.critical(
                "predictor %d (pid %d): a batch of %d rows is not done after %g s; ending, see stderr for where it was",
                self.job.index,
                os.getpid(),
                late[0].rows,
                limit,
            )
            os.abort()
        # By a thread that needs neither this loop nor the GIL.
        if sys.__stderr__ is not None:
            faulthandler.dump_traceback_later(limit, exit=True, file=sys.__stderr__)
        self._loop.call_later(min(1.0, limit / 4), self.watch_itself)


def _error(name: str, exc: Exception) -> TFPoolError:
    return exc if isinstance(exc, TFPoolError) else PredictionError(name, f"{type(exc).__name__}: {short(exc)}")


def _compute(parts: Sequence[Part[_Request]], *, in_one_thread: bool) -> list[Any]:
    """The outputs of each part, or the exception that is to be its answer; runs in a thread that computes."""
    calls = [Part(part.request.call, part.start, part.stop) for part in parts]
    try:
        return served_model.run(calls, in_one_thread=in_one_thread)
    except NotByRows:
        model = calls[0].request.model
        model.alone = "its outputs do not have a row for each row of its inputs"
        logger.warning("model %r: requests are not batched from now on: %s", model.name, model.alone)
    except Exception as exc:  # anything at all may come out of a model
        if len(parts) == 1:
            return [exc]
        logger.warning(
            "model %r: a batch of %d requests failed (%s: %s); computing them one by one",
            calls[0].request.model.name,
            len(parts),
            type(exc).__name__,
            short(exc),
        )
    return [_alone(call) for call in calls]


def _alone(part: Part[Call]) -> Any:
    whole = part.request
    values = [value[part.start : part.stop] for value in whole.values] if whole.key else whole.values
    try:
        return whole.compiled.in_batches(values, part.rows if whole.key else whole.rows, whole.batch_size)
    except Exception as exc:  # the answer to this one
        return exc


# -- the conversation ------------------------------------------------------------


class _Conversation(asyncio.BufferedProtocol):
    """One connection: one request at a time, and its answer."""

    _transport: asyncio.WriteTransport

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor
        self._reader = Reader()
        #: What is being asked, until it is answered.
        self.request: _Request | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport
        self._predictor.connected(1)
        self.answer({"pid": os.getpid()})

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._reader.buffer()

    def buffer_updated(self, nbytes: int) -> None:
        try:
            for head, body in self._reader.received(nbytes):
                if self.request is not None:
                    raise BadMessage("a second request before the answer to the first")
                self._predictor.take(self, head, body)
        except BadMessage as exc:
            logger.warning(
                "predictor %d (pid %d): closing a connection: %s", self._predictor.job.index, os.getpid(), exc
            )
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.request is not None:
            self._predictor.forget(self.request)
            self.request = None
        self._predictor.connected(-1)

    def answer(self, head: dict[str, Any], body: Sequence[Any] = ()) -> None:
        with contextlib.suppress(OSError):  # gone meanwhile
            for buffer in message(head, body):
                self._transport.write(buffer)
