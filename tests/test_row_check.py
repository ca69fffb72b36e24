"""Which rows may share a call: what the graph tells, what a trial shows, and what is not known."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from keras import layers, ops
from zoo import chain

from celery_tfpool.packs.attach import PackRunner
from celery_tfpool.packs.compared import write_compared
from celery_tfpool.predictors.batching import Part
from celery_tfpool.predictors.calls import Call, run
from celery_tfpool.predictors.row_check import Reason, are_close
from celery_tfpool.predictors.served_model import ServedModel
from celery_tfpool.runners import saved_model
from celery_tfpool.runners.keras_model import KerasRunner
from celery_tfpool.runners.subclassed import FreeRunner

FLOAT32 = float(np.finfo("float32").eps)


class Function(layers.Layer):
    """A layer of the function ``call`` that it was made with, outputs of any shape."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self._function = function

    def call(self, x: Any) -> Any:
        return self._function(x)

    def compute_output_spec(self, x: Any) -> Any:
        return keras.KerasTensor(tf.function(self._function).get_concrete_function(_spec(x)).output_shapes, x.dtype)


def _spec(x: Any) -> Any:
    return tf.TensorSpec(x.shape, x.dtype)


class Noise(layers.Layer):
    """As a dropout that was left on, without a state: other numbers at each call."""

    def call(self, x: Any) -> Any:
        return x * tf.random.uniform(tf.shape(x))


class Dropout(layers.Layer):
    """Drops out when it predicts, too."""

    def __init__(self) -> None:
        super().__init__()
        self.seeds = keras.random.SeedGenerator(1)

    def call(self, x: Any) -> Any:
        return keras.random.dropout(x, 0.5, seed=self.seeds)


class Counter(layers.Layer):
    """Adds how often it was called."""

    def build(self, shape: Any) -> None:
        self.count = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, x: Any) -> Any:
        self.count.assign_add(1.0)
        return x + self.count


class Python(layers.Layer):
    def call(self, x: Any) -> Any:
        return tf.ensure_shape(tf.numpy_function(np.negative, [x], tf.float32), x.shape)


def functional(function: Any, shape: tuple[int, ...] = (3,), dtype: str = "float32") -> Any:
    inputs = layers.Input(shape, dtype=dtype)
    return keras.Model(inputs, function(inputs))


def hidden(x: Any) -> Any:
    """A small output that depends on other rows, beside a large one that does not."""
    return ops.concatenate([1e6 * x[:, :1], x[:, 1:] - ops.mean(x[:, 1:], axis=0, keepdims=True)], axis=1)


def outliers(x: Any) -> Any:
    """Which are two standard deviations away, by batch normalisation left in training; of a few rows none is."""
    columns = tf.compat.v1.nn.fused_batch_norm(x[:, None, None], [1.0] * 3, [0.0] * 3, is_training=True)[0]
    return tf.cast(tf.ensure_shape(columns, [None, 1, 1, 3])[:, 0, 0] > 2.0, "int32")


@tf.function
def largest_of_all(x: Any) -> Any:
    return tf.reduce_max(x, axis=-2, keepdims=True)


def masked() -> Any:
    """Loops over time, reduces and sorts along all axes but that of rows."""
    words = layers.Input((None,), dtype="int32")
    x = layers.Embedding(20, 8, mask_zero=True)(words)
    x = layers.LSTM(4, return_sequences=True)(x)
    x = layers.MultiHeadAttention(2, 4)(x, x, use_causal_mask=True)
    return keras.Model(words, layers.Dense(1)(layers.GlobalAveragePooling1D()(x)))


