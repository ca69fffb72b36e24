"""A child's connections to predictors and to worker main, one question at a time."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import time
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

from .framing import BadMessage, Reader, message
from .messages import AskStatistics, Counters, Greeting, Head, Outputs, Refusal, head_of

#: Seconds until it is tried again to join a queue that is full.
_PAUSE = 0.01

_numbers = itertools.count(1)


def new_number() -> int:
    """A number that no other request of this machine has, now or soon."""
    return (os.getpid() & 0x7FFFFFFF) << 32 | next(_numbers) & 0xFFFFFFFF


def socket_path(folder: str, index: int) -> str:
    """Where predictor ``index`` listens."""
    return os.path.join(folder, f"predictor-{index}")


def coroner_path(folder: str) -> str:
    """Where worker main answers how a predictor ended."""
    return os.path.join(folder, "supervisor")


#: What a predictor answers, and its body.
Answer: TypeAlias = tuple[Outputs | Refusal | Counters, memoryview]


class Gone(Exception):
    """The predictor of this connection has ended, or closed it."""


class Unreachable(Exception):
    """There is no connection to be had; the text says why."""


class Connection:
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

    def ask(self, number: int, buffers: Sequence[Any], deadline: float) -> Answer:
        """Send message ``number`` and wait for the answer to it.

        Raises:
            TimeoutError: it did not come in time.
            Gone: the predictor has ended.
            Unreachable: what came cannot be received.
        """
        try:
            for buffer in buffers:
                self._socket.settimeout(_left(deadline))
                self._socket.sendall(buffer)
            while True:
                for head, body in self._receive(deadline):
                    if isinstance(head, Greeting):
                        self.pid = head.pid
                    elif isinstance(head, (Outputs, Refusal, Counters)) and head.id == number:
                        return head, body
                    else:  # somebody else has used this socket: nothing that comes from it can be trusted
                        raise BadMessage(f"no answer to request {number} but a {head.KIND!r}")
        except ConnectionError as exc:
            self._drain()
            raise Gone from exc
        except BadMessage as exc:
            raise Unreachable(f"what predictor {self.index} answered cannot be received: {exc}") from exc

    def _receive(self, deadline: float) -> list[tuple[Head, memoryview]]:
        self._socket.settimeout(_left(deadline))
        count = self._socket.recv_into(self._reader.buffer())
        if not count:
            raise Gone
        return [(head_of(head), body) for head, body in self._reader.received(count)]

    def _drain(self) -> None:
        """The greeting may have come before the connection broke."""
        with contextlib.suppress(OSError, Gone, ValueError):
            for head, _ in self._receive(time.monotonic()):
                if isinstance(head, Greeting):
                    self.pid = head.pid

    def close(self) -> None:
        """End it, and with it the request that it waits for."""
        self._socket.close()


def _left(deadline: float) -> float:
    """Seconds until ``deadline``; not 0, which would mean not to wait."""
    return max(1e-3, deadline - time.monotonic())


@contextlib.contextmanager
def closed_unless_answered(connection: Connection) -> Iterator[None]:
    """Whatever ends the wait (a time limit, the end of the task) ends the request, which goes with its connection."""
    try:
        yield
    except BaseException:
        connection.close()
        raise


def _connect(to_be: socket.socket, path: str, deadline: float) -> None:
    while True:
        try:
            return to_be.connect(path)
        except BlockingIOError:  # as many as may wait are waiting
            if time.monotonic() > deadline:
                raise
            time.sleep(_PAUSE)


def how_it_ended(folder: str, index: int, pid: int | None, patience: float) -> str | None:
    """How the predictor ended, in worker main's words, which come once it has noticed; None when it has not."""
    deadline, said = time.monotonic() + patience, b""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as supervisor:
            supervisor.settimeout(patience)
            _connect(supervisor, coroner_path(folder), deadline)
            supervisor.sendall(json.dumps([index, pid]).encode() + b"\n")
            while not said.endswith(b"\n") and (part := supervisor.recv(1 << 16)):
                said += part
                supervisor.settimeout(_left(deadline))
    except (TimeoutError, BlockingIOError):
        return None
    except OSError:
        return "the worker is stopping"
    return said.decode().strip() or None


def ask_statistics(folder: str, index: int, timeout: float) -> dict[str, Any] | None:
    """What predictor ``index`` says of itself; None when it does not answer in time."""
    deadline, question = time.monotonic() + timeout, AskStatistics(new_number())
    try:
        connection = Connection(folder, index, deadline)
        with contextlib.closing(connection):
            answer, _ = connection.ask(question.id, message(question.to_json()), deadline)
            return answer.stats if isinstance(answer, Counters) else None
    except (OSError, Gone, Unreachable):
        return None
