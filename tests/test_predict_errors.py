"""What predict says of inputs that do not fit, and what else a handle is."""

from __future__ import annotations

import asyncio
import copy
import inspect
import json
import pickle
import re
import threading
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from zoo import KERAS, SubclassedOfDict, built, chain, mlp, normal

from celery_tfpool import InvalidInputError, ModelLoadError
from celery_tfpool.model_path import ModelPath
from celery_tfpool.models.handle import Handle
from celery_tfpool.models.of_process import Models

ROW = [1.0, 2.0, 3.0]


def handle(path: str) -> Handle:
    return Models([ModelPath("risk", path)], safe_mode=True).get()


def refusal(model: Handle, x: Any, **options: Any) -> tuple[str, str]:
    """What the model is said to expect, and what is said to have come."""
    with pytest.raises(InvalidInputError) as caught:
        model.predict(x, **options)
    found = re.fullmatch(r"model 'risk' expects (.*); got (.*)", str(caught.value), re.DOTALL)
    assert found, str(caught.value)
    assert isinstance(pickle.loads(pickle.dumps(caught.value)), InvalidInputError)
    return found[1], found[2]


# -- one input -----------------------------------------------------------------


def one_input() -> Any:
    x = keras.Input((3,), name="features")
    return keras.Model(x, layers.Dense(2)(x))


@pytest.fixture(scope="module")
def one() -> Handle:
    return handle(f"{__name__}:one_input")


@pytest.mark.parametrize(
    ("x", "got"),
    [
        (np.zeros((5, 4)), "features: float64, shape (5, 4)"),
        (np.zeros((5, 3, 3), "uint8"), "features: uint8, shape (5, 3, 3)"),
        (tf.zeros((2, 7)), "features: float32, shape (2, 7)"),
        (np.zeros(3), "features: float64, shape (3,); for a single row add the first dimension: x[None]"),
        ([1, 2, 3], "features: int64, shape (3,); for a single row add the first dimension: x[None]"),
        ([[1, 2]], "features: int64, shape (1, 2)"),
        ([[]], "features: float64, shape (1, 0)"),
        (np.zeros((0, 4)), "features: float64, shape (0, 4)"),
        (3.5, "features: a single float; give rows along the first dimension"),
        (tf.constant(3.5), "features: a single EagerTensor; give rows along the first dimension"),
        (None, "features: a single NoneType; give rows along the first dimension"),
        ("abc", "features: a single str; give rows along the first dimension"),
    ],
)
def test_wrong_shape(one: Handle, x: Any, got: str):
    """A wrong shape is named next to the right one."""
    assert ("features: float32 (rows, 3)", got) == refusal(one, x)


@pytest.mark.parametrize(
    ("x", "got"),
    [
        ([["a", "b", "c"]], "features: string, shape (1, 3)"),
        (np.array([["1", "2", "3"]]), "features: string, shape (1, 3)"),
        (tf.constant([["1", "2", "3"]]), "features: string, shape (1, 3)"),
        ([ROW, ["1", "2", "3"]], "features: string, shape (2, 3)"),
        (np.array([ROW]).astype(complex), "features: complex128, shape (1, 3)"),
        (np.zeros((1, 3), "datetime64[s]"), "features: datetime64[s], shape (1, 3)"),
        (np.zeros((1, 3), "timedelta64[s]"), "features: timedelta64[s], shape (1, 3)"),
        (np.array([ROW], dtype=object), "features: dtype object with float in it, shape (1, 3)"),
        ([[1.0, None, 3.0]], "features: dtype object with NoneType, float in it, shape (1, 3)"),
        ([ROW, [None, None, None]], "features: dtype object with NoneType, float in it, shape (2, 3)"),
        ([[1, 2, 2**70]], "features: dtype object with int in it, shape (1, 3)"),
    ],
)
def test_wrong_dtype(one: Handle, x: Any, got: str):
    """Strings, dates, complex numbers, None and huge numbers are refused by name, not cast or crashed upon."""
    assert ("features: float32 (rows, 3)", got) == refusal(one, x)


