"""Arrays as bytes, and messages put together from whatever pieces come."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from celery_tfpool import InvalidInputError, PredictionError, PredictionTimeout, PredictorOverloaded
from celery_tfpool.predictors.codec import ALIGNMENT, CannotDecode, CannotEncode, aligned, decode, encode
from celery_tfpool.predictors.framing import BadMessage, Message, Reader, TooLarge, message
from celery_tfpool.predictors.messages import Refusal, head_of


def through(structure: Any) -> Any:
    description, buffers = encode(structure)
    body = aligned(sum(map(len, buffers)))
    body[:] = b"".join(buffers)
    return decode(json.loads(json.dumps(description)), body)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    equal_bytes = one.tobytes() == other.tobytes() if one.dtype != object else one.tolist() == other.tolist()
    return one.dtype == other.dtype and one.shape == other.shape and equal_bytes


numbers = st.one_of(hnp.boolean_dtypes(), hnp.integer_dtypes(), hnp.floating_dtypes(), hnp.complex_number_dtypes())
structures = st.recursive(
    hnp.arrays(numbers, hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4)),
    lambda parts: st.one_of(
        st.lists(parts, max_size=3),
        st.lists(parts, max_size=3).map(tuple),
        st.dictionaries(st.text(), parts, max_size=3),
    ),
    max_leaves=5,
)


@settings(max_examples=200)
@given(structures)
def test_any_structure(structure: Any) -> None:
    """Any rank, any dtype of numbers in any byte order, no rows, nested as one likes: bit for bit."""

    def native(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: native(part) for key, part in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(map(native, value))
        return value.astype(value.dtype.newbyteorder("="))

    assert same(native(structure), through(structure))


@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "int4"])
def test_dtypes_that_numpy_lacks(name: str) -> None:
    array = np.arange(6).reshape(2, 3).astype(getattr(ml_dtypes, name))
    assert same(array, through(array))


@given(hnp.arrays(object, hnp.array_shapes(min_side=0), elements=st.one_of(st.text(), st.binary())))
def test_strings(array: Any) -> None:
    """Come back as bytes, as they do from TensorFlow; NULs at their ends as well."""
    expected = [s.encode() if isinstance(s, str) else s for s in array.reshape(-1).tolist()]
    came = through(array)
    assert (array.shape, expected) == (came.shape, came.reshape(-1).tolist())


def test_slices_and_transposed_arrays() -> None:
    array = np.arange(24.0).reshape(4, 6)[::2, 1::3].T
    assert np.array_equal(array, through(array))


def test_arrays_are_aligned_and_not_copied() -> None:
    """As TensorFlow likes them: each begins at a multiple of 64 bytes."""
    description, buffers = encode([np.ones(3, "float32"), np.ones(5), np.ones((2, 2), "int8")])
    body = aligned(sum(map(len, buffers)))
    body[:] = b"".join(buffers)
    for array in decode(description, body):
        assert 0 == array.ctypes.data % ALIGNMENT
        assert np.shares_memory(array, np.frombuffer(body, "uint8"))


@pytest.mark.parametrize(
    ("structure", "reason"),
    [
        (np.array([object()]), "an array of objects with a object in them"),
        (np.array(["2026-11-24"], "datetime64[D]"), r"an array of datetime64\[D\]"),
        (np.zeros(2, [("a", "f4")]), "an array of "),
        (np.zeros(2, "V8"), r"an array of \|V8"),
        (3.0, "a float in them"),
        ({1: np.zeros(1)}, "names that are not strings"),
    ],
)
def test_what_is_no_array(structure: Any, reason: str) -> None:
    with pytest.raises(CannotEncode, match=reason):
        encode(structure)


def test_arrays_may_be_written_to() -> None:
    """As Keras's may; none shares memory with another."""
    one, other, text = through([np.zeros(3), np.zeros(3), np.array(["a"], object)])
    one += 1
    text[0] = b"b"
    assert [0.0, 0.0, 0.0] == other.tolist()


DEEP: Any = {"leaf": ["float32", [1], 4]}
for _ in range(100_000):
    DEEP = {"list": [DEEP]}


@pytest.mark.parametrize(
    "facts",
    [
        None,
        [],
        {},
        {"leaf": 1},
        {"leaf": ["float32", [1]]},
        {"leaf": ["float32", [1], 4], "list": []},
        {"heap": []},
        {"list": 3},
        {"dict": [["a"]]},
        {"leaf": ["float32", 1, 4]},
        {"leaf": ["float32", [-1], 4]},
        {"leaf": ["float32", [1], -4]},
        {"leaf": ["float32", [1.0], 4]},
        {"leaf": ["float32", [True], 4]},
        {"leaf": ["float32", [2], 4]},
        {"leaf": ["float32", [2**40, 2**40], 4]},
        {"leaf": ["float32", [1], 3]},
        {"leaf": ["O", [1], 8]},
        {"leaf": ["object", [1], 8]},
        {"leaf": ["V4", [1], 4]},
        {"leaf": ["M8[s]", [1], 8]},
        {"leaf": ["U1", [1], 4]},
        {"leaf": ["f4,f4", [1], 8]},
        {"leaf": ["finfo", [1], 8]},
        {"leaf": [["f4"], [1], 4]},
        {"leaf": [None, [1], 8]},
        {"leaf": ["string", [2**62], 64]},
        {"leaf": ["string", [9], 64]},
        {"leaf": ["string", [1], 64]},
        DEEP,
    ],
)
def test_what_describes_no_arrays(facts: Any) -> None:
    """Is refused in one way, and takes no memory."""
    with pytest.raises(CannotDecode):
        decode(facts, aligned(64))


