"""How operations move, cut and put together rows without changing a number; see `row_rules`."""

from __future__ import annotations

from functools import partial

from .row_axis import Size, Value, of_rows, product, require
from .row_rules import Operation, Rule


def _transpose(op: Operation) -> Value:
    x = op.inputs[0]
    return of_rows([x.of(axis) for axis in op.ints(1)].index(x.rows_axis), x.per)


def _reshape(op: Operation) -> Value:
    """Rows stay whole where all before their axis is as it was, and the new axis has so many entries for each row."""
    x, sizes = op.inputs[0], op.inputs[1].known()
    axis = x.rows_axis
    before = [x.size(a) for a in range(axis)]
    if all(size == Size(1) for size in before):  # no entry comes after another because of them
        before = []
    ones = next((n for n, size in enumerate(sizes) if size != Size(1)), 0) if not before else 0
    place = len(before) + ones
    require(sizes[: len(before)] == before and len(sizes) > place)
    new, *after = sizes[place:]
    if new.number == -1:
        require(x.per is not None)
        behind = [x.size(a) for a in range(axis + 1, x.rank)]
        of_row = product([x.per or Size(), *[size for size in behind if size is not None]])
        per = of_row.over(product(after))
        require(None not in behind and per is not None)
        return of_rows(place, per)
    require(new.rows == 1 and not any(size.rows for size in after))
    return of_rows(place, Size(new.factor, 0, new.others))


def _expand_dims(op: Operation) -> Value:
    x = op.inputs[0]
    new = x.of_new(*op.ints(1))
    return of_rows(x.rows_axis + (new <= x.rows_axis), x.per)


def _squeeze(op: Operation) -> Value:
    x = op.inputs[0]
    axes = {x.of(axis) for axis in op.attr("squeeze_dims").list.i}
    require(bool(axes) and x.axis not in axes)
    return of_rows(x.rows_axis - sum(axis < x.rows_axis for axis in axes), x.per)


def _pack(op: Operation) -> Value:
    first = op.inputs[0]
    require(all(x.axis == first.axis for x in op.inputs))
    new = first.of_new(op.attr("axis").i)
    return of_rows(first.rows_axis + (new <= first.rows_axis), first.per)


def _unpack(op: Operation) -> list[Value]:
    x = op.inputs[0]
    axis = x.of(op.attr("axis").i)
    require(axis != x.axis)
    return [of_rows(x.rows_axis - (axis < x.rows_axis), x.per)] * len(op.shapes)


def _concat(op: Operation) -> Value:
    *several, along = op.inputs
    if op.node.op == "Concat":
        along, *several = op.inputs
    first = several[0]
    require(all(x.axis == first.axis for x in several) and first.of(*along.ints()) != first.axis)
    return of_rows(first.rows_axis, first.per)


def _split(along: int, of: int, op: Operation) -> list[Value]:
    x = op.inputs[of]
    require(x.of(*op.ints(along)) != x.axis and all(y.is_plain for y in op.inputs if y is not x))
    return [of_rows(x.rows_axis, x.per)] * len(op.shapes)


def _slice(op: Operation) -> Value:
    """All of the axis of rows, and of the others what does not depend on rows."""
    x, begin, size = op.inputs
    axis, starts, lengths = x.rows_axis, begin.known(), size.known()
    require(starts[axis] == Size(0) and (lengths[axis] == Size(-1) or lengths[axis] == x.size(axis)))
    require(not any(n.rows for n in (*starts, *lengths[:axis], *lengths[axis + 1 :])))
    return of_rows(axis, x.per)


def _strided_slice(op: Operation) -> Value:
    """As `_slice`; masks say what ``x[..., None, 0, 1:]`` says."""
    x, *limits = op.inputs
    masks = {name: op.attr(f"{name}_mask").i for name in ("begin", "end", "ellipsis", "new_axis", "shrink_axis")}
    count = (limits[0].shape or (-1,))[0]
    require(count >= 0)

    def has(name: str, n: int) -> bool:
        return bool(masks[name] >> n & 1)

    # Of each axis of ``x`` the place in the slice that is about it; of one that is taken as it is, none.
    taken = sum(1 for n in range(count) if not has("ellipsis", n) and not has("new_axis", n))
    axes: list[int | None] = []
    new_axes: list[int | None] = []
    for n in range(count):
        if has("ellipsis", n):
            axes += [None] * (x.rank - taken)
            new_axes += range(len(axes) - (x.rank - taken), len(axes))
        elif has("new_axis", n):
            new_axes.append(None)
        else:
            axes.append(n)
            if not has("shrink_axis", n):
                new_axes.append(len(axes) - 1)
    new_axes += range(len(axes), x.rank)
    for axis, place in enumerate(axes):
        for limit in limits if place is not None else ():
            number = None if limit.numbers is None else limit.numbers[place or 0]
            require(axis == x.axis or limit.is_plain or (number is not None and not number.rows))
    if x.rows_axis < len(axes) and (its_place := axes[x.rows_axis]) is not None:
        begin, end, step = limits
        require(has("begin", its_place) or begin.known()[its_place] == Size(0))
        require(has("end", its_place) or end.known()[its_place] == x.size(x.rows_axis))
        require(step.known()[its_place] == Size(1) and not has("shrink_axis", its_place))
    return of_rows(new_axes.index(x.rows_axis), x.per)


