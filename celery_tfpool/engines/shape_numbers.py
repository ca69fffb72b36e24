"""The numbers that shapes are made of, as far as a graph tells them: `Size`, computed as TensorFlow would.

A rule gives the numbers of the output of an operation in which nothing comes
from a row; None where they cannot be told.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate

from .row_axis import MANY, Numbers, Size, Value, product
from .row_rules import Operation

Rule = Callable[[Operation], Numbers | None]
#: Of each output.
RuleOfSeveral = Callable[[Operation], Sequence[Numbers | None]]


def _const(op: Operation) -> Numbers | None:
    import tensorflow as tf

    tensor = op.attr("value").tensor
    if tensor.dtype not in (tf.int32, tf.int64) or math.prod(dim.size for dim in tensor.tensor_shape.dim) > MANY:
        return None
    return tuple(Size(int(number)) for number in tf.make_ndarray(tensor).reshape(-1))


def _shape(op: Operation) -> Numbers | None:
    return op.inputs[0].sizes()


def _size(op: Operation) -> Numbers | None:
    sizes = op.inputs[0].sizes()
    return None if sizes is None else (_product_of(sizes),)


def _product_of(sizes: Numbers) -> Size | None:
    return None if None in sizes else product(size for size in sizes if size is not None)


def _rank(op: Operation) -> Numbers | None:
    shape = op.inputs[0].shape
    return None if shape is None else (Size(len(shape)),)


def _cast(op: Operation) -> Numbers | None:
    import tensorflow as tf

    are_whole = all(op.attr(name).type in (tf.int32, tf.int64) for name in ("SrcT", "DstT"))
    return op.inputs[0].numbers if are_whole else None


def _same(op: Operation) -> Numbers | None:
    return op.inputs[0].numbers


def _joined(op: Operation) -> Numbers | None:
    """Of vectors and scalars, one behind the other."""
    several = op.inputs[:-1] if op.node.op == "ConcatV2" else op.inputs
    if any(x.numbers is None or x.shape is None or len(x.shape) > 1 for x in several):
        return None
    if op.attr("axis").i and any(x.shape for x in several):  # side by side
        return None
    return tuple(number for x in several for number in x.numbers or ())


def _prod(op: Operation) -> Numbers | None:
    numbers = _of_vector(op.inputs[0])
    return (_product_of(numbers),) if numbers is not None and op.inputs[1].numbers else None


def _broadcast_shapes(op: Operation) -> Numbers | None:
    a, b = (_of_vector(x) for x in op.inputs)
    return None if a is None or b is None or len(a) != len(b) else _each(_broadcast, op)


def _only(op: Operation) -> Numbers | None:
    """The largest, or smallest, of one."""
    numbers = op.inputs[0].numbers
    return numbers if numbers is not None and len(numbers) == 1 else None


def _gather(op: Operation) -> Numbers | None:
    x, indices = op.inputs[:2]
    numbers = _of_vector(x)
    if numbers is None or indices.numbers is None:
        return None
    places = [None if number is None else number.number for number in indices.numbers]
    if any(place is None or place >= len(numbers) for place in places):
        return None
    return tuple(numbers[place] for place in places if place is not None)


def _strided_slice(op: Operation) -> Numbers | None:
    x, *limits = op.inputs
    numbers = _of_vector(x)
    if numbers is None or op.attr("ellipsis_mask").i or op.attr("new_axis_mask").i:
        return None
    begin, end, step = (_number(limit) for limit in limits)
    if op.attr("shrink_axis_mask").i:
        return None if begin is None else numbers[begin : begin + 1 or None]
    first, last = op.attr("begin_mask").i & 1, op.attr("end_mask").i & 1
    if step is None or (begin is None and not first) or (end is None and not last):
        return None
    return numbers[None if first else begin : None if last else end : step]


def _number(x: Value) -> int | None:
    """The only one of a scalar or a vector, if it is known."""
    if x.numbers is None or len(x.numbers) != 1 or x.numbers[0] is None:
        return None
    return x.numbers[0].number


def _each(compute: Callable[[Size, Size], Size | None], op: Operation) -> Numbers | None:
    """Two at a time, of which one may be for all."""
    a, b = (x.numbers for x in op.inputs)
    shapes = [x.shape for x in op.inputs]
    if a is None or b is None or any(shape is None or len(shape) > 1 for shape in shapes):
        return None
    count = max(len(a), len(b))
    if not {len(a), len(b)} <= {1, count}:
        return None
    pairs = zip(a * (count // len(a)), b * (count // len(b)), strict=True) if a and b else ()
    return tuple(None if one is None or other is None else compute(one, other) for one, other in pairs)


def _of_numbers(compute: Callable[[int, int], int]) -> Callable[[Size, Size], Size | None]:
    def computed(one: Size, other: Size) -> Size | None:
        a, b = one.number, other.number
        return None if a is None or b is None else Size(compute(a, b))

    return computed


def _multiplied(one: Size, other: Size) -> Size | None:
    return one * other


def _divided(one: Size, other: Size) -> Size | None:
    return one.over(other)


def _same_or(compute: Callable[[int, int], int]) -> Callable[[Size, Size], Size | None]:
    return lambda one, other: one if one == other else _of_numbers(compute)(one, other)


def _broadcast(one: Size, other: Size) -> Size | None:
    return other if one == Size(1) else one if other in (Size(1), one) else None


def _range(op: Operation) -> Numbers | None:
    start, stop, step = (_number(x) for x in op.inputs)
    if start is None or stop is None or not step or abs((stop - start) // step) > MANY:
        return None
    return tuple(map(Size, range(start, stop, step)))


def _unpacked(op: Operation) -> Sequence[Numbers | None]:
    numbers = _of_vector(op.inputs[0])
    return [None] * len(op.shapes) if numbers is None else [(number,) for number in numbers]


def _split(op: Operation) -> Sequence[Numbers | None]:
    numbers = _of_vector(op.inputs[1] if op.node.op == "Split" else op.inputs[0])
    several = [shape[0] if shape else -1 for shape in op.shapes]
    if numbers is None or min(several, default=-1) < 0:
        return [None] * len(op.shapes)
    ends = list(accumulate(several))
    return [numbers[end - count : end] for end, count in zip(ends, several, strict=True)]


def _of_vector(x: Value) -> Numbers | None:
    return x.numbers if x.shape is not None and len(x.shape) == 1 else None


def _filled(op: Operation) -> Numbers | None:
    sizes, number = op.inputs
    count = None if sizes.numbers is None else _product_of(sizes.numbers)
    if count is None or count.number is None or not 0 <= count.number <= MANY or not number.numbers:
        return None
    return number.numbers[:1] * count.number


NUMBERS_OF_SEVERAL: dict[str, RuleOfSeveral] = {
    **dict.fromkeys(["Split", "SplitV"], _split),
    "ShapeN": lambda op: [x.sizes() for x in op.inputs],
    "Unpack": _unpacked,
}
NUMBERS: dict[str, Rule] = {
    **dict.fromkeys(["Identity", "Reshape", "ExpandDims", "Squeeze", "StopGradient", "EnsureShape"], _same),
    **dict.fromkeys(["Pack", "ConcatV2"], _joined),
    **dict.fromkeys(["Gather", "GatherV2"], _gather),
    **dict.fromkeys(["Add", "AddV2"], partial(_each, _of_numbers(int.__add__))),
    **dict.fromkeys(["FloorDiv", "RealDiv"], partial(_each, _divided)),
    "BroadcastArgs": _broadcast_shapes,
    "Cast": _cast,
    "Const": _const,
    **dict.fromkeys(["Max", "Min"], _only),
    "Maximum": partial(_each, _same_or(max)),
    "Minimum": partial(_each, _same_or(min)),
    "Fill": _filled,
    "Mul": partial(_each, _multiplied),
    "Prod": _prod,
    "Range": _range,
    "Rank": _rank,
    "Shape": _shape,
    "Size": _size,
    "StridedSlice": _strided_slice,
    "Sub": partial(_each, _of_numbers(int.__sub__)),
}
#: Of the numbers of their first input, in a shape that another one says.
SHAPED = {"Reshape", "ExpandDims"}
#: Of the shape of their input, which is known; not of what is in it.
OF_SHAPES = {"Shape", "ShapeN", "Size", "Rank"}