MODELS = {
    "dense": (lambda: chain((3,), layers.Dense(2)), None),
    "convolution": (lambda: chain((8, 8, 2), layers.Conv2D(3, 3), layers.Flatten(), layers.Dense(1)), None),
    "recurrent": (lambda: chain((5, 3), layers.LSTM(2)), None),
    "float16": (lambda: chain((64,), layers.Dense(64, dtype="mixed_float16"), layers.Dense(1)), None),
    "no number where an input is negative": (lambda: functional(ops.log), None),
    "centred": (lambda: functional(lambda x: x - ops.mean(x, axis=0, keepdims=True)), Reason.DEPENDENT),
    "share of all rows": (lambda: functional(lambda x: ops.softmax(x, axis=0)), Reason.DEPENDENT),
    "divided by the largest": (lambda: functional(lambda x: x / ops.max(ops.abs(x))), Reason.DEPENDENT),
    "order among rows": (lambda: functional(lambda x: ops.argsort(x, axis=0)), Reason.DEPENDENT),
    "the next row": (lambda: functional(lambda x: ops.roll(x, 1, axis=0)), Reason.DEPENDENT),
    "dependence behind a large output": (lambda: functional(hidden), Reason.DEPENDENT),
    "whole numbers that flip": (
        lambda: functional(lambda x: ops.cast(x[:, 0] > ops.mean(x[:, 0]), "int32")),
        Reason.DEPENDENT,
    ),
    "a branch from some value on": (
        lambda: chain((3,), Function(lambda x: tf.cond(x[0, 0] > 1e6, lambda: x * 0, lambda: x))),
        Reason.MIXING,
    ),
    "a loop as long as any number is large": (
        lambda: chain(
            (3,), Function(lambda x: tf.while_loop(lambda y: tf.reduce_max(y) > 1e6, lambda y: (y / 2,), (x,))[0])
        ),
        Reason.MIXING,
    ),
    "divided by 255 or more": (lambda: functional(lambda x: x / ops.maximum(ops.max(x), 255.0)), Reason.DEPENDENT),
    "divided by a million or more": (lambda: functional(lambda x: x / ops.maximum(ops.max(x), 1e6)), Reason.DEPENDENT),
    "nothing, if one is no number": (
        lambda: functional(lambda x: ops.where(ops.any(ops.isnan(x)), x * 0, x)),
        Reason.DEPENDENT,
    ),
    "nothing, if one is infinite": (
        lambda: functional(lambda x: ops.where(ops.any(ops.isinf(x)), x * 0, x)),
        Reason.MIXING,
    ),
    "whole numbers above a limit": (
        lambda: functional(lambda x: x * ops.cast(ops.max(x) < 1000, "int32"), dtype="int32"),
        Reason.MIXING,
    ),
    "sorted among rows, if large": (
        lambda: functional(lambda x: ops.where(x > 1e6, ops.sort(x, axis=0), x)),
        Reason.MIXING,
    ),
    "the mean of a column, if large": (
        lambda: functional(lambda x: x * ops.cast(ops.mean(ops.sign(x[:, 0] - 1e6), axis=-1) < 0, "float32")),
        Reason.DEPENDENT,
    ),
    "the largest of a column of whole numbers": (
        lambda: functional(lambda x: x * ops.cast(ops.max(x[:, 0], axis=-1) < 1000, "int32"), dtype="int32"),
        Reason.MIXING,
    ),
    "the fourth row before": (
        lambda: chain((3,), Function(lambda x: x - tf.pad(x, [[4, 0], [0, 0]])[: tf.shape(x)[0]])),
        Reason.DEPENDENT,
    ),
    "nothing, if there are few rows": (
        lambda: chain((3,), Function(lambda x: x * tf.cast(tf.shape(x)[0] > 3, x.dtype))),
        Reason.DEPENDENT,
    ),
    "nothing, if the row before is the same": (
        lambda: chain((3,), Function(lambda x: tf.where(x == tf.pad(x, [[1, 0], [0, 0]])[:-1], x * 0, x))),
        Reason.DEPENDENT,
    ),
    "outliers": (lambda: chain((3,), Function(outliers)), Reason.MIXING),
    "the largest in a function of its own": (
        lambda: chain((3,), Function(lambda x: tf.where(largest_of_all(x) > 1e6, x * 0, x))),
        Reason.MIXING,
    ),
    "a mask, attention": (masked, None),
    "images of any size": (
        lambda: chain((None, None, 2), layers.Conv2D(2, 3), layers.GlobalMaxPooling2D(), layers.Dense(1)),
        None,
    ),
    "the largest of its row": (
        lambda: functional(lambda x: ops.top_k(x - ops.max(x, axis=-1, keepdims=True), 2)),
        None,
    ),
    "sum of all": (lambda: functional(ops.sum), Reason.NO_ROWS),
    "rows squeezed": (lambda: functional(lambda x: ops.reshape(x, (-1,))), Reason.NO_ROWS),
    "noise": (lambda: chain((3,), Noise()), Reason.RANDOM),
    "stateful": (
        lambda: keras.Sequential([layers.Input(batch_shape=(1, 3, 2)), layers.LSTM(2, stateful=True)]),
        Reason.STATE,
    ),
    "counter": (lambda: chain((3,), Counter()), Reason.STATE),
    "dropout left on": (lambda: chain((3,), Dropout()), Reason.STATE),  # its seed
    "fixed number of rows": (
        lambda: keras.Sequential([layers.Input(batch_shape=(4, 3)), layers.Dense(1)]),
        Reason.FIXED_ROWS,
    ),
    "Python": (lambda: chain((3,), Python()), Reason.PYTHON),
    "booleans": (lambda: functional(lambda x: ops.cast(x, "float32"), dtype="bool"), Reason.NO_NOISE),
    "rows that no trial can have": (
        lambda: functional(lambda x: ops.reshape(x, (-1, 4, 3))[:, 0]),
        Reason.TRIAL_FAILED,
    ),
}


