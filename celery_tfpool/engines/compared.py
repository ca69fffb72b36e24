"""How far apart two calls of one model are, on noise.

One of them is TensorFlow's, which says what is right and what it takes; of the
other nothing is known.  Both take flat arrays, so nothing here knows a library.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .protocol import CannotConvert, Flat, FlatCall

#: An array for each input or output.
Values: TypeAlias = Sequence[NDArray[Any]]
#: Inputs, and the outputs that are right.
Pairs: TypeAlias = Sequence[tuple[Values, Values]]

#: The largest difference that is only rounding, relative to the largest value of an output.
TOLERANCE = 1e-5

#: Rows, and the size of a dimension that may vary: powers of two first, which networks that halve images want.
_SIZES = ((3, 32), (1, 32), (33, 32), (2, 64), (2, 19), (1, 1))
#: Floats below this and not negative, or of both signs where it is None; and whole numbers below this.  Nobody says
#: of a number whether it counts the words of a vocabulary, nor how many these are.
_RANGES = ((None, 1000), (None, 100), (None, 10), (None, 2), (10.0, 10), (1.0, 2))


def call_of(function: Callable[..., Any]) -> FlatCall:
    """TensorFlow's own call of a traced function, of flat arrays."""
    import tensorflow as tf

    def call(*values: NDArray[Any]) -> list[NDArray[Any]]:
        outputs = function(*map(tf.constant, values))
        return [output.numpy() for output in tf.nest.flatten(outputs, expand_composites=True)]

    return call


def noise(inputs: Sequence[Flat], expected: FlatCall) -> Iterator[tuple[Values, Values]]:
    """Inputs that the model takes, with its outputs: of one row and several, and of several sizes where they may vary.

    Raises:
        CannotConvert: the model takes no noise.
    """
    reason, varies = "", any(None in (flat.shape or ())[1:] for flat in inputs)
    for floats, integers in _RANGES:
        found = False
        for rows, size in _SIZES if varies else _SIZES[:3]:
            values = [_of(flat, rows, size, floats, integers) for flat in inputs]
            try:
                outputs = expected(*values)
            except Exception as exc:  # whatever TensorFlow says of numbers or sizes that are not for this model
                reason = reason or f"{type(exc).__name__}: {' '.join(str(exc).split())[:200]}"
                if not found and (rows, size) == _SIZES[0]:
                    break  # numbers of another range, perhaps
                continue
            found = True
            yield values, outputs
        if found:
            return
    raise CannotConvert(f"it takes no noise on which numbers could be compared ({reason})")


def _of(flat: Flat, rows: int, size: int, floats: float | None, integers: int) -> NDArray[Any]:
    if flat.shape is None:
        raise CannotConvert(f"not even the rank of its input {flat.name!r} is known")
    random = np.random.default_rng(rows * 1000 + size)
    # Another size for each axis, so that no two are taken for each other.
    shape = [axis * size if known is None else known for axis, known in enumerate(flat.shape)]
    if shape and flat.shape[0] is None:
        shape[0] = rows
    if flat.dtype == "bool":
        return random.random(shape) < 0.5
    if "int" in flat.dtype:
        drawn = random.integers(0, min(integers, 100) if flat.dtype.endswith("int8") else integers, shape)
    else:
        drawn = random.normal(size=shape) if floats is None else random.random(shape) * floats
    if len(shape) > 1 and shape[0] > 1:
        drawn[1, shape[1] * 2 // 3 :] = 0  # as what a mask hides
    return drawn.astype(flat.dtype)


def differences(ours: FlatCall, outputs: Sequence[Flat], pairs: Pairs) -> tuple[float, ...]:
    """The largest difference of each output, relative to its largest value in all of ``pairs``.

    An output that is a single number may come to nought for some inputs, and then any rounding is large beside it.

    Args:
        ours: the call that is compared.
        pairs: inputs of one kind, and the outputs that are right.

    Raises:
        CannotConvert: outputs are of another shape or dtype.
        Exception: whatever ``ours`` raises.
    """
    apart, largest = np.zeros(len(outputs)), np.zeros(len(outputs))
    for values, expected in pairs:
        found = ours(*values)
        for number, (flat, one, other) in enumerate(zip(outputs, found, expected, strict=True)):
            if (one.shape, one.dtype) != (other.shape, other.dtype):
                is_, should_be = (f"{array.dtype} {array.shape}" for array in (one, other))
                raise CannotConvert(f"its output {flat.name!r} is {is_} instead of {should_be}")
            difference, size = _difference(one, other)
            apart[number], largest[number] = max(apart[number], difference), max(largest[number], size)
    nothing = [float("inf") if difference else 0.0 for difference in apart]  # where all values are 0
    return tuple(map(float, np.divide(apart, largest, out=np.array(nothing), where=largest > 0)))


def check(found: Sequence[float], outputs: Sequence[Flat]) -> None:
    """See whether differences are only rounding.

    Raises:
        CannotConvert: they are not; says which and how much.
    """
    for difference, flat in zip(found, outputs, strict=True):
        if not difference <= TOLERANCE:
            raise CannotConvert(
                f"its output {flat.name!r} differs from TensorFlow's by {difference:.1e} of its largest value, "
                f"more than {TOLERANCE:.0e}"
            )


def _difference(one: NDArray[Any], other: NDArray[Any]) -> tuple[float, float]:
    """By how much they differ at most, and the largest value of ``other``."""
    if one.dtype.kind not in "fcV":  # what ml_dtypes adds is of kind V
        return (0.0 if np.array_equal(one, other) else float("inf")), 1.0
    one, other = one.astype("complex128"), other.astype("complex128")
    finite = np.isfinite(other)
    if not np.array_equal(one[~finite], other[~finite], equal_nan=True) or not np.isfinite(one[finite]).all():
        return float("inf"), 1.0
    one, other = one[finite], other[finite]
    return float(np.abs(one - other).max(initial=0.0)), float(np.abs(other).max(initial=0.0))
