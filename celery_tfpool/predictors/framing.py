"""What goes over a socket between a child and a predictor: JSON, and bytes.

    4 bytes    "TFP1"
    4 bytes    length of the JSON
    8 bytes    length of the body
    …          JSON, then body

Knows nothing of what a message says, and nothing of sockets: `Reader` says
where the next bytes belong, and puts together whatever pieces come.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Any

from .codec import aligned

Message = tuple[dict[str, Any], memoryview]

_MAGIC = b"TFP1"
_PREFIX = struct.Struct("<4sIQ")
#: Bytes of JSON that are believed; a hundred outputs take a few thousand.
_MOST_JSON = 1 << 24
_SCRATCH = 1 << 16
_to_json = json.JSONEncoder(separators=(",", ":")).encode


class BadMessage(ValueError):
    """What came is no message of ours."""


def message(head: dict[str, Any], body: Sequence[Any] = ()) -> list[Any]:
    """Buffers to be sent one after another; what is small is one."""
    text = _to_json(head).encode()
    length = sum(map(len, body))
    start = _PREFIX.pack(_MAGIC, len(text), length) + text
    if length <= _SCRATCH:
        return [b"".join((start, *body))]
    return [start, *body]


class TooLarge(BadMessage):
    """A message that announces a larger body than is received here."""


class Reader:
    """Makes messages of bytes, however they come in pieces.

    Args:
        max_body: bytes of the largest body that is received; None: any.
    """

    def __init__(self, max_body: int | None = None) -> None:
        self._max_body = max_body
        self._scratch = memoryview(bytearray(_SCRATCH))
        #: Bytes in the scratch that belong to no message yet.
        self._have = 0
        #: The message whose body is being filled, and how much of it is.
        self._head: dict[str, Any] = {}
        self._body: memoryview | None = None
        self._filled = 0

    def buffer(self) -> memoryview:
        """Where the next bytes belong; never empty."""
        return self._scratch[self._have :] if self._body is None else self._body[self._filled :]

    def received(self, count: int) -> list[Message]:
        """So many bytes have come; the messages that are whole with them.

        Raises:
            BadMessage: this is no message; nothing that follows can be trusted.
        """
        if self._body is None:
            self._have += count
            return self._sort_out()
        self._filled += count
        if self._filled < len(self._body):
            return []
        whole, self._body = (self._head, self._body), None
        return [whole]

    def _sort_out(self) -> list[Message]:
        position, whole = 0, []
        while self._have - position >= _PREFIX.size:
            magic, json_length, body_length = _PREFIX.unpack_from(self._scratch, position)
            if magic != _MAGIC or json_length > _MOST_JSON:
                raise BadMessage(f"it begins with {bytes(self._scratch[position : position + _PREFIX.size])!r}")
            if self._max_body is not None and body_length > self._max_body:
                raise TooLarge(f"its body has {body_length:,} bytes, of which {self._max_body:,} at most are received")
            start = position + _PREFIX.size + json_length
            if self._have < start:
                break
            head = _head(self._scratch[position + _PREFIX.size : start])
            body, filled = _body(body_length), min(body_length, self._have - start)
            body[:filled] = self._scratch[start : start + filled]
            position = start + filled
            if filled < body_length:
                self._head, self._body, self._filled = head, body, filled
            else:
                whole.append((head, body))
        self._keep(position)
        return whole

    def _keep(self, position: int) -> None:
        """Move what is left to the front, with room for more."""
        left = bytes(self._scratch[position : self._have])
        if len(left) == len(self._scratch):
            self._scratch = memoryview(bytearray(2 * len(left)))
        elif len(self._scratch) > _SCRATCH > len(left):  # a long JSON is over
            self._scratch = memoryview(bytearray(_SCRATCH))
        self._scratch[: len(left)] = left
        self._have = len(left)


def _head(text: memoryview) -> dict[str, Any]:
    try:
        head = json.loads(str(text, "utf-8"))
    except (ValueError, RecursionError) as exc:
        raise BadMessage(f"its JSON is none ({exc})") from exc
    if not isinstance(head, dict):
        raise BadMessage("its JSON is no object")
    return head


def _body(length: int) -> memoryview:
    try:
        return aligned(length)
    except (MemoryError, ValueError, OverflowError) as exc:
        raise BadMessage(f"it says that its body has {length} bytes ({type(exc).__name__})") from exc
