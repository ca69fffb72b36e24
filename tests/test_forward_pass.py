"""All forms of the forward pass: they give what Keras's give, and need the Keras model only where they must."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import zoo

from celery_tfpool.model_path import ModelPath
from celery_tfpool.models.handle import Handle
from celery_tfpool.models.of_process import Models
from celery_tfpool.packs.compared import write_compared
from celery_tfpool.runners.keras_model import KerasRunner

NAMES = [
    "dense",
    "conv",
    "lstm",
    "embedding",
    "several, named",
    "several, nested",
    "mixed_float16",
    "numbers, one a row",
]


if zoo.KERAS >= (3, 13):  # older ones know none
    NAMES.append("several, nested")


@pytest.fixture(scope="module", params=[name for name in NAMES if name in zoo.ZOO])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Handle, Any]:
    """A Keras model, its handle from a pack, and rows."""
    specimen = zoo.ZOO[request.param]
    folder = tmp_path_factory.mktemp("forward")
    model = specimen.build()
    model.save(folder / "model.keras")
    (folder / "pack").mkdir()
    write_compared(KerasRunner("m", model), str(folder / "pack"))
    path = str(folder / "model.keras")
    handle = Models([ModelPath("m", path)], safe_mode=False, packs={"m": str(folder / "pack")}).get()
    return model, handle, specimen.rows(40)


def same(theirs: Any, ours: Any, kind: type) -> None:
    pairs = list(zip(keras.tree.flatten(theirs), keras.tree.flatten(ours), strict=True))
    assert pairs
    for expected, came in pairs:
        assert isinstance(came, kind)
        assert isinstance(expected, kind)
        assert (expected.dtype, expected.shape) == (came.dtype, came.shape)
        np.testing.assert_allclose(np.asarray(came, "float64"), np.asarray(expected, "float64"), rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"training": False}, {"training": None}])
def test_call(both: tuple[Any, Handle, Any], options: dict[str, Any]) -> None:
    model, handle, x = both
    same(model(x, **options), handle(x, **options), tf.Tensor)
    assert not handle._lazy.is_whole


def test_predict_on_batch(both: tuple[Any, Handle, Any]) -> None:
    model, handle, x = both
    same(model.predict_on_batch(x), handle.predict_on_batch(x), np.ndarray)
    assert not handle._lazy.is_whole


@pytest.fixture
def fresh(tmp_path: Path) -> tuple[Any, Handle]:
    model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dropout(0.9), keras.layers.Dense(2)])
    model.save(tmp_path / "model.keras")
    return model, Models([ModelPath("m", str(tmp_path / "model.keras"))], safe_mode=True).get()


X = np.arange(6, dtype="float32").reshape(2, 3)


def test_tensors_keep_their_gradients(fresh: tuple[Any, Handle]) -> None:
    model, handle = fresh
    x = tf.constant(X)
    with tf.GradientTape() as theirs:
        theirs.watch(x)
        expected = model(x)
    with tf.GradientTape() as ours:
        ours.watch(x)
        came = handle(x)
    np.testing.assert_array_equal(theirs.gradient(expected, x), ours.gradient(came, x))


def test_weights_keep_their_gradients(fresh: tuple[Any, Handle]) -> None:
    """Of an array, too, if there is a tape."""
    _, handle = fresh
    with tf.GradientTape() as tape:
        came = handle(X)
    assert all(gradient is not None for gradient in tape.gradient(came, handle.trainable_variables))


def test_training(fresh: tuple[Any, Handle]) -> None:
    _, handle = fresh
    assert not np.allclose(handle(X, training=True), handle(X))


def test_in_a_function(fresh: tuple[Any, Handle]) -> None:
    model, handle = fresh
    np.testing.assert_allclose(model(X), tf.function(handle.__call__)(X), rtol=1e-6)


def test_changed_weights(fresh: tuple[Any, Handle]) -> None:
    model, handle = fresh
    np.testing.assert_allclose(model(X), handle(X), rtol=1e-6)
    handle.set_weights([2 * weight for weight in handle.get_weights()])
    np.testing.assert_allclose(2 * model(X), handle(X), rtol=1e-6)
    np.testing.assert_allclose(2 * model(X), handle.predict_on_batch(X), rtol=1e-6)
    np.testing.assert_allclose(2 * model(X), handle.predict(X), rtol=1e-6)


def test_for_functions_that_take_a_model(fresh: tuple[Any, Handle]) -> None:
    model, handle = fresh
    joined = keras.Sequential([handle.keras_model, keras.layers.Rescaling(2.0)])
    np.testing.assert_allclose(2 * model(X), joined(X), rtol=1e-6)
    assert [weight.shape for weight in model.weights] == [
        weight.shape for weight in keras.models.clone_model(handle.keras_model).weights
    ]


def test_inside_a_graph(fresh: tuple[Any, Handle]) -> None:
    """``with graph.as_default()``, as the answers of TensorFlow 1 have it; the model is loaded there as well."""
    model, handle = fresh
    with tf.Graph().as_default():
        came = handle.predict(X), handle.predict_on_batch(X)
    for one in came:
        np.testing.assert_allclose(model.predict(X, verbose=0), one, rtol=1e-6)
