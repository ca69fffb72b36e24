"""All forms of the forward pass: they give what Keras's give, and need the Keras model only where they must."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import zoo

from celery_tfpool import InvalidInputError, PredictionError
from celery_tfpool.model_path import ModelPath
from celery_tfpool.models.handle import Handle
from celery_tfpool.models.of_process import Models
from celery_tfpool.packs.attach import PackRunner
from celery_tfpool.packs.compared import write_compared
from celery_tfpool.packs.layers import _returning
from celery_tfpool.predictors import calls
from celery_tfpool.predictors.batching import Part
from celery_tfpool.predictors.served_model import ServedModel
from celery_tfpool.runners.convert import concatenate
from celery_tfpool.runners.keras_model import KerasRunner
from celery_tfpool.runners.subclassed import FreeRunner

NAMES = [
    "dense",
    "conv",
    "lstm",
    "embedding",
    "several, named",
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


# -- what layers inside it give ------------------------------------------------------------------


def expected_of(model: Any, names: Any, x: Any) -> Any:
    """As people write it with Keras: a model to the outputs of some layers."""
    if not isinstance(names, str):
        return [expected_of(model, name, x) for name in names]
    inputs = model.inputs[0] if isinstance(model, keras.Sequential) else model.input
    return keras.Model(inputs, model.get_layer(names).output).predict(x, verbose=0)


def test_outputs_of_layers(both: tuple[Any, Handle, Any]) -> None:
    """From the pack, and from a predictor that has it: of each layer alone, and of all in another order."""
    model, handle, x = both
    runner = handle._lazy.load()
    names = list(runner.layers)
    assert set(names) == {layer.name for layer in model.layers if not isinstance(layer, keras.layers.InputLayer)}
    served = ServedModel(runner, 32)
    served.warm_up()
    assert names or isinstance(model.input, dict)  # that one is made of operations alone
    for wanted in [*names, names[::-1], names[:1], 2 * names[:1]] if names else []:
        expected = expected_of(model, wanted, x)
        same(expected, handle.predict(x, outputs=wanted), np.ndarray)
        values = runner._inputs.values(x)
        assert served.prepare(values, None, outputs=wanted) is None
        call = served.prepare_slowly(values, None, 60.0, outputs=wanted)
        assert call.key is None
        parts = [Part(call, start, min(start + 32, 40)) for start in (0, 32)]
        same(expected, concatenate([calls.run([part])[0] for part in parts]), np.ndarray)
    assert not handle._lazy.is_whole


def test_inner_layer_computes_no_more(tmp_path: Path) -> None:
    """What comes after it is not in the graph that gives its output."""
    model = zoo.ZOO["conv"].build()
    write_compared(KerasRunner("m", model), str(tmp_path))
    runner = PackRunner("m", str(tmp_path))
    sizes = [len(function_of(runner, name).node_def) for name in (model.layers[0].name, model.layers[-1].name)]
    assert sizes[0] < sizes[1] / 2


def function_of(runner: PackRunner, name: str) -> Any:
    layers = runner.manifest.layers
    assert layers is not None
    graph_def = runner.of_layers(name).graph_def()
    function = _returning(layers, graph_def, [name])
    return next(one for one in graph_def.library.function if one.signature.name == function)


def test_outputs_of_no_layer(fresh: tuple[Any, Handle]) -> None:
    model, handle = fresh
    known = ", ".join(sorted(layer.name for layer in model.layers))
    with pytest.raises(InvalidInputError, match=f"no layer 'nothing'; its layers are {known}"):
        handle.predict(X, outputs="nothing")
    for wrong in ([], 3, [3]):
        with pytest.raises(InvalidInputError):
            handle.predict(X, outputs=wrong)  # type: ignore[arg-type]


def test_outputs_by_keras_itself(fresh: tuple[Any, Handle]) -> None:
    """Of a dataset, and after the weights have changed."""
    model, handle = fresh
    name = model.layers[-1].name
    rows = tf.data.Dataset.from_tensor_slices(X).batch(1)
    np.testing.assert_allclose(model.predict(X, verbose=0), handle.predict(rows, outputs=name), rtol=1e-6)
    handle.set_weights([2 * weight for weight in handle.get_weights()])
    np.testing.assert_allclose(2 * model(X), handle.predict(X, outputs=name), rtol=1e-6)


def test_outputs_of_other_models(tmp_path: Path) -> None:
    """Of a model whose call() alone knows its layers, and of a SavedModel, there are none to be named."""
    subclassed = zoo.ZOO["subclassed"].build()
    model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(2)])
    model.export(tmp_path / "saved", verbose=False)
    handle = Models([ModelPath("m", str(tmp_path / "saved"))], safe_mode=True).get()
    with pytest.raises(AttributeError, match="is a SavedModel, which has predict"):
        handle.predict(X, outputs="dense")
    with pytest.raises(InvalidInputError, match="no layer 'dense'; it has none that is known by its name"):
        FreeRunner("m", subclassed).predict(X, None, "dense")


class Counting(keras.layers.Layer):
    """Gives another number with each call."""

    def build(self, shape: Any) -> None:
        self.count = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, x: Any) -> Any:
        self.count.assign_add(1.0)
        return x * self.count


class Noisy(keras.layers.Layer):
    def call(self, x: Any) -> Any:
        return x + 0.001 * keras.random.normal(keras.ops.shape(x))


def packed(model: Any, folder: Path) -> PackRunner:
    folder.mkdir()
    write_compared(KerasRunner("m", model), str(folder))
    return PackRunner("m", str(folder))


@pytest.mark.parametrize("is_sequential", [False, True])
def test_outputs_of_a_nested_model(tmp_path: Path, is_sequential: bool) -> None:
    """As in transfer learning: the output of the model inside, of this one's inputs, and of the layers after it."""
    layers = [keras.layers.Input((3,)), keras.layers.Dense(4, name="inside"), keras.layers.ReLU()]
    base: Any = keras.Sequential(layers, name="base")
    if not is_sequential:
        base = keras.Model(base.inputs[0], base.outputs[0], name="base")
    x = keras.Input((3,))
    model = keras.Model(x, keras.layers.Dense(2, name="head")(keras.layers.Dense(3, name="before")(base(x))))
    model.save(tmp_path / "m.keras")
    model = keras.models.load_model(tmp_path / "m.keras")
    runner = packed(model, tmp_path / "pack")
    assert ["base", "before", "head"] == list(runner.layers)
    features = model.get_layer("base").predict(X, verbose=0)
    np.testing.assert_allclose(features, runner.predict(X, None, "base"), rtol=1e-6)
    np.testing.assert_allclose(model.get_layer("before")(features), runner.predict(X, None, "before"), rtol=1e-6)
    np.testing.assert_allclose(model.predict(X, verbose=0), runner.predict(X, None, "head"), rtol=1e-6)