@pytest.mark.parametrize("x", [[ROW, [4.0]], [ROW, ROW[:2]], {"features": [[], ROW]}])
def test_rows_of_different_lengths(one: Handle, x: Any):
    """Lists of different lengths are said to be that."""
    expected, got = refusal(one, x)

    assert "features: float32 (rows, 3)" == expected
    assert got.startswith("features: rows of different lengths")


@pytest.mark.parametrize("batch_size", [0, -1, 2.0, "32"])
def test_wrong_batch_size(one: Handle, batch_size: Any):
    """batch_size is a whole number of at least 1."""
    assert ("a whole number of at least 1 as batch_size", repr(batch_size)) == refusal(
        one, [ROW], batch_size=batch_size
    )


def test_wrong_name(one: Handle):
    """A name that the model does not know."""
    assert ("features: float32 (rows, 3)", "inputs named feature") == refusal(one, {"feature": [ROW]})
    assert ("features: float32 (rows, 3)", "inputs named nothing") == refusal(one, {})


def test_two_for_one(one: Handle):
    """Two inputs for a model of one are taken for what they look like: two rows."""
    assert "features: float32, shape (2, 5, 3)" == refusal(one, [np.zeros((5, 3), "float32")] * 2)[1]


def test_still_well_afterwards(one: Handle):
    """A refusal leaves the model as it was."""
    refusal(one, [["a", "b", "c"]])

    assert (1, 2) == one.predict([ROW]).shape


def test_strings_expected():
    """A model of strings refuses numbers, and what hides between strings."""
    texts = handle(f"{__name__}:of_strings")
    expected = "text: string (rows, 1)"

    assert (expected, "text: int64, shape (2, 1)") == refusal(texts, [[1], [2]])
    assert (expected, "text: dtype object with NoneType in it, shape (2, 1)") == refusal(texts, [["a"], [None]])
    assert (expected, "text: dtype object with int in it, shape (2, 1)") == refusal(texts, [["a"], [1]])
    assert (expected, "text: rows of different lengths") == refusal(texts, [["a", "b"], ["c"]])


def of_strings() -> Any:
    text = keras.Input((1,), dtype="string", name="text")
    return keras.Model(text, layers.StringLookup(vocabulary=["a"])(text))


def test_any_size():
    """A dimension that may vary is called any."""
    model = handle(f"{__name__}:any_size")

    assert ("signal: float32 (rows, any, 2)", "signal: float64, shape (4, 9, 3)") == refusal(model, np.zeros((4, 9, 3)))
    assert refusal(model, np.zeros((9, 2)))[1].endswith("for a single row add the first dimension: x[None]")


def any_size() -> Any:
    signal = keras.Input((None, 2), name="signal")
    return keras.Model(signal, layers.GRU(2)(signal))


# -- several inputs ------------------------------------------------------------

SEVERAL = "wide: float32 (rows, 3); ids: int32 (rows)"


def several() -> Any:
    wide, ids = keras.Input((3,), name="wide"), keras.Input((), dtype="int32", name="ids")
    return keras.Model([wide, ids], layers.Dense(2)(wide) + layers.Embedding(5, 2)(ids))


WIDE, IDS = np.zeros((4, 3), "float32"), np.zeros(4, "int64")


