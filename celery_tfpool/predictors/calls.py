"""One request as a call of its model: alone, in parts, or together with others of the same key."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..runners.convert import concatenate
from ..runners.protocol import Compiled
from ..runners.rows import rows_between
from .batching import Part

if TYPE_CHECKING:
    from .served_model import ServedModel


class NotByRows(Exception):
    """The outputs of a batch do not have a row for each of its rows."""


class Abandoned(Exception):
    """Nobody waits for the outputs any more."""


@dataclass(eq=False)
class Call:
    """One request, ready to be computed: its values, and with whom it may share a batch."""

    model: ServedModel
    compiled: Compiled
    values: list[Any]
    rows: int
    #: Requests with equal keys may share a batch; None: this one goes alone.
    key: Hashable | None
    #: Rows of one call of it at most; None: all.
    batch_size: int | None
    #: Whether nothing else may be computed between its parts, or it has none.
    is_whole: bool = False
    is_wanted: Callable[[], bool] = lambda: True

    @property
    def is_quick(self) -> bool:
        """Whether it is sure to be over in a moment."""
        return self.model.is_quick and self.key is not None

    @property
    def parallel(self) -> int:
        """How many such calls may be computed at a time."""
        return self.model.parallel if self.key is not None else 1


def run(parts: Sequence[Part[Call]], *, in_one_thread: bool = False) -> list[Any]:
    """The outputs of each part, computed in one call, by one thread if that was found to be good.

    Raises:
        NotByRows: the outputs cannot be divided among the parts.
        Exception: whatever the model raises.
    """
    first = parts[0].request
    if first.is_whole:
        return [_whole(first)]
    pieces = (rows_between(part.request.values, part.start, part.stop) for part in parts)
    values = map(_joined, zip(*pieces, strict=True))
    compiled = (first.model.in_one_thread if in_one_thread else None) or first.compiled
    outputs = compiled(*values)
    if first.key is None:
        return [outputs]
    if len(parts) == 1:
        _check_rows(outputs, parts[0].rows)
        return [outputs]
    return list(_divided(outputs, [part.rows for part in parts]))


def alone(part: Part[Call]) -> Any:
    """The outputs of one part, computed without the others of its batch."""
    call = part.request
    return _whole(call) if call.is_whole else call.compiled(*rows_between(call.values, part.start, part.stop))


def _whole(call: Call) -> Any:
    """The outputs of all rows, in one go.

    Raises:
        Abandoned: nobody waits for them any more.
    """
    if call.batch_size is None:
        return call.compiled.whole(call.values)
    if call.rows == 0:
        return call.compiled.of_no_rows(call.values)
    size = call.batch_size
    pieces = []
    for start in range(0, call.rows, size):
        if not call.is_wanted():
            raise Abandoned
        pieces.append(call.compiled(*rows_between(call.values, start, start + size)))
    return pieces[0] if len(pieces) == 1 else concatenate(pieces)


def _joined(pieces: Sequence[Any]) -> Any:
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


def _check_rows(outputs: Any, rows: int) -> None:
    import keras

    for leaf in keras.tree.flatten(outputs):
        if not isinstance(leaf, np.ndarray) or leaf.shape[:1] != (rows,):
            raise NotByRows


def _divided(outputs: Any, counts: list[int]) -> Iterator[Any]:
    import keras

    _check_rows(outputs, sum(counts))
    start = 0
    for count in counts:
        yield keras.tree.map_structure(lambda leaf, a=start, b=start + count: leaf[a:b], outputs)
        start += count
