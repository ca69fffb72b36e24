"""Arrays as bytes and back, in whatever structure they come, without pickle.

A structure becomes JSON that says what is where, and buffers that are the
arrays' own memory wherever that is possible.  Each array begins at a multiple
of 64 bytes, as TensorFlow likes it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..runners.dtypes import dtype_of, numpy_dtype
from ..runners.protocol import CannotPack, Runner
from ..runners.structure import CannotEncode, structure_of_json, structure_to_json

ALIGNMENT = 64


class CannotDecode(ValueError):
    """What came describes no arrays, or others than came."""


def encode(structure: Any) -> tuple[Any, list[Any]]:
    """JSON that describes a structure of arrays, and the buffers that make its body when written one after another.

    Arrays may have any rank, any number of rows and any dtype of NumPy or
    ``ml_dtypes`` that is numbers; and dtype object, if all they hold is str or
    bytes, which come back as bytes, as they do from TensorFlow.

    Raises:
        CannotEncode: what stands in the structure is no such array.
    """
    buffers: list[Any] = []

    def leaf(value: Any) -> Any:
        data, dtype = _data_of(value)
        length = sum(map(len, data))
        buffers.extend(data)
        if length % ALIGNMENT:
            buffers.append(bytes(-length % ALIGNMENT))
        return [dtype, list(value.shape), length]

    return structure_to_json(structure, leaf), buffers


def decode(facts: Any, body: memoryview) -> Any:
    """The structure that `encode` described; its arrays of numbers use the memory of ``body``, and may be written to.

    Raises:
        CannotDecode: ``facts`` describe nothing, or do not fit ``body``.
    """
    position = 0

    def leaf(value: Any) -> NDArray[Any]:
        nonlocal position
        dtype, shape, length = value
        if not all(type(size) is int and size >= 0 for size in (*shape, length)):
            raise ValueError("sizes that are none")
        data = body[position : position + length]
        if len(data) != length:
            raise ValueError("too few bytes")
        position += length + -length % ALIGNMENT
        if dtype == "string":
            return _strings_of(data, shape)
        return np.frombuffer(data, dtype=numpy_dtype(dtype)).reshape(shape)

    try:
        return structure_of_json(facts, leaf)
    except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RecursionError) as exc:
        raise CannotDecode(f"no arrays of {len(body)} bytes: {_short(facts)} ({type(exc).__name__}: {exc})") from exc


def _short(facts: Any) -> str:
    """The begin of ``facts``, for messages."""
    try:
        return repr(facts)[:200]
    except RecursionError:
        return "something very deep"


def why_not_sent(runner: Runner) -> str:
    """Why inputs or outputs of this model cannot be sent to another process; empty when they can."""
    import keras

    try:
        if runner.inputs:
            runner.inputs_to_json()
            known = all(None not in port.shape[1:] for port in runner.inputs)
            for leaf in keras.tree.flatten(runner.compiled().outputs):
                if type(leaf).__name__ in ("RaggedTensor", "SparseTensor", "RaggedTensorSpec", "SparseTensorSpec"):
                    return "its outputs are ragged or sparse"
                if known and leaf.shape.rank and None in leaf.shape[1:]:  # as wide as the longest text, say
                    return "the size of its outputs depends on what is in its inputs"
    except (CannotEncode, CannotPack) as exc:
        return f"its inputs {exc}" if isinstance(exc, CannotEncode) else str(exc)
    return ""


def aligned(length: int) -> memoryview:
    """So many bytes of new memory, at a multiple of 64.

    Raises:
        MemoryError: there are not so many.
    """
    memory = np.empty(length + ALIGNMENT, np.uint8)
    start = -memory.__array_interface__["data"][0] % ALIGNMENT
    return memory[start : start + length].data


def _data_of(value: Any) -> tuple[Sequence[Any], str]:
    if not isinstance(value, np.ndarray):
        raise CannotEncode(f"have a {type(value).__name__} in them")
    if value.dtype.kind in "OSUT":
        return _of_strings(value), "string"
    if value.dtype.hasobject or value.dtype.type is np.void or value.dtype.kind in "mM":
        raise CannotEncode(f"have an array of {value.dtype} in them")
    native = np.ascontiguousarray(value, value.dtype.newbyteorder("="))
    return [native.reshape(-1).view(np.uint8).data], dtype_of(native)


def _of_strings(value: NDArray[Any]) -> list[bytes]:
    parts = [part.encode() if isinstance(part, str) else part for part in value.reshape(-1).tolist()]
    for part in parts:
        if not isinstance(part, bytes):
            raise CannotEncode(f"have an array of objects with a {type(part).__name__} in them")
    return [np.array([len(part) for part in parts], "<u8").tobytes(), b"".join(parts)]


def _strings_of(data: memoryview, shape: list[int]) -> NDArray[Any]:
    count = math.prod(shape)
    if 8 * count > len(data):
        raise ValueError(f"{count} strings in {len(data)} bytes")
    lengths = np.frombuffer(data[: 8 * count], "<u8")
    strings, position = np.empty(count, object), 8 * count
    for number, length in enumerate(lengths.tolist()):
        strings[number] = bytes(data[position : position + length])
        position += length
    if position != len(data):
        raise ValueError(f"{count} strings of {position} bytes in {len(data)}")
    return strings.reshape(shape)
