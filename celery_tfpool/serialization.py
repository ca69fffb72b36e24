"""The serializer "tensor": arguments and results of tasks in which arrays stay arrays, without pickle.

    app.conf.update(task_serializer="tensor", result_serializer="tensor", accept_content=["tensor", "json"])

It is msgpack with three types of extensions: arrays, scalars of NumPy, and what kombu's JSON knows (dates, decimals,
UUIDs).  Any dtype and rank, nested in dicts and lists; tuples become lists, as in JSON, but for keys of dicts.  kombu
knows it wherever this package is installed; a client needs neither TensorFlow nor the pool.

kombu loads this module with its other serializers, in every process, so it imports what it needs when that is used.
"""

from __future__ import annotations

import importlib
import math
import re
import sys
from collections.abc import Callable
from typing import Any

CONTENT_TYPE = "application/vnd.celery-tfpool.tensor"
#: Types of extensions.
_ARRAY, _SCALAR, _JSON = 1, 2, 3
#: NumPy's own words for dtypes of dates and of texts of fixed width; those of numbers have names.
_DATE_OR_TEXT = re.compile(r"[<|][mMSU]\d{1,9}(\[\d*\w{1,2}\])?")


def dumps(value: Any) -> bytes:
    """``value`` as bytes.

    Raises:
        TypeError: there is something in it that is no array, and that kombu's JSON does not know either.
        ImportError: msgpack is not installed.
    """
    return bytes(_msgpack().packb(value, default=_encoded))


def loads(data: Any) -> Any:
    """The inverse of `dumps`; arrays may be written to.

    Raises:
        ValueError: these bytes are none of `dumps`.
    """
    from_bytes = memoryview(data).tobytes() if not isinstance(data, bytes) else data
    return _msgpack().unpackb(from_bytes, ext_hook=_decoded, object_pairs_hook=_dict_of, strict_map_key=False)


#: What kombu is told, by the entry point ``tensor`` of the group ``kombu.serializers``.
tensor: tuple[Callable[[Any], bytes], Callable[[Any], Any], str, str] = dumps, loads, CONTENT_TYPE, "binary"


def _msgpack() -> Any:
    try:
        import msgpack
    except ImportError as exc:
        raise ImportError(
            'the serializer "tensor" needs msgpack, which is not installed: pip install "celery-tfpool[tensor]"'
        ) from exc
    return msgpack


def _dict_of(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    return {_key(key): value for key, value in pairs}


def _key(key: Any) -> Any:
    """``key`` as it was: a tuple comes as a list, which is no key."""
    return tuple(map(_key, key)) if isinstance(key, list) else key


def _encoded(value: Any) -> Any:
    if "numpy" in sys.modules and hasattr(value, "__array__"):
        import numpy as np

        from .runners.convert import is_dense

        if isinstance(value, np.ma.MaskedArray):
            raise TypeError("a masked array, whose mask would be lost; send its data and its mask")
        if is_dense(value):
            kind = _SCALAR if isinstance(value, np.generic) else _ARRAY
            return _msgpack().ExtType(kind, _array_to_bytes(np.asarray(value)))
    return _msgpack().ExtType(_JSON, _json().dumps(value).encode())


def _json() -> Any:
    return importlib.import_module("kombu.utils.json")


def _array_to_bytes(array: Any) -> bytes:
    kind = array.dtype.kind
    if kind in "OT":
        items: Any = array.reshape(-1).tolist()
        for item in items:
            if not isinstance(item, (str, bytes)):
                raise TypeError(f"an array of objects with a {type(item).__name__} in it; only str and bytes are sent")
        name = "object"
    elif kind in "biufcmMSU":
        little = array.dtype.newbyteorder("<")
        name = little.str if kind in "mMSU" else little.name
        items = array.astype(little, copy=False).tobytes()
    elif array.dtype.names is None and not array.dtype.hasobject and str(array.dtype).isidentifier():
        name, items = str(array.dtype), array.tobytes()
    else:
        raise TypeError(f"an array of {array.dtype}; only those of numbers, dates and texts are sent")
    return bytes(_msgpack().packb([name, list(array.shape), items]))


def _decoded(code: int, data: bytes) -> Any:
    if code == _JSON:
        return _json().loads(data)
    if code not in (_ARRAY, _SCALAR):
        raise ValueError(f"an extension of type {code}")
    name, shape, items = _msgpack().unpackb(data)
    if not all(type(size) is int and 0 <= size < 2**63 for size in shape) or len(shape) > 32:
        raise ValueError(f"no shape: {shape!r:.100}")
    array = _array_of(name, math.prod(shape), items).reshape(shape)
    return array[()] if code == _SCALAR else array


def _array_of(name: Any, count: int, items: Any) -> Any:
    import numpy as np

    if name == "object":
        array = np.empty(len(items), object)
        array[:] = items
        if len(items) != count or not all(isinstance(item, (str, bytes)) for item in items):
            raise ValueError(f"{len(items)} items in place of {count} texts")
        return array
    dtype = _dtype_of(name)
    if not isinstance(items, bytes) or len(items) != count * dtype.itemsize:
        raise ValueError(f"{len(items)} bytes in place of {count} times {dtype.itemsize}")
    if not items:
        return np.empty(count, dtype)
    return np.frombuffer(bytearray(items), dtype)


def _dtype_of(name: Any) -> Any:
    import numpy as np

    from .runners.dtypes import numpy_dtype

    if isinstance(name, str) and _DATE_OR_TEXT.fullmatch(name):
        return np.dtype(name)
    dtype = numpy_dtype(name)
    if dtype.hasobject:
        raise ValueError(f"no dtype of numbers, dates or texts: {name!r:.100}")
    return dtype if dtype.kind == "V" else dtype.newbyteorder("<")  # those of `ml_dtypes` have one order only
