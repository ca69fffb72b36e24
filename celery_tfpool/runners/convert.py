"""Decide what is plain data, and make of it the arrays and dtypes that a model takes.

Follows what Keras does with the data given to ``keras.Model.predict``, and
takes Python's lists on top.  Knows NumPy's and TensorFlow's types, but no
model: who calls says which shape and dtype are wanted.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from . import installed
from .dtypes import dtype_of, is_tensor, numpy_dtype
from .structure import leaves, map_leaves

_SCALARS = (bool, int, float, str, bytes, np.generic)


class Misfit(Exception):
    """What came, in words, when it does not fit.  `Runner` adds what was expected."""


# -- what is it? ---------------------------------------------------------------


def is_plain(x: Any) -> bool:
    """Whether ``x`` is data at hand: arrays, dense tensors or numbers, or lists, tuples or dicts of them."""
    if not isinstance(x, (Mapping, list, tuple)):
        return x is None or isinstance(x, _SCALARS) or is_dense(x)
    parts = list(x.values()) if isinstance(x, Mapping) else x
    if parts and isinstance(parts[0], _SCALARS):
        return True  # a row of numbers; no need to look at each
    if any(part is None for part in parts) and any(map(is_dense, parts)):
        return False  # an optional input left out, which Keras understands
    return all(map(is_plain, parts))


def is_dense(value: Any) -> bool:
    """An array or dense tensor (of NumPy, TensorFlow, JAX, PyTorch); not ragged, sparse or pandas."""
    if isinstance(value, np.ndarray):
        return True
    package = type(value).__module__.partition(".")[0]
    return hasattr(value, "__array__") and hasattr(value, "shape") and package not in ("pandas", "scipy")


def sketch(x: Any) -> str:
    """The structure of ``x`` in brackets, for messages."""
    if isinstance(x, Mapping):
        return "{" + ", ".join(f"{key!r}: {sketch(value)}" for key, value in x.items()) + "}"
    if isinstance(x, (list, tuple)) and not _is_row(x):
        return "[" + ", ".join(map(sketch, x[:8])) + (", …]" if len(x) > 8 else "]")
    return getattr(x, "name", None) or type(x).__name__


def _is_row(x: Any) -> bool:
    """A list that begins with a number or string is data, not a structure."""
    return isinstance(x, (list, tuple)) and bool(x) and isinstance(x[0], _SCALARS)


def holds_arrays(x: Any) -> bool:
    """Whether ``x`` is an array of numbers, or a structure of such and nothing else."""
    found = list(leaves(x))
    return bool(found) and all(isinstance(leaf, np.ndarray) and leaf.dtype.kind in "biufc" for leaf in found)


def rows_of(x: Any) -> int:
    """Rows of the first array in ``x``, at least 1: a size of a batch."""
    shape = getattr(next(leaves(x), None), "shape", ())
    return max(1, int(shape[0])) if shape else 1


# -- arrays --------------------------------------------------------------------


def arrays(x: Any) -> Any:
    """``x`` with its nested lists of numbers made arrays, and its other lists tuples, as Keras does.

    Raises:
        Misfit: a list that makes no array.
    """
    if isinstance(x, Mapping):
        return {key: arrays(value) for key, value in x.items()}
    if isinstance(x, (list, tuple)) and _holds_array(x):
        return tuple(map(arrays, x))
    return array(x)


def _holds_array(x: Any) -> bool:
    if isinstance(x, (list, tuple)):
        return not _is_row(x) and any(map(_holds_array, x))
    return isinstance(x, Mapping) or is_dense(x)


def array(value: Any) -> Any:
    """``value`` as an array, or as the tensor that it is; strings as Python's own.

    Raises:
        Misfit: a single value, rows of different lengths, or mixed objects.
    """
    made = value if is_tensor(value) else _array_of(value)
    if len(made.shape) == 0:
        raise Misfit(f"a single {type(value).__name__}; give rows along the first dimension")
    if not is_tensor(made) and made.dtype.kind in "OT":
        made = made.astype(object, copy=False)
        _check_strings(made)
    return made


def scalar(value: Any) -> Any:
    """``value`` as an array without dimensions, or as what it is, if it has some."""
    if is_tensor(value):
        return value
    return np.asarray(value, dtype=object if isinstance(value, (str, bytes)) else None)


def _array_of(value: Any) -> Any:
    first = value
    while isinstance(first, (list, tuple)) and first:
        first = first[0]
    # Strings stay Python's: NumPy's own are all as wide as the widest, and lose NULs at their end.
    dtype = object if isinstance(first, (str, bytes)) else None
    try:
        return np.asarray(value, dtype=dtype)
    except ValueError as exc:
        raise Misfit(f"rows of different lengths ({short(exc)})") from exc


def _check_strings(objects: Any) -> None:
    others = {type(part).__name__ for part in objects.flat if not isinstance(part, (str, bytes))}
    if others & {"list", "tuple"}:
        raise Misfit("rows of different lengths")
    if others:
        raise Misfit(f"dtype object with {', '.join(sorted(others))} in it, shape {objects.shape}")


# -- dtypes --------------------------------------------------------------------


def castable(value: Any, dtype: str) -> bool:
    """Whether ``value`` may become ``dtype``: numbers numbers, and strings strings; not dates, records or less."""
    came = dtype_of(value)
    if came == dtype or "string" in (came, dtype):
        return came == dtype
    if came.startswith("complex"):
        return dtype.startswith("complex")
    return is_tensor(value) or value.dtype.kind in "biuf" or came == "bfloat16"


def cast(value: Any, dtype: str, floatx: str | None = None) -> Any:
    """``value`` in ``dtype``, by way of ``floatx`` as in Keras; see `to_floatx`."""
    return _astype(to_floatx(value, floatx), dtype)


def to_floatx(value: Any, floatx: str | None = None) -> Any:
    """Floats in Keras's ``floatx``, which is what ``keras.Model.predict`` makes of all floats first.

    Args:
        floatx: what it is if Keras is not imported here; None: import it.
    """
    if dtype_of(value) not in ("float16", "float32", "float64", "bfloat16"):
        return value
    if floatx is None or "keras" in sys.modules:
        import keras

        floatx = keras.config.floatx()
    return _astype(value, floatx)


def _astype(value: Any, dtype: str) -> Any:
    if dtype_of(value) == dtype:
        return value
    if is_tensor(value):
        import tensorflow as tf

        return tf.cast(value, dtype)
    return value.astype(numpy_dtype(dtype))


# -- outputs -------------------------------------------------------------------


def to_numpy(outputs: Any) -> Any:
    """Tensors as arrays; ragged and sparse ones stay what they are, as in Keras."""
    import keras

    def leaf(value: Any) -> Any:
        return value.numpy() if type(value).__name__ == "EagerTensor" else value

    return keras.tree.map_structure(leaf, outputs)


def to_tensors(outputs: Any) -> Any:
    """Arrays as tensors of what Keras runs on, which leave ragged and sparse ones as they are."""
    if installed.other_backend():
        import keras

        return map_leaves(keras.ops.convert_to_tensor, outputs)
    import tensorflow as tf

    return map_leaves(lambda leaf: tf.constant(leaf) if isinstance(leaf, np.ndarray) else leaf, outputs)


def concatenate(parts: list[Any]) -> Any:
    """The outputs of several batches as those of one, as Keras joins them."""
    import keras

    return keras.tree.map_structure(_join, *parts)


def _join(*values: Any) -> Any:
    if isinstance(values[0], (np.ndarray, np.generic)):
        if values[0].ndim == 0:
            return np.stack(values)
        varies = [len(set(sizes)) > 1 for sizes in zip(*(value.shape[1:] for value in values), strict=True)]
        if not any(varies):
            return np.concatenate(values)
    import tensorflow as tf

    if isinstance(values[0], tf.SparseTensor):
        return tf.sparse.concat(0, values)
    if isinstance(values[0], tf.RaggedTensor):
        return tf.concat(values, axis=0)
    inner = varies[::-1].index(True)  # so many last dimensions are the same in all batches
    shape = values[0].shape[-inner:] if inner else None
    return tf.ragged.constant(values, inner_shape=shape).merge_dims(0, 1)


# -- words ---------------------------------------------------------------------


def short(exc: BaseException, limit: int = 500) -> str:
    """What an exception says, on one line and without colours."""
    try:
        text = str(exc.args[0] if isinstance(exc, KeyError) and exc.args else exc)
    except Exception as broken:  # of the user's own class
        text = f"its text cannot be made: {type(broken).__name__}"
    text = text.partition("Full object config:")[0]  # of Keras, which is long and follows the reason
    text = " ".join(text.replace("\x1b[1m", "").replace("\x1b[0m", "").split())
    # TensorFlow begins with what failed and ends with why; between them stand the lines of its own call stack.
    return text if len(text) <= limit else f"{text[: limit // 3]} … {text[-2 * limit // 3 + 3 :]}"