@pytest.mark.parametrize(
    ("x", "got"),
    [
        ([WIDE], "1 values for 2 inputs"),
        ((WIDE, IDS, IDS), "3 values for 2 inputs"),
        (WIDE, "one ndarray for 2 inputs"),
        (None, "one NoneType for 2 inputs"),
        ([IDS, WIDE], "wide: int64, shape (4,)"),
        ([WIDE, WIDE], "ids: float32, shape (4, 3)"),
        ([WIDE, IDS[:3]], "inputs of different numbers of rows: [4, 3]"),
        ({"wide": WIDE}, "inputs named wide"),
        ({"wide": WIDE, "id": IDS}, "inputs named wide, id"),
        ({"wide": WIDE, "ids": IDS, "more": IDS}, "inputs named wide, ids, more"),
        ({"wide": WIDE, "ids": ["a"] * 4}, "ids: string, shape (4,)"),
    ],
)
def test_several(x: Any, got: str):
    """The number, names, shapes and dtypes of several inputs."""
    assert (SEVERAL, got) == refusal(handle(f"{__name__}:several"), x)


def test_list_for_dict():
    """A list for a model of a dict whose names are in no alphabetical order would be a guess."""
    got = "a list, whose order is ambiguous here; give a dict"

    assert got == refusal(handle("zoo:several_named"), [np.zeros((2, 4)), np.zeros((2, 3))])[1]


@pytest.mark.skipif(KERAS < (3, 4), reason="Keras takes nested inputs since 3.4")
def test_nested():
    """A nested structure is drawn, without the numbers in it."""
    model = handle("zoo:nested")
    a = np.zeros((2, 2))

    assert (
        "{'q': [ndarray], 'p': {'c': ndarray}}, not {'q': [b, a], 'p': {'c': c}}"
        == refusal(model, {"q": [a], "p": {"c": a}})[1]
    )
    assert "[ndarray, ndarray, ndarray], not {'q': [b, a], 'p': {'c': c}}" == refusal(model, [a, a, a])[1]


# -- models that declare no inputs ---------------------------------------------


def subclassed_of_dict() -> Any:
    return built(SubclassedOfDict(), {"left": normal(2)(2), "right": normal(3)(2)})


@pytest.mark.parametrize(
    ("x", "got"),
    [
        ({"left": np.zeros((2, 2)), "rigth": np.zeros((2, 3))}, "{'left': ndarray, 'rigth': ndarray}: "),
        ({"left": np.zeros((2, 5)), "right": np.zeros((2, 3))}, "input 0: float32 (rows, 5)"),
        ([np.zeros((2, 2)), np.zeros((2, 3))], "[ndarray, ndarray]: input 0: float32 (rows, 2)"),
        ({"left": [["a", "b"]], "right": [ROW]}, "input 0: string (rows, 2)"),
        ({"left": [[1, None]], "right": [ROW]}, "dtype object with NoneType, int in it, shape (1, 2)"),
    ],
)
def test_undeclared(x: Any, got: str):
    """A model known to its call() only says what it was built for, and Keras's words say the rest."""
    expected, came = refusal(handle(f"{__name__}:subclassed_of_dict"), x)

    assert "what its call() takes, built for {'left': (rows, 2), 'right': (rows, 3)}" == expected
    assert got in came


def test_undeclared_second_call():
    """A wrong width is refused in the second call as in the first."""
    model = handle(f"{__name__}:undeclared")
    model.predict([ROW])

    for _ in range(2):
        expected, got = refusal(model, [[1.0, 2.0]])
        assert "what its call() takes, built for (rows, 3)" == expected
        assert "input 0: float32 (rows, 2)" in got
    assert (1, 2) == model.predict([ROW]).shape


def undeclared() -> Any:
    return keras.Sequential([layers.Dense(2)])


# -- SavedModels ---------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Handle:
    path = str(tmp_path_factory.mktemp("saved") / "model")
    one_input().export(path)
    return handle(path)


def test_saved_model_input(saved: Handle):
    """A SavedModel knows its inputs by name, dtype and shape as well."""
    assert ("features: float32 (rows, 3)", "features: float64, shape (2, 4)") == refusal(saved, np.zeros((2, 4)))
    assert ("features: float32 (rows, 3)", "inputs named x") == refusal(saved, {"x": [ROW]})


