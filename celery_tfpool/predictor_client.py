"""Ask a predictor: a child's end of the conversation that `predictor` describes.

A prediction has no side effects, so a request whose predictor ended is asked
once more, of another one or of its replacement.  If that one ends as well, the
request itself may be the cause, and whoever asked learns how it ended.

Nothing here needs TensorFlow to be initialised.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing.connection
import os
import socket
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from . import errors
from .arrays import CannotEncode, decode, encode
from .errors import InvalidInputError, PredictionError, PredictionTimeout, PredictorUnavailable
from .inputs import inputs_of_json
from .load_board import LoadBoard
from .messages import Message, Reader, message
from .ports import describe
from .runner import check_batch_size, count_rows
from .values import Misfit, arrays, is_plain, is_tensor

#: How many predictors may end under one request.
_TRIES = 2
#: Seconds to wait for worker main's word on how a predictor ended.
_PATIENCE = 5.0
#: Errors that a predictor may answer with.
_ERRORS = {cls.__name__: cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, Exception)}


@dataclass(frozen=True)
class Predictors:
    """Where the predictors of a worker are, and what they have."""

    folder: str
    #: Name of a model → the predictors that have it, and what they said of it.
    models: dict[str, tuple[tuple[int, ...], dict[str, Any]]]
    response_timeout: float


def socket_path(folder: str, index: int) -> str:
    return os.path.join(folder, f"predictor-{index}")


def coroner_path(folder: str) -> str:
    """Where worker main answers how a predictor ended."""
    return os.path.join(folder, "supervisor")


class _Gone(Exception):
    """The predictor of this connection has ended."""


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
        with contextlib.suppress(BlockingIOError):
            return self._socket.recv(1, socket.MSG_PEEK) != b""
        return True

    def ask(self, buffers: Sequence[Any], deadline: float) -> Message:
        """Send a message and wait for the answer.

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
                    if "pid" not in head:
                        return head, body
                    self.pid = head["pid"]
        except ConnectionError as exc:
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


class Client:
    """What this process asks predictors with; any number of threads may."""

    def __init__(self, folder: str, response_timeout: float) -> None:
        self._folder, self._timeout = folder, response_timeout
        self._idle: dict[int, list[_Connection]] = defaultdict(list)
        self._board = LoadBoard(folder)

    def predict(self, model: str, indices: tuple[int, ...], x: Any, batch_size: int) -> Any:
        """The outputs of ``model`` for ``x``, from the least busy of the predictors ``indices``.

        Raises:
            TFPoolError: what the predictor answered; or `PredictorUnavailable`, `PredictionTimeout`.
        """
        try:
            description, body = encode(x)
        except CannotEncode as exc:
            raise PredictionError(model, f"its inputs {exc}") from exc
        head = {"do": "predict", "model": model, "x": description, "batch_size": batch_size}
        answer, outputs = self._ask(model, indices, message(head, body))
        if "error" in answer:
            raise _ERRORS[answer["error"]](*answer["args"])
        return decode(answer["outputs"], outputs)

    def _ask(self, model: str, indices: tuple[int, ...], buffers: Sequence[Any]) -> Message:
        deadline = time.monotonic() + self._timeout
        for tries_left in reversed(range(_TRIES)):
            index = self._board.least_busy(indices)
            pid = None
            try:
                connection = self._connection(index, deadline)
                pid = connection.pid
                with _closed_unless_answered(connection):
                    answer = connection.ask(buffers, deadline)
                self._idle[index].append(connection)
                return answer
            except TimeoutError:
                raise PredictionTimeout(model, self._timeout) from None
            except (_Gone, ConnectionError, FileNotFoundError):
                cause = self._cause(index, pid or connection.pid)
                if not tries_left:
                    raise PredictorUnavailable(model, cause) from None
        raise AssertionError("unreachable")

    def _connection(self, index: int, deadline: float) -> _Connection:
        idle = self._idle[index]
        while idle:
            with contextlib.suppress(IndexError):  # another thread was faster
                connection = idle.pop()
                if connection.is_open():
                    return connection
                connection.close()
        return _Connection(self._folder, index, deadline)

    def _cause(self, index: int, pid: int | None) -> str:
        """How the predictor ended, in worker main's words, which come once it has noticed."""
        try:
            with multiprocessing.connection.Client(coroner_path(self._folder)) as supervisor:
                supervisor.send_bytes(json.dumps([index, pid]).encode())
                if supervisor.poll(_PATIENCE):
                    return supervisor.recv_bytes().decode()
        except (OSError, EOFError):
            return "the worker is stopping"
        return f"predictor {index} closed the connection"

    def stats(self, index: int, timeout: float) -> dict[str, Any] | None:
        """What predictor ``index`` says of itself; None when it does not answer in time."""
        deadline = time.monotonic() + timeout
        try:
            connection = _Connection(self._folder, index, deadline)
            with contextlib.closing(connection):
                return dict(connection.ask(message({"do": "stats"}), deadline)[0]["stats"])
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
        self._inputs = None if facts["inputs"] is None else inputs_of_json(facts["inputs"])

    def takes(self, x: Any) -> bool:
        """Whether ``x`` is plain data, which can be sent."""
        return is_plain(x)

    def predict(self, x: Any, batch_size: int) -> Any:
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
        return self._client.predict(self.name, self._indices, values, int(batch_size))

    def _sendable(self, x: Any) -> Any:
        if self._inputs is None:
            return _of_numpy(arrays(x)) if not isinstance(x, (list, tuple)) or x else x
        values = self._inputs.fit(x)
        count_rows(values)
        return list(map(_of_numpy, values))


def _of_numpy(x: Any) -> Any:
    if isinstance(x, dict):
        return {key: _of_numpy(part) for key, part in x.items()}
    if isinstance(x, (list, tuple)):
        return type(x)(map(_of_numpy, x))
    return x.numpy() if is_tensor(x) else x