def test_description_and_body_do_not_fit() -> None:
    description, _ = encode(np.zeros(100))
    with pytest.raises(CannotDecode, match="too few"):
        decode(description, aligned(99))


# -- messages -------------------------------------------------------------------


def received(data: bytes, sizes: Sequence[int]) -> list[Message]:
    """The messages in ``data`` when it comes in pieces of these sizes, again and again."""
    reader, position, messages, turn = Reader(), 0, [], 0
    while position < len(data):
        buffer = reader.buffer()
        piece = data[position : position + min(len(buffer), sizes[turn % len(sizes)])]
        buffer[: len(piece)] = piece
        messages += reader.received(len(piece))
        position, turn = position + len(piece), turn + 1
    return messages


heads = st.dictionaries(st.text(max_size=5), st.integers(), max_size=3)
bodies = st.one_of(st.binary(max_size=200), st.integers(60_000, 200_000).map(lambda n: bytes(range(256)) * (n // 256)))


@settings(max_examples=100)
@given(
    several=st.lists(st.tuples(heads, bodies), min_size=1, max_size=5),
    sizes=st.lists(st.one_of(st.integers(1, 50), st.integers(1, 100_000)), min_size=1, max_size=4),
)
def test_any_pieces(several: list[tuple[dict[str, Any], bytes]], sizes: list[int]) -> None:
    """However few bytes come at a time, or however many messages at once, each is whole and in its place."""
    data = b"".join(b"".join(message(head, [body])) for head, body in several)
    assert several == [(head, bytes(body)) for head, body in received(data, sizes)]


def test_long_json() -> None:
    head = {"text": "x" * 300_000}
    assert [head] == [came for came, _ in received(b"".join(message(head)), [1000])]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "it begins with b'GET"),
        (struct.pack("<4sIQ", b"TFP1", 2**31, 0), "it begins with"),
        (struct.pack("<4sIQ", b"TFP1", 3, 0) + b"{]}", "its JSON is none"),
        (struct.pack("<4sIQ", b"TFP1", 4, 0) + b"\xff\xfe\xfd\xfc", "its JSON is none"),
        (struct.pack("<4sIQ", b"TFP1", 2, 0) + b"[]", "its JSON is no object"),
        (struct.pack("<4sIQ", b"TFP1", 2, 2**63) + b"{}", "it says that its body has 9223372036854775808 bytes"),
    ],
)
def test_garbage(data: bytes, reason: str) -> None:
    """Is no message, and takes no memory."""
    with pytest.raises(BadMessage, match=reason):
        received(data, [len(data)])


def test_larger_than_is_received() -> None:
    """Is refused before there is memory for it."""
    start = message({"x": 1}, [b"x" * 1001])[0][:30]
    reader = Reader(max_body=1000)
    reader.buffer()[: len(start)] = start
    with pytest.raises(TooLarge, match=r"its body has 1,001 bytes, of which 1,000 at most are received"):
        reader.received(len(start))


def test_memory_of_a_long_json_is_given_back() -> None:
    reader = Reader()
    first = len(reader.buffer())
    data = b"".join(message({"text": "x" * 3_000_000}))
    while data:
        piece = data[: len(reader.buffer())]
        reader.buffer()[: len(piece)] = piece
        data = data[len(piece) :]
        reader.received(len(piece))
    assert first == len(reader.buffer())


# -- errors as messages --------------------------------------------------------------


class OwnError(PredictionError):
    """Of a user."""


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


@pytest.mark.parametrize(
    ("raised", "comes"),
    [
        (InvalidInputError("m", "this", "that"), InvalidInputError("m", "this", "that")),
        (PredictionTimeout("m", 3.5, "expires"), PredictionTimeout("m", 3.5, "expires")),
        (PredictorOverloaded("m", 3, None), PredictorOverloaded("m", 3, None)),
        (OwnError("x", 3), PredictionError("m", "OwnError: model 'x' could not predict: 3")),
        (PredictionError("m", {1}), PredictionError("m", "PredictionError: model 'm' could not predict: {1}")),
        (Unspeakable(), PredictionError("m", "Unspeakable: its text cannot be made: RuntimeError")),
        (KeyError("k"), PredictionError("m", "KeyError: k")),
        (SystemExit(3), PredictionError("m", "SystemExit: 3")),
    ],
)
def test_errors_on_their_way(raised: BaseException, comes: Exception) -> None:
    refusal = head_of(json.loads(json.dumps(Refusal.of(1, "m", raised).to_json())))
    assert isinstance(refusal, Refusal)
    came = refusal.exception()
    assert (type(comes), comes.args) == (type(came), came.args)