def test_saved_model_takes_data_only(saved: Handle):
    """There is no Keras in a SavedModel to take datasets, steps or callbacks."""
    dataset = tf.data.Dataset.from_tensors([ROW])

    assert refusal(saved, dataset)[1].endswith("Dataset, which only a .keras or .h5 model takes")
    assert refusal(saved, [ROW], steps=2)[1] == "list, steps=2, which only a .keras or .h5 model takes"


@pytest.mark.parametrize("name", ["summary", "layers", "fit", "__call__"])
def test_saved_model_attributes(saved: Handle, name: str):
    """Whoever asks a SavedModel for what only Keras has learns why, and what to do."""
    with pytest.raises(AttributeError) as caught:
        saved([ROW]) if name == "__call__" else getattr(saved, name)

    assert (
        f"model 'risk' is a SavedModel, which has predict() only, no {name!r}. "
        "Save it with model.save('….keras') to have the whole Keras model"
    ) == str(caught.value)
    assert not hasattr(saved, "layers")


def test_saved_model_of_unknown_order(tmp_path: Path):
    """A SavedModel that no Keras wrote has no order of inputs; a list would be a guess, so it is refused."""
    path = str(tmp_path / "model")
    tf.saved_model.save(module := Difference(), path, signatures=module.difference)
    model = handle(path)
    minuend, subtrahend = np.full((2, 2), 5.0), np.full((2, 2), 3.0)

    assert "a list, whose order a SavedModel does not keep; give a dict" == refusal(model, [minuend, subtrahend])[1]
    assert 2.0 == model.predict({"minuend": minuend, "a_subtrahend": subtrahend})[0, 0]


def test_saved_model_of_any_rank(tmp_path: Path):
    """A SavedModel whose input does not say whether it has rows is refused when it is loaded."""
    path = str(tmp_path / "model")
    tf.saved_model.save(module := Odd(), path, signatures=module.of_any_rank)
    with pytest.raises(ModelLoadError, match="nobody knows how many dimensions its input 'factor' has"):
        handle(path).predict([ROW])


def test_saved_model_of_unknown_outputs(tmp_path: Path):
    """Outputs of unknown shape are those that come."""
    path = str(tmp_path / "model")
    tf.saved_model.save(module := Odd(), path, signatures=module.by_numpy)

    assert [[2.0, 4.0, 6.0]] * 5 == handle(path).predict([ROW] * 5).tolist()
    assert (0, 3) == handle(path).predict(np.zeros((0, 3))).shape


def test_saved_model_without_signature(tmp_path: Path):
    """The object that was saved is called, as those of TensorFlow Hub are; one that cannot be called is refused."""
    path, called = str(tmp_path / "called"), Called()
    called(tf.ones([2, 3]))
    called(tf.ones([1, 3]))
    tf.saved_model.save(called, path)
    model = handle(path)
    answer = model.predict(np.float32([[1.0, 2.0, 3.0]]))
    assert isinstance(answer["y"], np.ndarray)
    assert [[2.0, 4.0, 6.0]] == answer["y"].tolist()
    path = str(tmp_path / "not_called")
    tf.saved_model.save(Odd(), path)  # of three functions none is the usual one
    with pytest.raises(ModelLoadError, match="no serving signature, and the object that was saved cannot be called"):
        handle(path).predict([ROW])


class Called(tf.Module):
    @tf.function(reduce_retracing=True)
    def __call__(self, x: Any) -> Any:
        return {"y": x * 2}


class Odd(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec(None)])
    def of_any_rank(self, factor: Any) -> Any:
        return {"y": factor * 2}

    @tf.function(input_signature=[tf.TensorSpec((None, 3))])
    def by_numpy(self, x: Any) -> Any:
        return {"y": tf.numpy_function(lambda rows: rows * 2, [x], tf.float32)}


class Difference(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec((None, 2)), tf.TensorSpec((None, 2))])
    def difference(self, minuend: Any, a_subtrahend: Any) -> Any:
        return {"difference": minuend - a_subtrahend}


