"""What a predictor is asked, from its arrival to its answer, and what is computed at a time."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..errors import PredictionError, PredictionTimeout, TFPoolError
from ..runners.convert import concatenate, short
from .batching import Part
from .calls import Abandoned, Call
from .codec import decode
from .served_model import ServedModel


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

    @classmethod
    def of_message(
        cls, asker: Asker, models: Mapping[str, ServedModel], head: Mapping[str, Any], body: memoryview
    ) -> Request:
        """What has just come.

        Raises:
            KeyError, TypeError, ValueError, RecursionError: it makes no sense.
        """
        return cls(
            asker,
            int(head["id"]),
            models[head["model"]],
            decode(head["x"], body),
            head["batch_size"],
            bool(head["alone"]),
            bool(head["again"]),
            arrived=time.monotonic(),
            deadline=float(head["deadline"]),
            limit=head["limit"],
        )

    def is_wanted(self) -> bool:
        """Whether somebody still waits for it."""
        return not self.is_over and time.monotonic() < self.deadline

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
        seconds = round(self.deadline - self.arrived, 3)
        return Abandoned() if self.limit is None else PredictionTimeout(self.model.name, seconds, self.limit)

    def refusal(self, exc: BaseException) -> dict[str, Any]:
        """The head of the answer that says why there are no outputs."""
        if not isinstance(exc, TFPoolError):
            exc = PredictionError(self.model.name, f"{type(exc).__name__}: {short(exc)}")
        return {"id": self.number, "error": type(exc).__name__, "args": list(exc.args)}

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
