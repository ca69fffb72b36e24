"""Where the rows of a request are in a tensor: the values that `row_mixing` computes with.

A `Value` says along which axis of a tensor the entries of one row follow those
of another, or that what is in it comes from no row.  Numbers that shapes are
made of are known as far as they are products: of a number, of how many rows
there are, and of sizes that only a request shows.

Knows nothing of graphs.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

#: Of so many numbers a constant is known.
MANY = 64
#: Beyond these a product is not known.
_LARGE, _SEVERAL = 2**31, 8


class Mixes(Exception):
    """Rows may come together here, as far as anybody knows."""


def require(is_sure: bool) -> None:
    """Raise `Mixes` unless ``is_sure``."""
    if not is_sure:
        raise Mixes


@dataclass(frozen=True)
class Size:
    """``factor``, times how many rows there are to the power of ``rows``, times ``others``, which nobody knows.

    Those of one name are the same at one time: it is that of a tensor's axis, in one call, in one round of a loop.
    What outlives a round must not have it; see `forgetful`.
    """

    factor: int = 1
    rows: int = 0
    others: tuple[str, ...] = ()

    def __mul__(self, other: Size) -> Size:
        others = tuple(sorted(self.others + other.others))
        return Size(self.factor * other.factor, self.rows + other.rows, others)

    def over(self, other: Size) -> Size | None:
        """The quotient, where it is one of whole numbers whatever the unknown ones are."""
        left = Counter(self.others)
        left.subtract(other.others)
        if (
            not other.factor
            or self.factor % other.factor
            or self.rows < other.rows
            or min(left.values(), default=0) < 0
        ):
            return None
        return Size(self.factor // other.factor, self.rows - other.rows, tuple(sorted(left.elements())))

    @property
    def is_small(self) -> bool:
        """Whether it fits whatever shapes are computed in."""
        return abs(self.factor) < _LARGE and len(self.others) <= _SEVERAL

    @property
    def number(self) -> int | None:
        """It, if it is known."""
        return None if self.rows or self.others else self.factor


#: Numbers, some of which may not be known.
Numbers = tuple[Size | None, ...]


def product(sizes: Iterable[Size]) -> Size:
    """Of all of them."""
    return math.prod(sizes, start=Size())


@dataclass(frozen=True)
class Value:
    """What is known of a tensor, or of a list of tensors.

    Attributes:
        axis: that of rows: each row has ``per`` neighbouring entries along it.  None where nothing in the tensor
            comes from a row.
        per: how many; None where nobody knows.
        numbers: what is in it, in the order of memory, if that is known; of no tensor of rows.
        counts: whether what is in it, or its shape, may depend on how many rows there are; of no tensor of rows.
        shape: sizes, -1 where they vary; None where not even the rank is known.
        element: of a list of tensors, what is known of each; None of an empty one.
        blocks: of images cut for a dilated convolution, into how many along each axis: along the first axis all rows
            come again for each block, and ``axis`` is None.
        name: of the tensor, of which its unknown sizes are named.
    """

    axis: int | None = None
    per: Size | None = Size()
    numbers: Numbers | None = None
    counts: bool = False
    shape: tuple[int, ...] | None = None
    element: Value | None = None
    blocks: tuple[int, ...] = ()
    name: str = field(default="", compare=False)

    @property
    def has_rows(self) -> bool:
        """Whether something in it comes from a row."""
        return self.axis is not None or bool(self.blocks) or (self.element is not None and self.element.has_rows)

    @property
    def is_plain(self) -> bool:
        """Whether what is in it is the same whatever the rows are, and however many."""
        return not self.has_rows and not self.counts

    @property
    def rank(self) -> int:
        """Of a tensor of which it has to be known."""
        require(self.shape is not None)
        return len(self.shape or ())

    @property
    def from_right(self) -> int:
        """Which axis that of rows is, counted from the last: 1 is the last."""
        return self.rank - self.rows_axis

    @property
    def rows_axis(self) -> int:
        """That of rows, where there has to be one."""
        require(self.axis is not None)
        return self.axis or 0

    def of(self, axis: int) -> int:
        """``axis``, counted from the first one."""
        return axis if axis >= 0 else axis + self.rank

    def of_new(self, axis: int) -> int:
        """As `of`, where there is going to be one axis more."""
        return axis if axis >= 0 else axis + self.rank + 1

    def size(self, axis: int) -> Size | None:
        """How many entries there are along an axis."""
        if axis == self.axis:
            return None if self.per is None else Size(rows=1) * self.per
        known = -1 if self.shape is None else self.shape[axis]
        if known >= 0:
            return Size(known)
        return None if self.counts else Size(others=(f"{self.name}[{axis}]",))

    def sizes(self) -> Numbers | None:
        """Along all axes."""
        return None if self.shape is None else tuple(self.size(axis) for axis in range(len(self.shape)))

    def lacks(self, from_right: int) -> bool:
        """Whether it is the same for all entries along an axis that is counted from the last, when it is broadcast."""
        return self.rank < from_right or (self.shape or ())[-from_right] == 1

    def ints(self) -> list[int]:
        """What is in it, where all of it has to be known."""
        require(self.numbers is not None and all(n is not None and n.number is not None for n in self.numbers))
        return [n.factor for n in self.numbers or () if n is not None]

    def known(self) -> list[Size]:
        """As `ints`, of numbers that may depend on sizes."""
        require(self.numbers is not None and None not in self.numbers)
        return [n for n in self.numbers or () if n is not None]


def free(numbers: Sequence[Size | None] | None = None, *, counts: bool = False) -> Value:
    """Of a tensor in which nothing comes from a row."""
    if numbers is not None:
        numbers = [number if number is not None and number.is_small else None for number in numbers]
    if numbers is not None and None not in numbers:
        counts = any(number is not None and number.rows for number in numbers)
    return Value(numbers=None if numbers is None else tuple(numbers), counts=counts)


def of_rows(axis: int, per: Size | None = Size()) -> Value:
    """Of a tensor with rows along an axis."""
    return Value(axis=axis, per=per)


def forgetful(value: Value) -> Value:
    """``value``, of which nothing is known that another round of a loop may have another size for."""
    per = None if value.per is None or value.per.others else value.per
    return replace(value, per=per, numbers=None)


def joined(one: Value, other: Value) -> Value:
    """What is true of both: of the outputs of two branches, or of a loop before and after it has gone on."""
    shape = one.shape if one.shape == other.shape else None
    if one.shape is not None and other.shape is not None and len(one.shape) == len(other.shape):
        shape = tuple(a if a == b else -1 for a, b in zip(one.shape, other.shape, strict=True))
    if one.element is not None and other.element is not None:
        return replace(one, element=joined(one.element, other.element), shape=shape)
    if one.element is not None or other.element is not None:  # a list that was empty
        require(one.axis is None and other.axis is None)
        return replace(one, element=one.element or other.element, shape=shape)
    require(one.axis == other.axis and not one.blocks and not other.blocks)
    return Value(
        axis=one.axis,
        per=one.per if one.per == other.per else None,
        numbers=one.numbers if one.numbers == other.numbers else None,
        counts=one.counts or other.counts,
        shape=shape,
        name=one.name,
    )
