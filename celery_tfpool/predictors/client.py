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
import json
import os
import socket
import time
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .. import errors
from ..errors import InvalidInputError, PredictionError, PredictionTimeout, PredictorUnavailable
from ..runners.convert import Misfit, arrays, is_plain, is_tensor
from ..runners.inputs import Named, inputs_of_json
from ..runners.protocol import check_batch_size, count_rows
from ..runners.spec import describe
from ..runners.structure import CannotEncode, map_leaves
from . import casualties
from .busyness import LoadBoard
from .codec import decode, encode
from .framing import BadMessage, Message, Reader, message

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
#: Errors that a predictor may answer with.
_ERRORS = {cls.__name__: cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, Exception)}


@dataclass(frozen=True)
class Predictors:
    """Where the predictors of a worker are, and what they have."""

    folder: str
    #: Name of a model → the predictors that have it, and what they said of it.
    models: dict[str, tuple[tuple[int, ...], dict[str, Any]]]
    response_timeout: float
    max_request_bytes: int


@dataclass(frozen=True)
class Limits:
    """Moments, by ``time.monotonic``, after which nobody waits for what a task does; None where there is none."""

    #: Celery itself ends the wait then.
    time_limit: float | None = None
    expires: float | None = None


def socket_path(folder: str, index: int) -> str:
    return os.path.join(folder, f"predictor-{index}")


def coroner_path(folder: str) -> str:
    """Where worker main answers how a predictor ended."""
    return os.path.join(folder, "supervisor")


class _Gone(Exception):
    """The predictor of this connection has ended, or closed it."""


class _Unreachable(Exception):
    """There is no connection to be had; the text says why."""


class _Connection:
    """A socket to one predictor, for one request at a time."""

    def __init__(self, folder: str, index: int, deadline: float) -> None:
        self.index = index
        #: Of the process at the other end, once it has accepted.
        self.pid: int | None = None
        self._reader = Reader()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(_left(deadline))
        try:
            self._socket.connect(socket_path(folder, index))
        except BaseException:
            self._socket.close()
            raise

    def is_open(self) -> bool:
        """Whether the other end is still there."""
        self._socket.settimeout(0)
        try:
            return self._socket.recv(1, socket.MSG_PEEK) != b""
        except BlockingIOError:
            return True
        except OSError:
            return False

    def ask(self, number: int, buffers: Sequence[Any], deadline: float) -> Message:
        """Send message ``number`` and wait for the answer to it.

        Raises:
            TimeoutError: it did not come in time.
            _Gone: the predictor has ended.
        """
        try:
            for buffer in buffers:
                self._socket.settimeout(_left(deadline))
                self._socket.sendall(buffer)
            while True:
                for head, body in self._receive(deadline):
                    if "pid" in head:
                        self.pid = head["pid"]
                    elif head.get("id") == number:
                        return head, body
                    else:  # somebody else has used this socket: nothing that comes from it can be trusted
                        raise BadMessage(f"an answer to request {head.get('id')!r} instead of {number}")
        except (ConnectionError, BadMessage) as exc:
            self._drain()
            raise _Gone from exc

    def _receive(self, deadline: float) -> list[Message]:
        self._socket.settimeout(_left(deadline))
        count = self._socket.recv_into(self._reader.buffer())
        if not count:
            raise _Gone
        return self._reader.received(count)

    def _drain(self) -> None:
        """The greeting may have come before the connection broke."""
        with contextlib.suppress(OSError, _Gone, ValueError):
            for head, _ in self._receive(time.monotonic()):
                self.pid = head.get("pid", self.pid)

    def close(self) -> None:
        self._socket.close()


def _left(deadline: float) -> float:
    """Seconds until ``deadline``; not 0, which would mean not to wait."""
    return max(1e-3, deadline - time.monotonic())


#: Of this process, for its forks, which must not use them.
_clients: weakref.WeakSet[Client] = weakref.WeakSet()
_numbers = itertools.count(1)


