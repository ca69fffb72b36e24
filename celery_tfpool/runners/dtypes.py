"""Names of dtypes, which are TensorFlow's, and NumPy's dtypes of these names."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np


def is_tensor(value: Any) -> bool:
    """A tensor or variable of TensorFlow."""
    return type(value).__module__.startswith("tensorflow.") and hasattr(value, "numpy")


def dtype_of(value: Any) -> str:
    """TensorFlow's name for the dtype of an array or tensor."""
    if is_tensor(value):
        return str(value.dtype.name)
    return _name_of(value.dtype)


@functools.cache  # NumPy makes a name anew each time, which takes longer than all else here
def _name_of(dtype: Any) -> str:
    return "string" if dtype.kind in "USOT" else str(dtype)


def itemsize(variable: Any) -> int:
    """Bytes of each number of a variable, of any Keras."""
    return numpy_dtype(getattr(variable.dtype, "name", variable.dtype)).itemsize


#: Kinds of dtypes that are numbers; V are those of ``ml_dtypes``.
_NUMBERS = "biufcV"


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The dtype of a name that NumPy or ``ml_dtypes`` knows; strings are objects.

    Raises:
        ValueError: it is none of numbers.
    """
    if name == "string":
        return np.dtype(object)
    if not isinstance(name, str) or not name.isidentifier():  # NumPy would parse it, as far as evaluating it
        raise ValueError(f"no dtype {name!r:.100}")
    try:
        dtype: np.dtype[Any] = np.dtype(name)
    except TypeError:
        import ml_dtypes  # comes with TensorFlow

        found = getattr(ml_dtypes, name, None)
        if not isinstance(found, type) or not issubclass(found, np.generic):
            raise ValueError(f"no dtype {name!r:.100}") from None
        return np.dtype(found)
    if dtype.type is np.void or dtype.kind not in _NUMBERS:
        raise ValueError(f"not a dtype of numbers: {name!r}")
    return dtype
