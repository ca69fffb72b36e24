"""What a predictor is asked, from its arrival to its answer, and what is computed at a time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..errors import PredictionTimeout
from ..runners.convert import concatenate
from .batching import Part
from .calls import Abandoned, Call
from .messages import AskPrediction, Head
from .served_model import ServedModel


class Asker(Protocol):
    """Whoever waits for an answer."""

    def answer(self, head: Head, body: Sequence[Any] = ()) -> None:
        """Send the answer to the one request that it waits for."""


@dataclass(eq=False)
class Request:
    """One request, from its arrival to its answer."""

    asker: Asker
    asked: AskPrediction
    model: ServedModel
    #: Its inputs, until it is prepared.
    x: Any
    arrived: float = field(default_factory=time.monotonic)
    #: None until it is prepared.
    call: Call | None = None
    #: Outputs of its parts, by their first row.
    pieces: dict[int, Any] = field(default_factory=dict)
    done_rows: int = 0
    started: float | None = None
    is_over: bool = False

    def is_wanted(self) -> bool:
        """Whether somebody still waits for it."""
        return not self.is_over and time.monotonic() < self.asked.deadline

    def end(self) -> None:
        """Nobody waits for it any more."""
        self.is_over = True
        if self.call is not None:  # which may still be computed; it refers to this no more
            self.call.is_wanted = _no

    def prepared(self, call: Call | None) -> None:
        """It is checked, and known with whom it may be computed; or not yet: that takes long."""
        self.call = call
        if call is not None:
            self.x = None
            call.is_wanted = self.is_wanted

    def outputs(self) -> Any:
        """Of all its parts, which were computed side by side and have ended in any order."""
        pieces = [piece for _, piece in sorted(self.pieces.items())]
        return pieces[0] if len(pieces) == 1 else concatenate(pieces)

    def too_late(self) -> Exception:
        """What it comes to when its deadline is over."""
        seconds, limit = round(self.asked.deadline - self.arrived, 3), self.asked.limit
        return Abandoned() if limit is None else PredictionTimeout(self.model.name, seconds, limit)

    @property
    def rows(self) -> int:
        """As they count for the queue: what is computed in one go is one."""
        return 1 if self.call is None or self.call.is_whole else self.call.rows


def _no() -> bool:
    return False


@dataclass(eq=False)
class Batch:
    """What is being computed."""

    parts: Sequence[Part[Request]]
    since: float
    #: Where it is noted what is computed.
    places: list[int] = field(default_factory=list)

    @property
    def first(self) -> Call | None:
        """The call of one of its requests, of which all have the same key."""
        return self.parts[0].request.call

    @property
    def rows(self) -> int:
        """How many are computed, as they count for the queue."""
        return sum(part.rows for part in self.parts)

    @property
    def inferences(self) -> int:
        """How many rows of outputs there will be."""
        return sum(_inferences(part) for part in self.parts)

    @property
    def parallel(self) -> int:
        """How many such batches may be computed at a time."""
        return self.first.parallel if self.first else 1


def _inferences(part: Part[Request]) -> int:
    call = part.request.call
    return 0 if call is None else call.rows if call.is_whole else part.rows
