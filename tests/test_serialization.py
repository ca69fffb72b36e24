"""Arrays in and out of tasks: as lists in JSON, and as they are with the serializer "tensor"."""

from __future__ import annotations

import datetime
import decimal
import os
import random
import subprocess
import sys
import uuid
from typing import Any

import ml_dtypes
import msgpack
import numpy as np
import psutil
import pytest
from conftest import StartWorker
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from kombu.exceptions import DecodeError, EncodeError
from kombu.serialization import dumps, loads

TENSOR = "application/vnd.celery-tfpool.tensor"


def decoded(data: bytes) -> Any:
    return loads(data, TENSOR, "binary", accept=[TENSOR])


def through(value: Any) -> Any:
    content_type, encoding, data = dumps(value, serializer="tensor")
    assert (TENSOR, "binary") == (content_type, encoding)
    return decoded(data)


def assert_same(one: Any, other: Any) -> None:
    if isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, (list, tuple)):
        assert isinstance(other, list)
        for pair in zip(one, other, strict=True):
            assert_same(*pair)
    elif isinstance(one, (np.ndarray, np.generic)) and not isinstance(one, (float, str, bytes)):
        assert isinstance(other, (np.ndarray, np.generic))
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert one.tolist() == other.tolist() if one.dtype == object else one.tobytes() == other.tobytes()
    else:
        assert one == other or (one != one and other != other)


dtypes = st.one_of(hnp.scalar_dtypes(), hnp.unicode_string_dtypes(), hnp.byte_string_dtypes())
arrays = hnp.arrays(
    dtypes.map(lambda dtype: dtype.newbyteorder("<")), hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4)
)
plain = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary())
values = st.recursive(
    st.one_of(arrays, plain),
    lambda parts: st.one_of(st.lists(parts, max_size=3), st.dictionaries(st.text(), parts, max_size=3)),
    max_leaves=6,
)


@settings(max_examples=300)
@given(values)
def test_any_value(value: Any) -> None:
    assert_same(value, through(value))


@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "int4"])
def test_dtypes_that_numpy_lacks(name: str) -> None:
    array = np.arange(6).reshape(2, 3).astype(getattr(ml_dtypes, name))
    assert_same(array, through(array))


@pytest.mark.parametrize(
    "value",
    [
        np.float32(1.5),
        np.float64(1.5),
        np.datetime64("2026-11-26"),
        np.array([["a", b"b\0"], ["", "ü"]], object),
        np.arange(6)[::2],
        np.arange(6.0).reshape(2, 3).T,
        [datetime.datetime(2026, 11, 26, 12), datetime.date(2026, 11, 26), decimal.Decimal("1.10"), uuid.UUID(int=7)],
        {1: 2**70, "nested": {"deep": [np.zeros((0, 3))]}},
    ],
    ids=lambda value: type(value).__name__,
)
def test_as_it_was(value: Any) -> None:
    assert_same(value, through(value))


def test_big_endian_arrays_come_native() -> None:
    came = through(np.arange(3, dtype=">i4"))
    assert ("int32", [0, 1, 2]) == (came.dtype.name, came.tolist())


def test_arrays_may_be_written_to() -> None:
    came = through(np.zeros(3))
    came += 1
    assert [1.0, 1.0, 1.0] == came.tolist()


def test_tensors() -> None:
    import tensorflow as tf

    came = through({"x": tf.constant([[1.0, 2.0]]), "words": tf.constant([b"a"])})
    assert_same({"x": np.array([[1, 2]], "float32"), "words": np.array([b"a"], object)}, came)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (object(), "not JSON serializable"),
        (np.array([object()]), "an array of objects with a object in it"),
        (np.array(["a", None], object), "an array of objects with a NoneType in it"),
        (np.array(["a", 0], object), "an array of objects with a int in it"),
        (np.ma.array([1, 2], mask=[False, True]), "a masked array, whose mask would be lost"),
        (np.zeros(2, [("a", "f4")]), "an array of "),
        (np.zeros(2, "V8"), "an array of "),
    ],
    ids=["object", "objects", "a text missing", "a number", "masked", "records", "void"],
)
def test_what_is_not_sent(value: Any, words: str) -> None:
    with pytest.raises(EncodeError, match=words):
        dumps(value, serializer="tensor")


def test_keys() -> None:
    """Of whatever kind they are."""
    value = {(1, (2, "a")): 1, None: 2, 3: 4, b"k": 5, "s": {("t",): 6}}
    assert value == through(value)


def test_no_more_bytes_than_the_array_has() -> None:
    array = np.random.default_rng(0).random((224, 224, 3), "float32")
    assert len(dumps(array, serializer="tensor")[2]) < array.nbytes + 100


# -- hostile messages ---------------------------------------------------------------------


def packed(code: int, value: Any) -> bytes:
    data: bytes = msgpack.packb(msgpack.ExtType(code, msgpack.packb(value)))
    return data


