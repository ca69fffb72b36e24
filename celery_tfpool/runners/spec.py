"""Decide whether a value fits one input of a model, and make it fit as Keras would.

A port is an input or output by name, dtype and shape.  Nothing here knows
how a model is called, or how several inputs are told apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .convert import Misfit, array, cast, castable, scalar
from .dtypes import dtype_of, is_tensor, numpy_dtype

#: Sizes from the second dimension on; None may vary.
Shape = tuple[int | None, ...]

#: What `Port.zeros` takes where a dimension may vary: enough for a few convolutions.
ANY_SIZE = 32


@dataclass(frozen=True)
class Port:
    """One input or output of a model.  ``shape`` begins with the rows, usually None; () is one value for all rows."""

    name: str
    dtype: str
    shape: Shape

    def __str__(self) -> str:
        if not self.shape:
            return f"{self.name}: {self.dtype} ()"
        rows = "rows" if self.shape[0] is None else str(self.shape[0])
        return f"{self.name}: {self.dtype} ({', '.join([rows, *sizes(self.shape[1:])])})"

    def covers(self, shape: Shape) -> bool:
        """Whether values of ``shape`` may come here, whatever the number of rows."""
        return len(shape) == len(self.shape) and _covers(self.shape[1:], shape[1:])

    def widened(self, shape: Shape) -> Port:
        """A port for both its own shape and ``shape``, of the same rank."""
        common = tuple(m if m == n else None for m, n in zip(self.shape, shape, strict=True))
        return Port(self.name, self.dtype, common)

    def is_whole(self, value: Any) -> bool:
        """Whether ``value`` has all rows, and is not one of them."""
        rank = len(value.shape)
        return rank >= len(self.shape) or (self.shape[1:] == (1,) and rank == 1)

    def fit(self, value: Any, floatx: str | None = None) -> Any:
        """``value`` as an array or tensor of this dtype and rank.

        Args:
            floatx: as of `convert.to_floatx`.

        Raises:
            Misfit: it is another shape, or another kind of thing.
        """
        try:
            given = array(value) if self.shape else scalar(value)
            fitting = self._of_rank(given)
            self._check(fitting, given)
        except Misfit as exc:
            raise Misfit(f"{self.name}: {exc}") from exc.__cause__
        return cast(fitting, self.dtype, floatx)

    def _of_rank(self, value: Any) -> Any:
        rank = len(value.shape)
        if (
            self.shape and tuple(value.shape) == (0,) and not is_tensor(value)
        ):  # an empty list knows neither shape nor dtype
            return self.zeros()[:0]
        # Keras adds or drops a last dimension of 1, and so do we.
        if rank == len(self.shape) + 1 and value.shape[-1] == 1:
            return value[..., 0]
        if rank == len(self.shape) - 1 and self.shape[-1] == 1:
            return value[..., None]
        return value

    def _check(self, fitting: Any, given: Any) -> None:
        fits, shape = self.covers(tuple(fitting.shape)), tuple(given.shape)
        if not fits or not castable(fitting, self.dtype):
            is_row = not fits and _covers(self.shape[1:], shape)
            hint = "; for a single row add the first dimension: x[None]" if is_row else ""
            raise Misfit(f"{dtype_of(given)}, shape {shape}{hint}")

    def zeros(self, rows: int = 1) -> NDArray[Any]:
        """So many rows of zeros or empty strings, or as many as the model insists on."""
        shape = [ANY_SIZE if size is None else size for size in self.shape]
        shape[:1] = [rows if fixed is None else fixed for fixed in self.shape[:1]]
        if self.dtype == "string":
            return np.full(shape, "", dtype=object)
        return np.zeros(shape, dtype=numpy_dtype(self.dtype))


def port_of(symbol: Any, name: str | None = None) -> Port:
    """The port that a symbolic tensor of Keras or TensorFlow describes; without a shape when that is unknown."""
    known = getattr(symbol.shape, "rank", 0) is not None
    shape = tuple(None if size is None else int(size) for size in symbol.shape) if known else ()
    return Port(name or symbol.name, str(getattr(symbol.dtype, "name", symbol.dtype)), shape)


def describe(ports: list[Port]) -> str:
    """All of them in words, for messages."""
    return "; ".join(map(str, ports))


def sizes(shape: Shape) -> list[str]:
    """Each size in words."""
    return ["any" if size is None else str(size) for size in shape]


def _covers(wide: Shape, shape: Shape) -> bool:
    return len(wide) == len(shape) and all(a in (None, b) for a, b in zip(wide, shape, strict=True))