def served(model: Any, *, max_size: int = 8, budget: float = 1e9, **options: Any) -> ServedModel:
    runner = (KerasRunner if getattr(model, "inputs", None) else FreeRunner)("m", model)
    made = ServedModel(runner, max_size, **options)
    made.warm_up(budget=budget)
    return made


def computed(model: ServedModel, x: Any, batch_size: int | None = 32) -> Any:
    """As a predictor would, alone."""
    values = [x] if model.runner.inputs else x
    call = model.prepare(values, batch_size) or model.prepare_slowly(values, batch_size, 30.0)
    size = call.rows if call.is_whole else min(call.rows, call.batch_size or call.rows)
    pieces = [run([Part(call, start, start + size)])[0] for start in range(0, call.rows, size)]
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


@pytest.mark.parametrize("name", MODELS)
def test_reason(name: str) -> None:
    build, reason = MODELS[name]
    model = served(build())
    assert reason == model.alone, model.detail
    assert ("" == model.why_alone()) == (reason is None)


@pytest.mark.parametrize(
    "name",
    [
        *("dense", "a mask, attention", "images of any size", "the largest of its row", "centred"),
        *("a branch from some value on", "the largest of a column of whole numbers", "sorted among rows, if large"),
    ],
)
def test_reason_of_a_pack(name: str, tmp_path: Path) -> None:
    """Its graph tells as much."""
    build, reason = MODELS[name]
    write_compared(KerasRunner("m", build()), str(tmp_path))
    model = ServedModel(PackRunner("m", str(tmp_path)), 8)
    model.warm_up(budget=1e9)
    assert reason == model.alone, model.detail


@pytest.mark.parametrize("name", MODELS)
def test_allowed(name: str) -> None:
    """``batch = True`` shares calls of all that can be put together and told apart; it is asked of no trial."""
    build, reason = MODELS[name]
    model = served(build(), batch=True)
    assert model.alone == (reason if reason is Reason.FIXED_ROWS or name == "sum of all" else None)


def test_refused() -> None:
    model = served(chain((3,), layers.Dense(2)), batch=False)
    assert Reason.REFUSED == model.alone
    assert "batch is False" == model.why_alone()
    assert model.prepare([np.ones((1, 3), "float32")], None).key is None  # type: ignore[union-attr]


def test_how_to_allow() -> None:
    """Said of what is not known, and of what is; not where it would change nothing."""
    assert 'set "batch": True of this model' in served(MODELS["booleans"][0]()).why_alone()
    assert "batch" not in served(MODELS["fixed number of rows"][0]()).why_alone()


