"""Ask a predictor: a child's end of the conversation that `predictor` describes.

A prediction has no side effects, so a request whose predictor ended is asked
again, of another one or of the replacement.  Who was being computed when the
predictor died may have been the cause: it is asked again alone, so that only
the guilty one dies a second time, and whoever asked learns how it ended.

A fork of a process that has asked makes connections of its own, and requests
are numbered, so that nobody takes an answer that is not for it.

Nothing here needs TensorFlow to be initialised.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import time
import weakref
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..errors import InvalidInputError, PredictionError, PredictionTimeout, PredictorUnavailable
from ..runners.structure import CannotEncode
from . import casualties
from .busyness import LoadBoard
from .codec import decode, encode
from .connection import Answer, Connection, Gone, Unreachable, closed_unless_answered, how_it_ended, new_number
from .framing import message
from .messages import AskPrediction, ModelFacts, Outputs, Refusal

#: How many predictors may die while they compute one request.
_DEATHS = 2
#: Why such a request is not asked again.
_GUILTY = (
    " while it computed this request, alone, as another had ended before: its inputs are probably the cause, "
    "and asking again would end the next predictor"
)
#: Seconds to wait for worker main's word on how a predictor ended.
_PATIENCE = 5.0
#: And where it knows at once, if at all.
_MOMENT = 0.5


@dataclass(frozen=True)
class Predictors:
    """Where the predictors of a worker are, and what they have."""

    folder: str
    #: Name of a model → the predictors that have it, and what they said of it.
    models: dict[str, tuple[tuple[int, ...], ModelFacts]]
    response_timeout: float
    max_request_bytes: int


@dataclass(frozen=True)
class Limits:
    """Moments, by ``time.monotonic``, after which nobody waits for what a task does; None where there is none."""

    #: Celery itself ends the wait then.
    time_limit: float | None = None
    expires: float | None = None


#: Of this process, for its forks, which must not use them.
_clients: weakref.WeakSet[Client] = weakref.WeakSet()


def _forget_connections() -> None:
    for client in list(_clients):
        client.forget_connections()


os.register_at_fork(after_in_child=_forget_connections)


class Client:
    """What this process asks predictors with; any number of threads, and of forks, may.

    Args:
        limits: of the task that runs in the calling thread.
    """

    def __init__(self, predictors: Predictors, limits: Callable[[], Limits] = Limits) -> None:
        self._folder, self._timeout = predictors.folder, predictors.response_timeout
        self._max_request_bytes, self._limits = predictors.max_request_bytes, limits
        self._idle: dict[int, list[Connection]] = defaultdict(list)
        self._open: weakref.WeakSet[Connection] = weakref.WeakSet()
        self._board = LoadBoard(self._folder)
        _clients.add(self)

    def forget_connections(self) -> None:
        """This is a fork: what it has inherited belongs to its parent, and is not kept open for it either."""
        for connection in list(self._open):
            connection.close()
        self._open.clear()
        self._idle.clear()

    def predict(
        self,
        model: str,
        indices: tuple[int, ...],
        x: Any,
        batch_size: int | None,
        outputs: str | list[str] | None = None,
    ) -> Any:
        """The outputs of ``model`` for ``x``, from the least busy of the predictors ``indices``.

        Raises:
            InvalidInputError: ``x`` is larger than ``tf_max_request_bytes``.
            TFPoolError: what the predictor answered; or `PredictorUnavailable`, `PredictionTimeout`.
        """
        try:
            description, body = encode(x)
        except CannotEncode as exc:
            raise PredictionError(model, f"its inputs {exc}") from exc
        size = sum(map(len, body))
        if size > self._max_request_bytes:
            most = f"inputs of at most {self._max_request_bytes:,} bytes in one request (tf_max_request_bytes)"
            raise InvalidInputError(model, most, f"{size:,} bytes")
        asked = AskPrediction(
            0, model, description, batch_size, outputs, alone=False, again=False, deadline=0.0, limit=None
        )
        answer, arrays = self._ask(indices, asked, body)
        if isinstance(answer, Refusal):
            raise answer.exception()
        assert isinstance(answer, Outputs)
        return decode(answer.x, arrays)

    def _ask(self, indices: tuple[int, ...], asked: AskPrediction, body: Sequence[Any]) -> Answer:
        """The answer of some predictor; one that is being replaced is waited for."""
        model, started, limits = asked.model, time.monotonic(), self._limits()
        waits_until, limit = started + self._timeout, "tf_response_timeout"
        if limits.expires is not None:
            waits_until, limit = min((waits_until, limit), (limits.expires, "expires"))
        deadline = min(waits_until, limits.time_limit or waits_until)
        # Whoever is interrupted by a time limit needs no answer that says so.
        asked = replace(asked, deadline=deadline, limit=limit if deadline == waits_until else None)
        deaths = 0
        for attempt in itertools.count():
            index, number = self._board.least_busy(indices), new_number()
            asked = replace(asked, id=number, alone=deaths > 0, again=attempt > 0)
            buffers = message(asked.to_json(), body)
            connection = None
            try:
                connection = self._connection(index, waits_until)
                with closed_unless_answered(connection):
                    answer = connection.ask(number, buffers, waits_until)
                self._idle[index].append(connection)
                return answer
            except TimeoutError:
                raise PredictionTimeout(model, round(waits_until - started, 3), limit) from None
            except Unreachable as exc:
                raise PredictorUnavailable(model, str(exc)) from None
            except Gone:
                pid = connection.pid if connection else None
                end = how_it_ended(self._folder, index, pid, _PATIENCE)
                if end is None:
                    raise PredictorUnavailable(model, f"predictor {index} closed the connection") from None
                deaths += pid is not None and casualties.was_computing(self._folder, index, pid, number)
                if deaths == _DEATHS:
                    raise PredictorUnavailable(model, f"{end}{_GUILTY}") from None
        raise AssertionError("unreachable")

    def _connection(self, index: int, deadline: float) -> Connection:
        idle = self._idle[index]
        while idle:
            with contextlib.suppress(IndexError):  # another thread was faster
                connection = idle.pop()
                if connection.is_open():
                    return connection
                connection.close()
        try:
            connection = Connection(self._folder, index, deadline)
        except TimeoutError:
            raise
        except BlockingIOError:
            raise Unreachable(f"so many requests wait to be received by predictor {index} that no other may") from None
        except (ConnectionRefusedError, FileNotFoundError) as exc:  # it lives as long as worker main wants it to
            end = how_it_ended(self._folder, index, None, _MOMENT)
            raise Unreachable(end or f"the socket of predictor {index} is gone ({exc.strerror})") from None
        except OSError as exc:
            raise Unreachable(f"no connection to predictor {index}: {exc.strerror or exc}") from exc
        self._open.add(connection)
        return connection
