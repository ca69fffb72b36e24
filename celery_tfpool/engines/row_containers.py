"""What holds rows in another way than a tensor with an axis of them, and how they go in and out; see `row_rules`.

Loops over time are made of lists of tensors.  For a dilated convolution images
are cut into blocks, and put together again.
"""

from __future__ import annotations

from dataclasses import replace

from .row_axis import Value, forgetful, joined, of_rows, require
from .row_rules import Operation, Rule

# -- lists of tensors --------------------------------------------------------------


def _made(op: Operation) -> list[Value]:
    """A list of which nothing is set yet."""
    require(all(x.is_plain for x in op.inputs))
    return [Value()]


def _from_tensor(op: Operation) -> list[Value]:
    """The entries along the first axis, which is not that of rows."""
    x = op.inputs[0]
    require(x.is_plain or x.rows_axis > 0)
    element = Value() if x.is_plain else of_rows(x.rows_axis - 1, x.per)
    shape = None if x.shape is None else x.shape[1:]
    return [Value(element=replace(element, shape=shape))]


def _set(op: Operation) -> list[Value]:
    several, place, item = op.inputs
    require(place.is_plain and (item.has_rows or item.is_plain))
    return [joined(several, Value(element=forgetful(item)))]


def _get(op: Operation) -> list[Value]:
    several = op.inputs[0]
    op.plain()
    return [several.element or Value()]


def _stack(op: Operation) -> list[Value]:
    element = op.inputs[0].element or Value()
    op.plain()
    return [Value() if element.axis is None else of_rows(element.axis + 1, element.per)]


def _length(_: Operation) -> list[Value]:
    return [Value()]


# -- blocks of images --------------------------------------------------------------


def _to_blocks(op: Operation) -> Value:
    """Of images, for a dilated convolution: the rows come again for each block."""
    require(op.inputs[0].axis == 0)
    op.plain()
    return Value(blocks=tuple(op.ints(1)))


def _from_blocks(op: Operation) -> Value:
    """Back."""
    op.plain()
    require(op.inputs[0].blocks == tuple(op.ints(1)))
    return of_rows(0, None)


def _among_blocks(op: Operation) -> Value:
    """What is computed of each image, with an axis more or less between them."""
    op.plain()
    x, axes = op.inputs[0], [1]
    if op.node.op == "Squeeze":
        axes = [x.of(axis) for axis in op.attr("squeeze_dims").list.i]
    elif op.node.op == "ExpandDims":
        axes = [x.of_new(*op.ints(1))]
    require(bool(axes) and 0 not in axes)
    return Value(blocks=x.blocks)


#: All that may be done with blocks of images.
BLOCKS: dict[str, Rule] = {
    **dict.fromkeys(
        ["Conv", "Conv2D", "Conv3D", "DepthwiseConv2dNative", "ExpandDims", "Identity", "Squeeze"], _among_blocks
    ),
    "BatchToSpaceND": _from_blocks,
}
CONTAINERS: dict[str, Rule] = {
    "SpaceToBatchND": _to_blocks,
    **dict.fromkeys(["EmptyTensorList", "TensorListReserve"], _made),
    "TensorListFromTensor": _from_tensor,
    "TensorListGetItem": _get,
    "TensorListLength": _length,
    "TensorListSetItem": _set,
    "TensorListStack": _stack,
}