# -- a state is not moved, a failure skips nothing --------------------------------------


@pytest.mark.parametrize("name", ["stateful", "counter"])
@pytest.mark.parametrize("options", [{}, {"max_size": 1}, {"batch": True}, {"batch": False}])
def test_warming_up_moves_no_state(name: str, options: dict[str, Any]) -> None:
    """The first answers are Keras's first answers."""
    model = MODELS[name][0]()
    theirs = keras.models.clone_model(model)
    theirs.set_weights(model.get_weights())
    ours = served(model, **options)
    x = np.ones(tuple(size or 1 for size in model.input_shape), "float32")
    for _ in range(3):
        np.testing.assert_array_equal(theirs.predict(x, verbose=0), computed(ours, x))
    assert not ours.is_frozen


def test_failed_warm_up_skips_no_check(tmp_path: Path) -> None:
    """A signature that cannot take one row, and looks across its rows."""

    class Squeezing(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, 1, 4], tf.float32)])
        def serve(self, x: Any) -> Any:
            y = tf.cumsum(tf.squeeze(x), axis=1)
            return {"y": y - tf.reduce_mean(y, axis=0, keepdims=True)}

    module = Squeezing()
    tf.saved_model.save(module, str(tmp_path), signatures=module.serve)
    model = ServedModel(saved_model.runner_of("m", str(tmp_path)), 8)
    model.warm_up()
    assert Reason.TRIAL_FAILED == model.alone
    assert model.detail


class Slow(layers.Layer):
    """Takes a while for each call."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds, self.calls = seconds, 0

    def call(self, x: Any) -> Any:
        def wait(value: Any) -> Any:
            self.calls += 1
            time.sleep(self._seconds)
            return value

        return tf.ensure_shape(tf.py_function(wait, [x], tf.float32), x.shape)


def test_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of which a few calls take longer than warming up may: it starts with what is known by then."""
    from celery_tfpool.predictors import row_check

    monkeypatch.setattr(row_check, "_PYTHON", set())  # what takes its time here would be no reason by itself
    slow = Slow(0.5)
    started = time.monotonic()
    model = served(chain((3,), slow), budget=2.0)
    assert Reason.NO_TIME == model.alone
    assert slow.calls <= 2
    assert time.monotonic() - started < 30
    assert not model.is_frozen


# -- models that do not say what they take -----------------------------------------


@keras.saving.register_keras_serializable("test_row_check")
class Subclassed(keras.Model):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self._function = function

    def call(self, x: Any) -> Any:
        return self._function(x)


def asked(model: ServedModel, x: Any, *, seconds: float = 0.01, time_left: float = 30.0, alone: bool = False) -> Call:
    """The call of one request, which takes so long."""
    call = model.prepare(x, None, alone=alone) or model.prepare_slowly(x, None, time_left, alone=alone)
    model.took(call.compiled, seconds)
    return call


def key_of(model: ServedModel, x: Any) -> Any:
    """Of the second request like ``x``; the first shares no call."""
    assert asked(model, x).key is None
    return asked(model, x).key


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: x * 2, None),
        (lambda x: x - tf.reduce_mean(x, axis=0), Reason.DEPENDENT),
        (tf.reduce_sum, Reason.NO_ROWS),
        (lambda x: x * tf.random.uniform(tf.shape(x)), Reason.RANDOM),
        (lambda x: tf.numpy_function(np.negative, [x], tf.float32), Reason.PYTHON),
        (lambda x: tf.cond(tf.reduce_max(x) > 1e6, lambda: x * 0, lambda: x), Reason.MIXING),
    ],
)
def test_first_requests_of_a_subclassed_model(function: Any, reason: Reason | None) -> None:
    """They show whether the next ones may share a call."""
    model = served(Subclassed(function))
    assert Reason.NOT_TRIED == model.alone
    x = np.ones((2, 3), "float32")
    assert model.prepare(x, None) is None
    assert (key_of(model, x) is None) == (reason is not None)
    assert reason == model.alone
    assert model.prepare(x, None) is not None  # no other trial
    assert asked(model, x).key == asked(model, x + 1).key