@pytest.mark.parametrize("odd", [Counting, Noisy])
def test_layers_that_a_pack_cannot_give(tmp_path: Path, odd: Any) -> None:
    """Those with a state, of which a part of the graph would make a part of the changes, and random ones."""
    inputs = keras.Input((3,))
    hidden = odd(name="odd")(keras.layers.Dense(2)(inputs))
    model = keras.Model(inputs, keras.ops.cast(hidden > 1e9, "float32"))  # which is the same each time
    runner = packed(model, tmp_path / "pack")
    assert [] == list(runner.layers)
    assert (2, 2) == runner.predict(X, None).shape


def test_own_predict_with_outputs() -> None:
    """Is the user's, whatever it takes."""

    class Own(keras.Sequential):
        def predict(self, x: Any, outputs: str = "", **options: Any) -> Any:
            return outputs

    model = Own([keras.layers.Input((3,)), keras.layers.Dense(2)])
    assert "probs" == KerasRunner("m", model).delegate(X, outputs="probs")


def test_outputs_of_a_model_that_runs_eagerly() -> None:
    model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(2, name="d")])
    model.compile(run_eagerly=True)
    np.testing.assert_allclose(model(X), KerasRunner("m", model).delegate(X, outputs="d"), rtol=1e-6)


def test_ever_other_layers(tmp_path: Path) -> None:
    """Whoever asks for them takes no memory for ever."""
    names = [f"d{number}" for number in range(8)]
    layers = [keras.layers.Dense(2, name=name) for name in names]
    runner = packed(keras.Sequential([keras.layers.Input((3,)), *layers]), tmp_path / "pack")
    for count in range(1, 200):
        assert count == len(runner.predict(X, None, ["d0"] * count))
    for name in names:
        for other in names:
            runner.predict(X, None, [name, other])
    assert 16 == len(runner._inner._kept)


def test_layers_that_are_gone(tmp_path: Path) -> None:
    runner = packed(keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(2, name="d")]), tmp_path / "pack")
    (tmp_path / "pack" / "layers.pb").unlink()
    with pytest.raises(PredictionError, match=r"model 'm'.*layers.pb of its pack in .* was removed or damaged"):
        runner.predict(X, None, "d")