def _new_number() -> int:
    """A number that no other request of this machine has, now or soon."""
    return os.getpid() << 32 | next(_numbers) & 0xFFFFFFFF


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
        self._idle: dict[int, list[_Connection]] = defaultdict(list)
        self._open: weakref.WeakSet[_Connection] = weakref.WeakSet()
        self._board = LoadBoard(self._folder)
        _clients.add(self)

    def forget_connections(self) -> None:
        """This is a fork: what it has inherited belongs to its parent, and is not kept open for it either."""
        for connection in list(self._open):
            connection.close()
        self._open.clear()
        self._idle.clear()

    def predict(self, model: str, indices: tuple[int, ...], x: Any, batch_size: int | None) -> Any:
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
        head = {"do": "predict", "model": model, "x": description, "batch_size": batch_size}
        answer, outputs = self._ask(model, indices, head, body)
        if "error" in answer:
            raise _ERRORS[answer["error"]](*answer["args"])
        return decode(answer["outputs"], outputs)

    def _ask(self, model: str, indices: tuple[int, ...], head: dict[str, Any], body: Sequence[Any]) -> Message:
        """The answer of some predictor; one that is being replaced is waited for."""
        started, limits = time.monotonic(), self._limits()
        waits_until, limit = started + self._timeout, "tf_response_timeout"
        if limits.expires is not None:
            waits_until, limit = min((waits_until, limit), (limits.expires, "expires"))
        deadline = min(waits_until, limits.time_limit or waits_until)
        # Whoever is interrupted by a time limit needs no answer that says so.
        head = {**head, "deadline": deadline, "limit": limit if deadline == waits_until else None}
        deaths = 0
        for attempt in itertools.count():
            index, number = self._board.least_busy(indices), _new_number()
            buffers = message({**head, "id": number, "alone": deaths > 0, "again": attempt > 0}, body)
            connection = None
            try:
                connection = self._connection(index, waits_until)
                with _closed_unless_answered(connection):
                    answer = connection.ask(number, buffers, waits_until)
                self._idle[index].append(connection)
                return answer
            except TimeoutError:
                raise PredictionTimeout(model, round(waits_until - started, 3), limit) from None
            except _Unreachable as exc:
                raise PredictorUnavailable(model, str(exc)) from None
            except _Gone:
                pid = connection.pid if connection else None
                end = self._how_it_ended(index, pid)
                if end is None:
                    raise PredictorUnavailable(model, f"predictor {index} closed the connection") from None
                deaths += pid is not None and casualties.was_computing(self._folder, index, pid, number)
                if deaths == _DEATHS:
                    raise PredictorUnavailable(model, f"{end}{_GUILTY}") from None
        raise AssertionError("unreachable")

    def _connection(self, index: int, deadline: float) -> _Connection:
        idle = self._idle[index]
        while idle:
            with contextlib.suppress(IndexError):  # another thread was faster
                connection = idle.pop()
                if connection.is_open():
                    return connection
                connection.close()
        try:
            connection = _Connection(self._folder, index, deadline)
        except BlockingIOError:
            raise _Unreachable(f"so many requests wait to be received by predictor {index} that no other may") from None
        except (
            ConnectionRefusedError,
            FileNotFoundError,
        ) as exc:  # its socket lives as long as worker main wants it to
            end = self._how_it_ended(index, None, patience=_MOMENT)
            raise _Unreachable(end or f"the socket of predictor {index} is gone ({exc.strerror})") from None
        self._open.add(connection)
        return connection

    def _how_it_ended(self, index: int, pid: int | None, patience: float = _PATIENCE) -> str | None:
        """How the predictor ended, in worker main's words, which come once it has noticed; None when it has not."""
        deadline, said = time.monotonic() + patience, b""
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as supervisor:
                supervisor.settimeout(patience)
                supervisor.connect(coroner_path(self._folder))
                supervisor.sendall(json.dumps([index, pid]).encode() + b"\n")
                while not said.endswith(b"\n") and (part := supervisor.recv(1 << 16)):
                    said += part
                    supervisor.settimeout(_left(deadline))
        except TimeoutError:
            return None
        except OSError:
            return "the worker is stopping"
        return said.decode().strip() or None


def ask_statistics(folder: str, index: int, timeout: float) -> dict[str, Any] | None:
    """What predictor ``index`` says of itself; None when it does not answer in time."""
    deadline, number = time.monotonic() + timeout, _new_number()
    try:
        connection = _Connection(folder, index, deadline)
        with contextlib.closing(connection):
            answer, _ = connection.ask(number, message({"do": "stats", "id": number}), deadline)
            return dict(answer["stats"])
    except (OSError, _Gone):
        return None


@contextlib.contextmanager
def _closed_unless_answered(connection: _Connection) -> Iterator[None]:
    """Whatever ends the wait (a time limit, the end of the task) ends the request, which goes with its connection."""
    try:
        yield
    except BaseException:
        connection.close()
        raise


class RemoteRunner:
    """Predicts with a model that predictors have; stands where a `Runner` of this process would."""

    keras_model = None

    def __init__(self, name: str, indices: tuple[int, ...], facts: dict[str, Any], client: Client) -> None:
        self.name = name
        self._indices, self._client = indices, client
        self._inputs = None
        if facts["inputs"] is not None:
            self._inputs = replace(inputs_of_json(facts["inputs"]), floatx=facts["floatx"])

    def takes(self, x: Any) -> bool:
        """Whether ``x`` is plain data, which can be sent."""
        return is_plain(x)

    def predict(self, x: Any, batch_size: int | None) -> Any:
        """As `Runner.predict`; how many rows share a call is for the predictor to say.

        Raises:
            InvalidInputError: ``x`` or ``batch_size`` does not fit.
            TFPoolError: as `Client.predict`.
        """
        check_batch_size(self.name, batch_size)
        try:
            values = self._sendable(x)
        except Misfit as exc:
            expected = describe(self._inputs.ports) if self._inputs else "what its call() takes"
            raise InvalidInputError(self.name, expected, str(exc)) from exc.__cause__
        return self._client.predict(self.name, self._indices, values, None if batch_size is None else int(batch_size))

    def _sendable(self, x: Any) -> Any:
        if self._inputs is None:
            return _of_numpy(arrays(x)) if not isinstance(x, (list, tuple)) or x else x
        values = self._inputs.fit(x)
        if not isinstance(self._inputs, Named):
            count_rows(values)
        return list(map(_of_numpy, values))


def _of_numpy(x: Any) -> Any:
    return map_leaves(lambda leaf: leaf.numpy() if is_tensor(leaf) else leaf, x)