def _pad(op: Operation) -> Value:
    x, padding = op.inputs[:2]
    op.plain()
    require((padding.numbers or ())[2 * x.rows_axis : 2 * x.rows_axis + 2] == (Size(0), Size(0)))
    return of_rows(x.rows_axis, x.per)


def _tile(op: Operation) -> Value:
    x, times = op.inputs
    if x.axis is not None:
        require(times.is_plain and times.known()[x.axis] == Size(1))
        return of_rows(x.axis, x.per)
    require(x.is_plain)
    made = _filled(times)
    each = x.size(made.rows_axis)
    return of_rows(made.rows_axis, None if made.per is None or each is None else made.per * each)


def _broadcast_to(op: Operation) -> Value:
    x, shape = op.inputs
    if x.axis is None:
        made = _filled(shape)
        require(x.is_plain and x.lacks(len(shape.known()) - made.rows_axis))
        return made
    axis = len(shape.known()) - x.from_right
    require([n for n, size in enumerate(shape.known()) if size.rows] == [axis])
    require(shape.known()[axis] == x.size(x.axis))
    return of_rows(axis, x.per)


def _filled(shape: Value) -> Value:
    """The same for each row."""
    sizes = shape.known()
    (axis, *more) = [n for n, size in enumerate(sizes) if size.rows]
    require(not more and sizes[axis].rows == 1)
    return of_rows(axis, Size(sizes[axis].factor, 0, sizes[axis].others))


def _fill(op: Operation) -> Value:
    require(op.inputs[1].is_plain)
    return _filled(op.inputs[0])


def _reverse(op: Operation) -> Value:
    x = op.inputs[0]
    op.plain()
    require(x.axis not in [x.of(axis) for axis in op.ints(len(op.inputs) - 1)])
    return of_rows(x.rows_axis, x.per)


def _reverse_sequence(op: Operation) -> Value:
    x, lengths = op.inputs
    require(x.axis == op.attr("batch_dim").i and x.axis != op.attr("seq_dim").i)
    require(lengths.axis == 0 or lengths.is_plain)
    return of_rows(x.rows_axis, x.per)


def _one_hot(op: Operation) -> Value:
    x, new = op.inputs[0], op.attr("axis").i
    op.plain()
    return of_rows(x.rows_axis + (0 <= new <= x.rows_axis), x.per)


def _gather(op: Operation) -> Value:
    x, indices = op.inputs[:2]
    axis = x.of(*op.ints(2)) if len(op.inputs) > 2 else 0
    batch = op.attr("batch_dims").i if "batch_dims" in op.node.attr else 0
    batch = batch if batch >= 0 else batch + indices.rank
    if x.axis is not None and indices.axis is not None:
        require(x.axis == indices.axis < batch)
        return of_rows(x.axis, x.per)
    require(batch == 0 and (x.is_plain or indices.is_plain))
    if x.axis is None:
        return of_rows(axis + indices.rows_axis, indices.per)
    require(axis != x.axis)
    return of_rows(x.axis if x.axis < axis else x.axis - 1 + indices.rank, x.per)


def _resource_gather(op: Operation) -> Value:
    require(op.inputs[0].is_plain and not op.attr("batch_dims").i)
    return of_rows(op.inputs[1].rows_axis, op.inputs[1].per)


def _gather_nd(op: Operation) -> Value:
    x, indices = op.inputs
    require(x.is_plain and indices.from_right > 1)
    return of_rows(indices.rows_axis, indices.per)


def _look_up(op: Operation) -> Value:
    require(op.inputs[0].is_plain and op.inputs[2].is_plain)
    return of_rows(op.inputs[1].rows_axis, op.inputs[1].per)


MOVES: dict[str, Rule] = {
    **dict.fromkeys(["Pad", "PadV2", "MirrorPad"], _pad),
    **dict.fromkeys(["Concat", "ConcatV2"], _concat),
    **dict.fromkeys(["ReverseV2", "Roll"], _reverse),
    **dict.fromkeys(["Gather", "GatherV2"], _gather),
    "BroadcastTo": _broadcast_to,
    "ExpandDims": _expand_dims,
    "Fill": _fill,
    "GatherNd": _gather_nd,
    "LookupTableFindV2": _look_up,
    "OneHot": _one_hot,
    "Pack": _pack,
    "Reshape": _reshape,
    "ResourceGather": _resource_gather,
    "ReverseSequence": _reverse_sequence,
    "Slice": _slice,
    "Split": partial(_split, 0, 1),
    "SplitV": partial(_split, 2, 0),
    "Squeeze": _squeeze,
    "StridedSlice": _strided_slice,
    "Tile": _tile,
    "Transpose": _transpose,
    "Unpack": _unpack,
}
#: Of which the output has rows, though no input has: as many as a shape says.
MAKE_ROWS = {"Fill", "BroadcastTo", "Tile"}
