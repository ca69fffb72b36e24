"""A predictor's end of a connection."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Sequence
from typing import Any

from ..runners.convert import short
from .codec import CannotDecode, decode
from .framing import BadMessage, Reader, message
from .messages import AskPrediction, AskStatistics, Counters, Greeting, Head, Outputs, Refusal, head_of
from .requests import Request
from .scheduler import Scheduler

logger: logging.Logger = logging.getLogger(__name__)


class Conversation(asyncio.BufferedProtocol):
    """One connection: one request at a time, and its answer."""

    _transport: asyncio.WriteTransport

    def __init__(self, scheduler: Scheduler, index: int, max_request_bytes: int) -> None:
        self._scheduler, self._index = scheduler, index
        self._reader = Reader(max_request_bytes)
        #: What waits for its answer; it refers to this, and its arrays are let go with it.
        self._request: Request | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet: whoever asks has to know which process this is."""
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport
        self._scheduler.connected(1)
        self.answer(Greeting(os.getpid()))

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes belong."""
        return self._reader.buffer()

    def buffer_updated(self, nbytes: int) -> None:
        """So many bytes have come."""
        try:
            for head, body in self._reader.received(nbytes):
                if self._request is not None and not self._request.is_over:
                    raise BadMessage("a second request before the answer to the first")
                self._take(head_of(head), body)
        except BadMessage as exc:
            logger.warning("predictor %d (pid %d): closing a connection: %s", self._index, os.getpid(), exc)
            self._transport.abort()

    def _take(self, head: Head, body: memoryview) -> None:
        """A message has come: answer it now, or make a request of it.

        Raises:
            BadMessage: it is no question, or what it asks makes no sense.
        """
        if isinstance(head, AskStatistics):
            self.answer(Counters(head.id, self._scheduler.facts()))
            return
        if not isinstance(head, AskPrediction):
            raise BadMessage(f"no question but {head.KIND!r}")
        if (model := self._scheduler.models.get(head.model)) is None:
            raise BadMessage(f"no model {head.model!r:.100}")
        try:
            self._request = Request(self, head, model, decode(head.x, body))
        except CannotDecode as exc:
            raise BadMessage(short(exc)) from exc
        self._scheduler.admit(self._request)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody waits any more."""
        request, self._request = self._request, None
        if request is not None and not request.is_over:
            self._scheduler.forget(request)
        self._scheduler.connected(-1)

    def answer(self, head: Head, body: Sequence[Any] = ()) -> None:
        """Send an answer; whoever asked may be gone."""
        if isinstance(head, (Outputs, Refusal)):
            self._request = None
        with contextlib.suppress(OSError):  # gone meanwhile
            for buffer in message(head.to_json(), body):
                self._transport.write(buffer)
