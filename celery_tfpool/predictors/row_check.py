"""May rows of different requests share a call of a model?  Only where that is known to be harmless.

Known is what the graph tells (it writes to a state, it has a fixed number of
rows, it calls Python) and what a trial shows: rows computed together must
give what each of them gives alone.  What cannot be tried is not known, and
goes alone, as Keras would compute it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any

import numpy as np

from ..engines.row_mixing import mixes_rows
from ..engines.state import keeps_state
from ..runners.compare import are_close, precision_of
from ..runners.convert import short
from ..runners.protocol import Compiled
from ..runners.spec import Port

#: How large the numbers of each row of a trial are, of which the first two are equal; where these are too much, others.
SCALES = ((1.0, 1.0, 4.0, -2.0, 0.5, 3.0), (1.0, 1.0, 0.5, 0.25, 0.125, 0.75))
#: The same once more, of what only some models can take: larger than pixels, no numbers, as pixels.
WIDE = (1e4, 1e4, float("nan"), 300.0, 1.0, 2.0)
ROWS = len(WIDE)
#: Of a trial, the rows that are computed alone as well.
_ALONE = (0, 1, 4, 5)
#: By how much coarser the comparison of these is: rounding grows in a deep network that was not made for them.
_COARSE = 256.0
#: Up to such a scale whole numbers are 0 and 1.
_NARROW = 10.0

#: Operations that call back into Python.
_PYTHON = {"PyFunc", "PyFuncStateless", "EagerPyFunc"}


class Reason(Enum):
    """Why requests of different tasks do not share a call."""

    SIZE = "max_batch_size is 1"
    REFUSED = "batch is False"
    ONE_VALUE = "an input of it is one value for all rows, which each request gives for itself"
    NO_GRAPH = "Keras does not run on TensorFlow, and so there is no graph that says what becomes of rows"
    FIXED_ROWS = "it takes a fixed number of rows"
    LAYERS = "it asks for outputs of layers, of which nobody has seen whether their rows are apart"
    NO_ROWS = "its outputs do not have a row for each row of its inputs"
    STATE = "it keeps a state from one call to the next"
    DEPENDENT = "the outputs of a row depend on the other rows"
    RANDOM = "its outputs are random"
    PYTHON = "it calls Python code, which may keep a state"
    NO_NOISE = "it takes strings or booleans, with which no trial can be made"
    NOT_TRIED = "it has not been tried yet: its first requests show what it takes"
    TRIAL_FAILED = "a trial with a few rows failed"
    MIXING = "it may look at several rows together where a trial has not shown it"
    NO_TIME = "it is too slow to be tried"

    @property
    def is_known(self) -> bool:
        """Whether it is a fact of the model or of the settings, and not a lack of knowledge."""
        return self not in _NOT_KNOWN

    @property
    def is_absolute(self) -> bool:
        """Whether even ``batch = True`` changes nothing: the rows cannot be put together or told apart."""
        return self in (Reason.SIZE, Reason.ONE_VALUE, Reason.FIXED_ROWS, Reason.NO_ROWS, Reason.NO_GRAPH)


_NOT_KNOWN = {
    *(Reason.PYTHON, Reason.NO_NOISE, Reason.NOT_TRIED, Reason.TRIAL_FAILED, Reason.MIXING, Reason.NO_TIME),
}


# -- what the graph tells --------------------------------------------------------


def of_graph(compiled: Compiled, inputs: Sequence[Port]) -> Reason | None:
    """Why requests may not share a call, as far as the graph tells; None when nothing speaks against it."""
    import keras

    operations = compiled.operations()
    if keeps_state(operations):
        return Reason.STATE
    if any(not port.shape for port in inputs):
        return Reason.ONE_VALUE
    if any(port.shape[0] is not None for port in inputs):
        return Reason.FIXED_ROWS
    for symbol in keras.tree.flatten(compiled.outputs):
        shape = symbol.shape
        if shape.rank is not None and (shape.rank == 0 or shape[0] is not None):
            return Reason.NO_ROWS
    return Reason.PYTHON if operations & _PYTHON else None


# -- what a trial shows ----------------------------------------------------------


def noise(inputs: Sequence[Port], scales: Sequence[float]) -> list[Any] | None:
    """Rows for each input, of numbers up to one each of ``scales``; None where no such can be made."""
    random = np.random.default_rng(0)
    values = []
    for port in inputs:
        row = port.zeros()
        if row.dtype.kind in "OSUb":
            return None
        shape = (ROWS, *row.shape[1:])
        if row.dtype.kind in "iu":  # of which any may be out of bounds, but for the first two
            drawn = random.integers(0, 2 if max(scales) <= _NARROW else 100, shape)
        else:
            drawn = random.random(shape) * np.reshape(scales, (ROWS, *[1] * (len(shape) - 1)))
        drawn[1] = drawn[0]
        values.append(drawn.astype(row.dtype))
    return values


def like(values: Sequence[Any]) -> list[Any] | None:
    """Rows after the first of ``values``, the rows of a real request; None where no such can be made."""
    random = np.random.default_rng(0)
    made = []
    for value in map(np.asarray, values):
        if value.dtype.kind in "OSUTb" or not value.size:
            return None
        rows = np.repeat(value[:1], ROWS, axis=0)
        for row in rows[2:]:  # the first two are equal
            if row.dtype.kind in "iu":  # no other numbers than those that came
                row[...] = random.choice(value.reshape(-1), row.shape)
            else:
                row[...] = (row * (0.5 + random.random(row.shape)) + random.random(row.shape)).astype(row.dtype)
        made.append(rows)
    return made


def with_noise(compiled: Compiled, inputs: Sequence[Port], has_time: bool) -> tuple[Reason | None, str]:
    """What trials with noise say, if there is time for them; and what became of one that failed."""
    precision = precision_of(compiled)
    reason, detail = None, ""
    for scales in SCALES:
        values = noise(inputs, scales)
        if values is None or not has_time:
            return Reason.NO_NOISE if values is None else Reason.NO_TIME, ""
        reason, detail = _tried(compiled, values, precision)
        if reason is not Reason.TRIAL_FAILED:
            break
    if reason is None:
        of_wide, _ = _tried(compiled, noise(inputs, WIDE) or (), _COARSE * precision)
        reason = of_wide if of_wide is not Reason.TRIAL_FAILED else None  # few models take such numbers
    return _unless_mixing(compiled, reason, detail)


def with_request(compiled: Compiled, values: Sequence[Any], has_time: bool) -> tuple[Reason | None, str]:
    """What a trial with rows like those of a real request says, if there is time for it; and why one failed."""
    rows = like(values)
    if rows is None or not has_time:
        return Reason.NO_NOISE if rows is None else Reason.NO_TIME, ""
    return _unless_mixing(compiled, *_tried(compiled, rows, precision_of(compiled)))


def _tried(compiled: Compiled, values: Sequence[Any], precision: float) -> tuple[Reason | None, str]:
    try:
        return of_trial(compiled, values, precision), ""
    except Exception as exc:  # the values are not for every model
        return Reason.TRIAL_FAILED, f"{type(exc).__name__}: {short(exc)}"


def _unless_mixing(compiled: Compiled, reason: Reason | None, detail: str) -> tuple[Reason | None, str]:
    """``reason``; where there is none, what of the graph the trial may not have shown."""
    if reason is None and (found := mixes_rows(compiled.graph_def())):
        return Reason.MIXING, found
    return reason, detail


def of_trial(compiled: Compiled, values: Sequence[Any], precision: float) -> Reason | None:
    """Whether rows that are computed together give what each of them gives alone; None when they do.

    Args:
        precision: how far numbers may be apart, see `compare.are_close`.

    Raises:
        Exception: whatever the model says of these rows.
    """
    import keras

    def call(start: int, stop: int) -> list[Any]:
        return [np.asarray(leaf) for leaf in keras.tree.flatten(compiled(*(value[start:stop] for value in values)))]

    together = call(0, ROWS)
    if any(leaf.shape[:1] != (ROWS,) for leaf in together):
        return Reason.NO_ROWS
    apart = [call(row, row + 1) for row in _ALONE]
    if any(leaf.shape[:1] != (1,) for one in apart for leaf in one):
        return Reason.NO_ROWS
    joined = [np.concatenate(leaves) for leaves in zip(*apart, strict=True)]
    together = [leaf[list(_ALONE)] for leaf in together]
    if all(are_close(*pair, precision) for pair in zip(together, joined, strict=True)):
        is_finite = all(_is_finite(leaf) for leaf in together)
        return None if is_finite else Reason.TRIAL_FAILED  # what is no number shows nothing
    again = [leaf[list(_ALONE)] for leaf in call(0, ROWS)]
    is_random = not all(are_close(*pair, precision) for pair in zip(together, again, strict=True))
    return Reason.RANDOM if is_random else Reason.DEPENDENT


def _is_finite(leaf: Any) -> bool:
    return leaf.dtype.kind in "OSUTbiu" or bool(np.isfinite(leaf.astype("complex128")).all())


def agree(one: Callable[..., Any], other: Callable[..., Any], values: Sequence[Any], precision: float) -> bool:
    """Whether two calls give the same for the same ``values``."""
    import keras

    both = zip(keras.tree.flatten(one(*values)), keras.tree.flatten(other(*values)), strict=True)
    return all(are_close(leaf, expected, precision) for expected, leaf in both)
