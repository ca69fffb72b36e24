"""Are outputs the same but for rounding?  By the dtype that computed them, row by row."""

from __future__ import annotations

from typing import Any

import numpy as np

from .dtypes import numpy_dtype
from .protocol import Compiled

#: By how many units in the last place, relative to the largest value of its row, an output may differ when its row is
#: computed with others: other sizes have other kernels, which add up in another order.  Seen in eight networks of
#: ``keras.applications``, deep dense ones, LSTM and transformer: 34.  Of 16 bits, where each step rounds: 8.
_UNITS, _UNITS_16_BIT = 128, 8
#: And relative to the largest value in its place of any row, so that no small output hides behind a large one.
_OF_ITS_PLACE = 2**-6
#: Numbers of a row of which the largest tells its size.
_MANY = 8


def precision_of(compiled: Compiled) -> float:
    """The relative error of the coarsest floats that a graph computes with."""
    import tensorflow as tf

    names = {tf.as_dtype(name).as_datatype_enum: name for name in ("float16", "bfloat16", "float32")}
    graph_def = compiled.graph_def()
    nodes = [*graph_def.node, *(node for function in graph_def.library.function for node in function.node_def)]
    types = {value.type for node in nodes for value in node.attr.values()}
    found = [_error_of(name) for dtype, name in names.items() if dtype in types]
    return max(found, default=_error_of("float64"))


def _error_of(name: str) -> float:
    import ml_dtypes
    import tensorflow as tf

    coarse = tf.config.experimental.tensor_float_32_execution_enabled() and tf.config.list_logical_devices("GPU")
    if name == "float32" and coarse:
        return 2.0**-10
    return float(ml_dtypes.finfo(numpy_dtype(name)).eps)  # type: ignore[no-untyped-call]


def are_close(one: Any, other: Any, precision: float) -> bool:
    """Whether outputs differ by no more than rounding in floats of this relative error; others must be equal."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if one.dtype.kind in "OSUTbiu":
        return bool(np.array_equal(one, other))
    one, other = one.astype("complex128"), other.astype("complex128")
    finite = np.isfinite(other)
    if not np.array_equal(one[~finite], other[~finite], equal_nan=True) or not np.isfinite(one[finite]).all():
        return False
    if not other.size:
        return True
    one, other = (np.where(finite, part, 0) for part in (one, other))
    difference, size = np.abs(one - other), np.abs(other)
    limit = precision * (_UNITS if precision < 1e-4 else _UNITS_16_BIT)
    rows = size.reshape(len(size), -1)
    # A row of a few numbers does not tell how large it is: they may all have come to nought.
    of_its_row = rows.max(axis=1) if rows.shape[1] >= _MANY else rows.max()
    of_its_place = size.max(axis=tuple(range(size.ndim - 1))) if size.ndim > 1 else size
    within = difference.reshape(rows.shape) <= limit * np.reshape(of_its_row, (-1, 1))
    return bool(within.all() and (difference <= max(_OF_ITS_PLACE, 4 * limit) * of_its_place).all())
