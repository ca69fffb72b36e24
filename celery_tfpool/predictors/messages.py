"""What processes say to each other about predictors: heads of messages, each checked by whoever gets it.

Over a predictor's socket (`framing` adds the body, which holds the arrays):

    it says first     Greeting
    AskPrediction     → Outputs, or Refusal
    AskStatistics     → Counters

From a new predictor to worker main, one line: `Ready` or `Failed`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, TypeAlias

from .. import errors
from ..errors import PredictionError
from ..runners.convert import short
from .framing import BadMessage

#: Numbers of requests, and rows of a batch, are less than that: they are written to files of fixed width.
_MOST = 2**63
#: Errors that keep their class and arguments on their way.
_ERRORS = {cls.__name__: cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, Exception)}


class _Head:
    """Fields are the keys of a JSON object, beside ``"is"``, which tells what it is."""

    KIND: ClassVar[str] = ""

    def to_json(self) -> dict[str, Any]:
        """The head of a message."""
        return {"is": self.KIND, **vars(self)}


@dataclass(frozen=True)
class _OfRequest(_Head):
    #: Of this request alone, among those of all processes of a worker.
    id: int

    def check(self) -> None:
        """Raise `BadMessage` unless each field is what it must be."""
        _check(_is_whole(self.id, 0), "id", self.id)


@dataclass(frozen=True)
class AskPrediction(_OfRequest):
    """One request."""

    KIND: ClassVar[str] = "predict"
    model: str
    #: Describes the body, see `codec`.
    x: Any
    #: Rows of a call, as the caller of ``predict`` said.
    batch_size: int | None
    #: Of which layers the outputs are wanted; None: of the model.
    outputs: str | list[str] | None
    #: Whether it must share no call; whether another predictor had admitted it before.
    alone: bool
    again: bool
    #: When nobody waits any more, by ``time.monotonic``, and the limit to be named then; None: no answer is needed.
    deadline: float
    limit: str | None

    def check(self) -> None:
        """Raise `BadMessage` unless each field is what it must be."""
        super().check()
        size = self.batch_size
        _check(isinstance(self.model, str), "model", self.model)
        _check(size is None or _is_whole(size, 1), "batch_size", size)
        names = self.outputs if isinstance(self.outputs, list) else [self.outputs or ""]
        _check(all(isinstance(name, str) for name in names), "outputs", self.outputs)
        _check(type(self.alone) is bool and type(self.again) is bool, "alone, again", (self.alone, self.again))
        is_moment = type(self.deadline) in (int, float) and abs(self.deadline) < _MOST
        _check(is_moment, "deadline", self.deadline)
        _check(self.limit is None or isinstance(self.limit, str), "limit", self.limit)


@dataclass(frozen=True)
class AskStatistics(_OfRequest):
    """What the predictor has done."""

    KIND: ClassVar[str] = "stats"


@dataclass(frozen=True)
class Greeting(_Head):
    """Which process this is."""

    KIND: ClassVar[str] = "hello"
    pid: int

    def check(self) -> None:
        """Raise `BadMessage` unless each field is what it must be."""
        _check(_is_whole(self.pid, 1), "pid", self.pid)


@dataclass(frozen=True)
class Outputs(_OfRequest):
    """Of request ``id``; ``x`` describes the body."""

    KIND: ClassVar[str] = "outputs"
    x: Any


@dataclass(frozen=True)
class Refusal(_OfRequest):
    """Why there are no outputs: an error of `errors`, and its arguments."""

    KIND: ClassVar[str] = "error"
    error: str
    args: list[Any]

    def check(self) -> None:
        """Raise `BadMessage` unless each field is what it must be."""
        super().check()
        _check(self.error in _ERRORS, "error", self.error)
        _check(isinstance(self.args, list), "args", self.args)

    @classmethod
    def of(cls, number: int, model: str, exc: BaseException) -> Refusal:
        """Of request ``number``; what is no error of ours, or a subclass of one, is told in words."""
        if type(exc) not in _ERRORS.values() or not all(isinstance(arg, _PLAIN) for arg in exc.args):
            exc = PredictionError(model, f"{type(exc).__name__}: {short(exc)}")
        return cls(number, type(exc).__name__, list(exc.args))

    def exception(self) -> Exception:
        """To be raised where the outputs were wanted."""
        return _ERRORS[self.error](*self.args)


#: Arguments of errors that JSON keeps.
_PLAIN = (str, int, float, type(None))


@dataclass(frozen=True)
class Counters(_OfRequest):
    """What a predictor has done, for ``celery inspect``."""

    KIND: ClassVar[str] = "counters"
    stats: dict[str, Any]

    def check(self) -> None:
        """Raise `BadMessage` unless each field is what it must be."""
        super().check()
        _check(isinstance(self.stats, dict), "stats", self.stats)


Head: TypeAlias = AskPrediction | AskStatistics | Greeting | Outputs | Refusal | Counters
_HEADS: dict[str, type[Head]] = {
    cls.KIND: cls for cls in (AskPrediction, AskStatistics, Greeting, Outputs, Refusal, Counters)
}


def head_of(json_object: dict[str, Any]) -> Head:
    """The head of a message that has come.

    Raises:
        BadMessage: it is none.
    """
    fields = dict(json_object)
    kind = fields.pop("is", None)
    if not isinstance(kind, str) or (cls := _HEADS.get(kind)) is None:
        raise BadMessage(f"it is a {kind!r:.100}")
    try:
        head = cls(**fields)
    except TypeError as exc:
        raise BadMessage(f"a {kind!r} with other fields ({short(exc)})") from exc
    head.check()
    return head


def _is_whole(value: Any, least: int) -> bool:
    return type(value) is int and least <= value < _MOST


def _check(is_right: bool, field: str, value: Any) -> None:
    if not is_right:
        raise BadMessage(f"{field} is {value!r:.100}")


# -- from a new predictor to worker main ---------------------------------------------


@dataclass(frozen=True)
class ModelFacts:
    """What whoever asks has to know of a model that a predictor has; JSON-friendly."""

    #: Why it must be loaded where it is used; empty where it need not be.
    only_here: str
    #: What it takes, see `runners.inputs`; None of a model that does not say so.
    inputs: Any
    #: Keras's default dtype, where it was loaded.
    floatx: str
    #: Why its requests share no call; empty where they do.
    alone: str
    frozen: bool
    packed: bool
    #: Rows of a batch, and batches at a time.
    max_batch_size: int
    parallel: int
    #: Of which layers it gives the outputs.
    layers: list[str]


@dataclass(frozen=True)
class Ready:
    """It has its models."""

    models: dict[str, ModelFacts]


@dataclass(frozen=True)
class Failed:
    """It has not, and ends."""

    reason: str


def line_of(words: Ready | Failed) -> bytes:
    """As it is written to the pipe that worker main reads."""
    return json.dumps({type(words).__name__: asdict(words)}).encode() + b"\n"


def words_of(line: bytes) -> Ready | Failed:
    """The inverse of `line_of`, of which both ends are of the same version."""
    ((kind, fields),) = json.loads(line).items()
    if kind == Failed.__name__:
        return Failed(**fields)
    return Ready({name: ModelFacts(**facts) for name, facts in fields["models"].items()})