@pytest.mark.parametrize(
    "data",
    [
        b"\xc1",
        b"\xdd\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\x91" * 100_000,
        packed(1, ["float32", [2**40, 2**40], b""]),
        packed(1, ["float32", [-1], b"1234"]),
        packed(1, ["float32", [True], b"1234"]),
        packed(1, ["float32", [1] * 65, b"1234"]),
        packed(1, ["float32", [2], b"1234"]),
        packed(1, ["float32", [1], "1234"]),
        packed(1, ["|O8", [1], b"12345678"]),
        packed(1, ["O", [1], b"12345678"]),
        packed(1, ["<f4,<f4", [1], b"12345678"]),
        packed(1, ["<V8", [1], b"12345678"]),
        packed(1, ["<U999999999", [1], b""]),
        packed(1, ["float8_e4m3fn.__class__", [1], b"1"]),
        packed(1, ["finfo", [1], b"1"]),
        packed(1, ["object", [2], ["a"]]),
        packed(1, ["object", [1], [[1]]]),
        packed(1, "what"),
        packed(1, {}),
        packed(3, {"a": 1}),
        packed(9, [1]),
    ],
    ids=lambda data: repr(data[:40]),
)
def test_nonsense(data: bytes) -> None:
    with pytest.raises(DecodeError):
        decoded(data)


def test_damaged_messages() -> None:
    """Nothing but an error or another value, and bounded memory."""
    chance, count = random.Random(1), int(os.environ.get("TFPOOL_FUZZ_MESSAGES", "20000"))
    samples = [
        dumps(value, serializer="tensor")[2]
        for value in (
            {"x": np.arange(12.0).reshape(3, 4), "y": [np.float32(1), "text", None]},
            [np.array(["a", b"bc"], object), np.array(["2026"], "M8[Y]"), np.array(["wide"])],
            {"when": datetime.datetime(2026, 11, 26), "empty": np.zeros((0, 3), "int8")},
        )
    ]
    process = psutil.Process()
    before, most, whole, refused = process.memory_info().rss, 0, 0, 0
    for number in range(count):
        data = bytearray(chance.choice(samples))
        for _ in range(chance.randint(1, 4)):
            place, kind = chance.randrange(len(data) + 1), chance.randrange(8)
            if kind and place < len(data):
                data[place] = chance.randrange(256)
            elif chance.random() < 0.5:
                data[place:place] = chance.randbytes(chance.randint(1, 8))
            else:
                del data[place:]
        try:
            decoded(bytes(data))
            whole += 1
        except DecodeError:
            refused += 1
        if number % 100 == 0:
            most = max(most, process.memory_info().rss - before)
    print(f"{count} messages: {whole} whole, {refused} refused; grown by {most / 2**20:.0f} MB")
    assert min(whole, refused) > count / 50
    assert most < 100 * 2**20


# -- real tasks ---------------------------------------------------------------------------------


def test_json_of_a_task(start_worker: StartWorker, digits: str) -> None:
    """``return model.predict(x)``, with Celery's default serializer."""
    worker = start_worker("-c", "1", conf={"tf_model_path": digits})
    assert {"predicted": [[16.0]], "number": 1.5, "tensor": [1, 2], "flag": True} == worker.call("return_arrays")


@pytest.mark.parametrize("broker", ["redis", "amqp", "filesystem"])
def test_tensors_of_a_task(start_worker: StartWorker, digits: str, broker: str, request: Any) -> None:
    """Arguments and results arrive as what they were."""
    conf = {"tf_model_path": digits, "accept_content": ["json", "tensor"], "result_serializer": "tensor"}
    if broker == "amqp":
        conf["broker_url"] = request.getfixturevalue("rabbitmq_url")
    worker = start_worker("-c", "1", broker="redis" if broker == "amqp" else broker, conf=conf)
    sent = {"image": np.arange(2**18).astype("uint8").reshape(512, 512), "scale": np.float32(0.5)}
    came = worker.call("echo", sent, serializer="tensor")
    assert_same(sent, came["value"])
    assert ["ndarray", "float32"] == came["kinds"]
    assert_same(np.array([[16.0]], "float32"), worker.call("return_arrays")["predicted"])


def test_a_client() -> None:
    """Needs no import for "tensor", one for arrays in JSON, and neither TensorFlow nor the pool."""
    program = """
import sys
import numpy as np
from kombu.serialization import dumps, loads
content_type, encoding, data = dumps({"x": np.ones(3)}, serializer="tensor")
assert loads(data, content_type, encoding, accept=[content_type])["x"].tolist() == [1.0, 1.0, 1.0]
import celery_tfpool.arrays
assert dumps({"x": np.ones(2)}, serializer="json")[2] == '{"x": [1.0, 1.0]}'
print(sorted(name for name in sys.modules if name.startswith(("tensorflow", "keras", "celery_tfpool.p"))))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "[]" == done.stdout.strip()