@pytest.mark.parametrize("x", [np.array([["a"], ["b"]], object), np.ones((2, 3), bool)])
def test_requests_with_which_no_trial_can_be_made(x: Any) -> None:
    model = served(Subclassed(lambda x: tf.strings.length(x) if x.dtype == tf.string else tf.cast(x, tf.float32)))
    assert key_of(model, x) is None
    assert Reason.NO_NOISE == model.alone


def test_each_trace_is_tried() -> None:
    """A subclassed model that looks across rows of one kind of input only."""
    model = served(Subclassed(lambda x: x * 2 if x.shape.rank == 2 else x - tf.reduce_mean(x, axis=0)))
    assert key_of(model, np.ones((2, 3), "float32")) is not None
    assert key_of(model, np.ones((2, 3, 1), "float32")) is None
    assert asked(model, np.ones((2, 3), "float32")).key is not None


def test_slow_subclassed_model() -> None:
    """Nobody's answer comes too late because of a trial."""
    calls: list[int] = []

    def counted(x: Any) -> Any:
        calls.append(1)
        return x * 2

    model, x = served(Subclassed(counted)), np.ones((2, 3), "float32")
    assert asked(model, x, seconds=2.0).key is None
    assert Reason.NOT_TRIED == model.alone
    # Who is asked again alone, after a death, waits for no trial, however short it is.
    assert asked(model, x, seconds=2.0, time_left=3600.0, alone=True).key is None
    assert Reason.NOT_TRIED == model.alone
    assert asked(model, x, seconds=2.0, time_left=30.0).key is None
    assert Reason.NO_TIME == model.alone
    assert 'set "batch": True' in model.why_alone()
    assert model.prepare(x, None) is not None  # and no request waits for one later
    assert [1] == calls  # the trace


def test_state_of_a_subclassed_model() -> None:
    """No trial moves it: answers are Keras's from the first on."""

    class Counting(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.count = self.add_weight(shape=(), initializer="zeros", trainable=False)

        def call(self, x: Any) -> Any:
            self.count.assign_add(1.0)
            return x + self.count

    ours = served(Counting())
    x = np.zeros((1, 1), "float32")
    assert [1.0, 2.0, 3.0] == [computed(ours, x).item() for _ in range(3)]
    assert Reason.STATE == ours.alone


# -- how much is rounding --------------------------------------------------------------


@given(
    st.lists(st.floats(-1e3, 1e3, width=32), min_size=8, max_size=8),
    st.integers(0, 7),
    st.sampled_from([1e-6, 1e-3, 1.0, 1e6]),
)
def test_close(row: list[float], place: int, scale: float) -> None:
    """Rounding is no difference, whatever the scale; a per mille of the row's largest is one."""
    one = np.array([row, row], "float64") * scale
    largest = np.abs(one).max()
    other = one.copy()
    other[0, place] += largest * FLOAT32
    is_rounding = abs(other[0, place] - one[0, place]) <= 2**-6 * np.abs(other[:, place]).max()
    assert is_rounding == are_close(one, other, FLOAT32)
    other[0, place] += largest * 1e-3
    assert (largest == 0) == are_close(one, other, FLOAT32)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ([[1, 2]], [[1, 2]], True),
        ([[1, 2]], [[1, 3]], False),
        ([[True]], [[False]], False),
        ([[np.nan, np.inf]], [[np.nan, np.inf]], True),
        ([[np.nan, 1.0]], [[1.0, 1.0]], False),
        ([[np.inf]], [[-np.inf]], False),
        (np.zeros((3, 0)), np.zeros((3, 0)), True),
        (np.zeros((3, 1)), np.zeros((3, 2)), False),
        (np.zeros((3, 1), "float32"), np.zeros((3, 1), "float64"), False),
    ],
)
def test_close_beyond_floats(one: Any, other: Any, expected: bool) -> None:
    assert expected == are_close(np.asarray(one), np.asarray(other), FLOAT32)