# -- the handle ----------------------------------------------------------------


def test_handle_is_the_keras_model(capsys: pytest.CaptureFixture[str]):
    """Everything but predict is the real model's: methods, layers, the call, attributes that are set."""
    model = handle("zoo:mlp")
    model.summary()
    model.trainable = False
    x = normal(8)(3)

    assert "Total params: 4,931" in capsys.readouterr().out
    assert [64, 64, 3] == [layer.units for layer in model.layers]
    assert [] == model.trainable_weights
    np.testing.assert_allclose(model(x), model.predict(x), rtol=1e-6)
    assert not hasattr(model, "no_such_thing")
    with pytest.raises(AttributeError, match="no_such_thing"):
        model.no_such_thing  # noqa: B018


def test_deep_copy_is_another_model(tmp_path: Path):
    """What is done to it changes nothing for the next task; of a SavedModel nothing can be done to."""
    model = handle(f"{__name__}:counted")
    x = np.ones((1, *model.input_shape[1:]), np.float32)
    before = model.predict(x)
    twin = copy.deepcopy(model)
    assert isinstance(twin, keras.Model)
    twin.set_weights([0 * weights for weights in twin.get_weights()])
    np.testing.assert_array_equal(before, model.predict(x))
    assert not np.array_equal(before, twin.predict(x, verbose=0))
    model.export(str(tmp_path / "saved"))
    saved = handle(str(tmp_path / "saved"))
    assert saved is copy.deepcopy(saved)


def test_handle_is_lazy():
    """Being looked at, copied, compared, hashed or refused by pickle and JSON loads nothing."""
    loads.clear()
    model = handle(f"{__name__}:counted")

    assert model is copy.copy(model)
    assert [model] == copy.copy([model])
    assert {model: 1}[model]
    assert inspect.unwrap(model) is model
    assert not inspect.iscoroutinefunction(model)
    assert not asyncio.iscoroutinefunction(model)
    with pytest.raises(TypeError, match=r"model 'risk' .* send the name, and call get_model\(name\)"):
        pickle.dumps(model)
    with pytest.raises(TypeError):
        json.dumps(model)

    assert f"<model 'risk' from '{__name__}:counted', not loaded>" == repr(model)
    assert [] == loads

    model.predict(normal(8)(1))

    assert f"<model 'risk' from '{__name__}:counted', loaded>" == repr(model)
    assert 1 == len(loads)


loads: list[str] = []


def counted() -> Any:
    loads.append(threading.current_thread().name)
    return mlp()


@pytest.mark.parametrize("source", ["counted", "counted_undeclared"])
def test_eight_threads(source: str):
    """Eight threads at once on a fresh handle: one loads, all get the same numbers."""
    loads.clear()
    model, x = handle(f"{__name__}:{source}"), normal(8)(5)
    together, answers = threading.Barrier(8), []

    def use() -> None:
        together.wait(30)
        for rows in (5, 1, 3):
            answers.append((rows, model.predict(x[:rows])))

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert 1 == len(loads)
    assert 24 == len(answers)
    for rows, answer in answers:
        np.testing.assert_array_equal(answer, model.predict(x[:rows]))


def counted_undeclared() -> Any:
    loads.append(threading.current_thread().name)
    return built(keras.Sequential([layers.Dense(4), layers.Dense(2)]), normal(8)(2))


def test_failed_load_is_tried_again():
    """A load that fails is reported to whoever asked, and does not stand in the way of the next."""
    loads.clear()
    model = handle(f"{__name__}:fails_first")

    with pytest.raises(ModelLoadError, match=r"could not load model 'risk' .* OSError: the disk is away"):
        model.predict([ROW])
    assert "not loaded" in repr(model)

    assert (1, 3) == model.predict([ROW]).shape


def fails_first() -> Any:
    loads.append("try")
    if len(loads) == 1:
        raise OSError("the disk is away")
    return chain((3,), layers.Dense(3))
