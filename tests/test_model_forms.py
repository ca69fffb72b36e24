"""Models as people have them: in two files, made by a function, of Keras 2, or one of very many."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import APPS, StartWorker, python_path, wait_until
from keras import layers

from celery_tfpool import InvalidInputError, ModelLoadError, UnknownModelError, processes, settings
from celery_tfpool.errors import SettingsError
from celery_tfpool.model_path import ModelPath, model_paths
from celery_tfpool.models.lazy_model import LazyModel
from celery_tfpool.models.of_process import Models
from celery_tfpool.packs import build
from celery_tfpool.packs.cache import PackCache
from celery_tfpool.pool import startup
from celery_tfpool.predictors import calls
from celery_tfpool.predictors.batching import Part
from celery_tfpool.predictors.row_check import Reason
from celery_tfpool.predictors.served_model import ServedModel
from celery_tfpool.runners import location
from celery_tfpool.runners.location import BadSource
from celery_tfpool.runners.options import LoadOptions
from celery_tfpool.settings import Settings

X = np.arange(6, dtype="float32").reshape(3, 2)


@pytest.fixture
def cache(tmp_path: Path) -> PackCache:
    return PackCache(tmp_path / "cache", 2**30)


def times(factor: float) -> Any:
    """A model of two numbers that gives their sum, times ``factor``."""
    ones = keras.initializers.Constant(factor)
    return keras.Sequential([layers.Input((2,)), layers.Dense(1, kernel_initializer=ones)])


def through_a_pack(path: str, cache: PackCache, options: LoadOptions) -> tuple[str, Any]:
    folder = build.find_or_make("m", path, cache, safe_mode=True, options=options).folder
    return folder, LazyModel("m", path, safe_mode=True, pack=folder, options=options).load().predict(X, None)


# -- architecture and weights in two files --------------------------------------------------


def in_two_files(folder: Path, factor: float = 1.0) -> tuple[str, str]:
    model, architecture, weights = times(factor), folder / "model.json", folder / f"times-{factor}.weights.h5"
    architecture.write_text(model.to_json())
    model.save_weights(weights)
    return str(architecture), str(weights)


def test_two_files(tmp_path: Path, cache: PackCache) -> None:
    """With other weights it is another pack, and a change of either file is seen."""
    path, weights = in_two_files(tmp_path)
    _, others = in_two_files(tmp_path, 3.0)
    folders = set()
    for file, factor in ((weights, 1), (others, 3)):
        options = LoadOptions(weights=file)
        folder, answers = through_a_pack(path, cache, options)
        folders.add(folder)
        assert np.array_equal(factor * X.sum(1, keepdims=True), answers)
        found = build.find_or_make("m", path, cache, safe_mode=True, options=options)
        lazy = LazyModel("m", path, safe_mode=True, options=options, content=found.content)
        assert np.array_equal(factor * X.sum(1, keepdims=True), lazy.load().predict(X, None))
    assert 2 == len(folders)
    os.replace(weights, others)
    changed = LazyModel("m", path, safe_mode=True, options=options, content=found.content)
    with pytest.raises(ModelLoadError, match="its files have changed since the worker started"):
        changed.load()


def test_other_weights_of_a_whole_file(tmp_path: Path, cache: PackCache) -> None:
    times(1).save(tmp_path / "m.keras")
    _, weights = in_two_files(tmp_path, 5.0)
    _, answers = through_a_pack(str(tmp_path / "m.keras"), cache, LoadOptions(weights=weights))
    assert np.array_equal(5 * X.sum(1, keepdims=True), answers)


def test_architecture_of_keras_2(tmp_path: Path) -> None:
    """As ``to_json()`` wrote it there."""
    config = {
        "class_name": "Sequential",
        "config": {
            "name": "sequential",
            "layers": [
                {
                    "class_name": "InputLayer",
                    "config": {"batch_input_shape": [None, 2], "dtype": "float32", "name": "i"},
                },
                {"class_name": "Dense", "config": {"name": "d", "units": 1, "activation": "linear", "use_bias": True}},
            ],
        },
        "keras_version": "2.11.0",
        "backend": "tensorflow",
    }
    (tmp_path / "old.json").write_text(json.dumps(config))
    _, weights = in_two_files(tmp_path, 2.0)
    lazy = LazyModel("m", str(tmp_path / "old.json"), safe_mode=True, options=LoadOptions(weights=weights))
    assert np.array_equal(2 * X.sum(1, keepdims=True), lazy.load().predict(X, None))


@pytest.mark.parametrize(
    ("file", "weights", "words"),
    [
        ("model.json", None, r'it is an architecture without weights; name their file, {"path": …, "weights": …}'),
        ("model.json", "missing.h5", "its weights 'missing.h5': no such file (looked in "),
        ("json:dumps", "w.h5", "a function has its weights in it, and takes none from 'w.h5'"),
        ("cut.json", "times-1.0.weights.h5", "its configuration cannot be read (Unterminated string"),
    ],
)
def test_what_is_wrong_with_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, weights: str | None, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    in_two_files(tmp_path)
    (tmp_path / "cut.json").write_text((tmp_path / "model.json").read_text()[:25])
    with pytest.raises(BadSource) as caught:
        location.check(file, safe_mode=True, weights=weights)
    assert str(caught.value).startswith(words)


# -- one value for all rows ---------------------------------------------------------------------


class Threshold(tf.Module):
    """Takes rows, and what is no row."""

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, 2], tf.float32, name="x"),
            tf.TensorSpec([], tf.float32, name="threshold"),
            tf.TensorSpec([], tf.string, name="unit"),
        ]
    )
    def above(self, x: Any, threshold: Any, unit: Any) -> Any:
        return {"above": x > threshold, "unit": tf.repeat(unit, tf.shape(x)[0])}


def test_one_value_for_all_rows(tmp_path: Path, cache: PackCache) -> None:
    """Is passed as it is, to each call of a divided request too; requests that give it share no call."""
    module, path = Threshold(), str(tmp_path / "saved")
    tf.saved_model.save(module, path, {"serving_default": module.above})
    pack = build.find_or_make("m", path, cache, safe_mode=True).folder
    given = {"x": X, "threshold": 2, "unit": "cm"}
    for lazy in (LazyModel("m", path, safe_mode=True), LazyModel("m", path, safe_mode=True, pack=pack)):
        for batch_size in (None, 1, 2):
            answers = lazy.load().predict(given, batch_size)
            assert np.array_equal(X > 2, answers["above"])
            assert [b"cm"] * 3 == answers["unit"].tolist()
        assert (0, 2) == lazy.load().predict({**given, "x": X[:0]}, None)["above"].shape
        with pytest.raises(InvalidInputError, match=r"threshold: float32 \(\); unit: .*got threshold: .*shape \(2,\)"):
            lazy.load().predict({**given, "threshold": [1.0, 2.0]}, None)
        with pytest.raises(InvalidInputError, match=r"got threshold: .*shape \(0,\)"):
            lazy.load().predict({**given, "threshold": []}, None)
    served = ServedModel(lazy.load(), 32)
    served.warm_up()
    assert served.alone is Reason.ONE_VALUE
    values = [np.asarray(given[port.name]) for port in lazy.load().inputs]
    for batch_size in (None, 2):
        call = served.prepare(values, batch_size)
        assert call is not None
        assert call.key is None
        (answers,) = calls.run([Part(call, 0, 3)])
        assert np.array_equal(X > 2, answers["above"])


def test_only_values_for_all_rows(tmp_path: Path) -> None:
    """Are not 0 rows."""
    module, path = tf.Module(), str(tmp_path / "saved")
    ones = tf.function(lambda n: {"y": tf.ones([n, 2])}, input_signature=[tf.TensorSpec([], tf.int32, name="n")])
    tf.saved_model.save(module, path, {"serving_default": ones})
    runner = LazyModel("m", path, safe_mode=True).load()
    assert (3, 2) == runner.predict({"n": 3}, None).shape
    assert (0, 2) == runner.predict({"n": 0}, None).shape


# -- custom objects ------------------------------------------------------------------------------


def times_of(factor: float) -> Any:
    def scaled(x: Any) -> Any:
        return x * factor

    return scaled


def test_objects_without_a_name(tmp_path: Path, cache: PackCache) -> None:
    """May be others without that being seen: nothing of theirs is shared, and predictors cannot have them."""
    path = str(tmp_path / "m.keras")
    keras.Sequential([layers.Input((2,)), layers.Activation(times_of(1.0))]).save(path)
    for factor in (2.0, 10.0):
        options = LoadOptions(custom_objects=(("scaled", times_of(factor)),))
        with pytest.raises(build.CannotPack, match="its custom object 'scaled' is not to be found by a name"):
            build.find_or_make("m", path, cache, safe_mode=True, options=options)
        lazy = LazyModel("m", path, safe_mode=True, options=options, cache=cache, is_of_pattern=True)
        assert np.array_equal(factor * X, lazy.load().predict(X, None))
    model = model_paths({"m": {"path": path, "custom_objects": {"scaled": times_of(1.0)}}})
    startup.check_models(Settings(model_path=model))
    with pytest.raises(SettingsError, match=r"model 'm' at .*: predictors cannot import its custom object 'scaled'"):
        startup.check_models(Settings(model_path=model, predictors=1))


@pytest.mark.parametrize("predictors", [0, 1])
def test_objects_without_a_name_in_a_worker(start_worker: StartWorker, tmp_path: Path, predictors: int) -> None:
    """Loaded at the top of a module: each its own."""
    path = str(tmp_path / "m.keras")
    keras.Sequential([layers.Input((2,)), layers.Activation(times_of(1.0))]).save(path)
    conf = {"tf_predictors": predictors}
    worker = start_worker("-c", "1", app="closures", conf=conf, env={**python_path(APPS), "MODEL": path})
    assert [[[2.0, 4.0]], [[10.0, 20.0]], [[3.0, 6.0]]] == worker.call("predict", [1.0, 2.0])


# -- what a function makes --------------------------------------------------------------------


def five_times() -> Any:
    return times(5)


def test_version_of_a_function(cache: PackCache) -> None:
    """Makes it shared; another version is another pack."""
    path = f"{__name__}:five_times"
    with pytest.raises(build.CannotPack, match="give the model a `version`"):
        build.find_or_make("m", path, cache, safe_mode=True)
    folders = []
    for version in ("1", "1", "2"):
        folder, answers = through_a_pack(path, cache, LoadOptions(version=version))
        folders.append(folder)
        assert np.array_equal(5 * X.sum(1, keepdims=True), answers)
    assert folders[0] == folders[1] != folders[2]


# -- files of Keras 2 ---------------------------------------------------------------------------


class LSTM(layers.LSTM):
    """Takes what Keras 3 has dropped."""

    def __init__(self, *args: Any, time_major: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)


def test_h5_of_keras_2(tmp_path: Path, cache: PackCache) -> None:
    """An argument that Keras 3 does not know: the error says what to do, and that works."""
    model, path = keras.Sequential([layers.Input((3, 2)), layers.LSTM(4)]), str(tmp_path / "old.h5")
    model.save(path)
    with h5py.File(path, "a") as file:
        config = json.loads(file.attrs["model_config"])
        config["config"]["layers"][-1]["config"]["time_major"] = False
        file.attrs["model_config"] = json.dumps(config)
    with pytest.raises(ModelLoadError, match=r"time_major.*docs/models.md, Models of Keras 2"):
        LazyModel("m", path, safe_mode=True).load()
    options = LoadOptions(custom_objects=(("LSTM", f"{__name__}:LSTM"),))
    folder = build.find_or_make("m", path, cache, safe_mode=True, options=options).folder
    x = np.random.default_rng(0).random((2, 3, 2), "float32")
    packed = LazyModel("m", path, safe_mode=True, pack=folder).load().predict(x, None)
    assert np.array_equal(model.predict(x, verbose=0), packed)


# -- patterns -----------------------------------------------------------------------------------

PATTERN = ModelPath("customers/*", "{name}.keras", predictors=0)


@pytest.mark.parametrize("name", ["acme", "a_b-c.d", "2"])
def test_name_of_a_pattern(name: str) -> None:
    matching = PATTERN.matching(f"customers/{name}")
    assert matching is not None
    assert (f"customers/{name}", f"{name}.keras") == (matching.name, matching.path)


@pytest.mark.parametrize("name", ["customers/", "customers/..", "customers/a/b", "customers/../b", "customers/-x", "x"])
def test_no_name_of_a_pattern(name: str) -> None:
    assert PATTERN.matching(name) is None


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"*/*": "{name}.keras"}, r"a pattern has one \* in its name and {name} in its path"),
        ({"a/*": "a.keras"}, r"a pattern has one \* in its name"),
        ({"a": "{name}.keras"}, r"a pattern has one \* in its name"),
        ({"a/*": {"path": "{name}.keras", "predictors": 1}}, "predictors cannot have models of a pattern"),
        ({"a/*": "models:{name}"}, "a pattern is for files, and not for functions"),
    ],
)
def test_wrong_pattern(value: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        model_paths(value)


def test_folder_of_a_pattern(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"model 'a/\*' at .*: there is no folder '.*/missing'"):
        startup.check_models(Settings(model_path=model_paths({"a/*": str(tmp_path / "missing" / "{name}.keras")})))


def of_customers(folder: Path, count: int) -> tuple[ModelPath, ...]:
    folder.mkdir()
    for number in range(count):
        times(number).save(folder / f"c{number}.keras")
    return model_paths({"customers/*": str(folder / "{name}.keras")})


def test_models_of_a_pattern(tmp_path: Path, cache: PackCache) -> None:
    """Each has its pack, made by whoever needs it first; a file that comes later is found, one that is missing told."""
    paths = of_customers(tmp_path / "models", 3)
    for _ in range(2):
        models = Models(paths, safe_mode=True, cache=cache)
        for number in range(3):
            assert np.array_equal(number * X.sum(1, keepdims=True), models.get(f"customers/c{number}").predict(X))
        assert all(facts["packed"] for facts in models.status().values())
    assert 3 == len(cache.entries()) == sum(entry.in_use for entry in cache.entries())
    with pytest.raises(UnknownModelError, match=r"'customers/new' means '.*new.keras': no such file"):
        models.get("customers/new")
    times(7).save(tmp_path / "models" / "new.keras")
    assert np.array_equal(7 * X.sum(1, keepdims=True), models.get("customers/new").predict(X))
    with pytest.raises(UnknownModelError, match=r"customers/\*"):
        models.get("customers/../models/new")
    with pytest.raises(UnknownModelError):  # there may be many
        models.get()


def test_most_loaded_models(tmp_path: Path, cache: PackCache) -> None:
    """The one that was used longest ago is let go, its pack with it; used again, it is loaded again, as its file is."""
    paths = of_customers(tmp_path / "models", 3)
    models = Models(paths, safe_mode=True, cache=cache, max_loaded=2)
    handles = [models.get(f"customers/c{number}") for number in range(3)]
    for number in (0, 1, 0, 2):
        handles[number].predict(X)
    assert {"customers/c0", "customers/c2"} == set(models.status())
    assert 2 == sum(entry.in_use for entry in cache.entries())
    times(10).save(tmp_path / "models" / "c1.keras")
    assert np.array_equal(10 * X.sum(1, keepdims=True), handles[1].predict(X))
    assert {"customers/c1", "customers/c2"} == set(models.status())


def test_whole_model_stays(tmp_path: Path, cache: PackCache) -> None:
    """Its weights may have been changed."""
    models = Models(of_customers(tmp_path / "models", 3), safe_mode=True, cache=cache, max_loaded=1)
    changed = models.get("customers/c1")
    changed.set_weights([2 * weight for weight in changed.get_weights()])
    models.get("customers/c2").predict(X)
    assert np.array_equal(2 * X.sum(1, keepdims=True), changed.predict(X))


def test_whole_model_of_a_replaced_file(tmp_path: Path, cache: PackCache) -> None:
    """Is that of the file that is there; a failure does not keep it loaded."""
    models = Models(of_customers(tmp_path / "models", 3), safe_mode=True, cache=cache, max_loaded=1)
    handle, file = models.get("customers/c1"), tmp_path / "models" / "c1.keras"
    handle.predict(X)
    whole = file.read_bytes()
    file.write_bytes(whole[:100])
    with pytest.raises(ModelLoadError):
        handle.get_weights()
    times(5).save(file)
    assert 5 == handle.get_weights()[0][0, 0]
    assert np.array_equal(5 * X.sum(1, keepdims=True), handle.predict(X))


def test_saved_model_of_a_pattern_stays_shared(tmp_path: Path, cache: PackCache) -> None:
    """Whatever it is asked for."""
    times(3).export(tmp_path / "c1", verbose=False)
    models = Models(model_paths({"c/*": str(tmp_path / "{name}")}), safe_mode=True, cache=cache, max_loaded=1)
    handle = models.get("c/c1")
    handle.predict(X)
    assert not hasattr(handle, "summary")
    assert models.status()["c/c1"]["packed"]
    assert models.find("c/c1").let_go()


def test_most_loaded_models_of_threads(tmp_path: Path, cache: PackCache) -> None:
    models = Models(of_customers(tmp_path / "models", 4), safe_mode=True, cache=cache, max_loaded=1)

    def use(number: int) -> bool:
        answers = models.get(f"customers/c{number % 4}").predict(X)
        return np.array_equal(number % 4 * X.sum(1, keepdims=True), answers)

    with ThreadPoolExecutor(6) as threads:
        assert all(threads.map(use, range(60)))
    assert 1 == len(models.status())


def test_a_descriptor_for_a_model(tmp_path: Path, cache: PackCache) -> None:
    """However many weights it has."""
    deep = [layers.Dense(2) for _ in range(40)]
    keras.Sequential([layers.Input((2,)), *deep]).save(tmp_path / "deep.keras")
    models = Models(model_paths({"c/*": str(tmp_path / "{name}.keras")}), safe_mode=True, cache=cache)
    before = len(os.listdir("/proc/self/fd"))
    models.get("c/deep").predict(X)
    assert len(os.listdir("/proc/self/fd")) - before <= 3  # and TensorFlow's own at the first call


def test_weights_of_customers(tmp_path: Path, cache: PackCache) -> None:
    """One architecture for all."""
    (tmp_path / "m.json").write_text(times(1).to_json())
    for number in (2, 3):
        times(number).save_weights(tmp_path / f"c{number}.weights.h5")
    conf = {"c/*": {"path": str(tmp_path / "m.json"), "weights": str(tmp_path / "{name}.weights.h5")}}
    models = Models(model_paths(conf), safe_mode=True, cache=cache)
    for number in (2, 3):
        assert np.array_equal(number * X.sum(1, keepdims=True), models.get(f"c/c{number}").predict(X))


def test_memory_of_models_that_come_and_go(tmp_path: Path, cache: PackCache) -> None:
    """Is that of those which are loaded."""
    paths = of_customers(tmp_path / "models", 10)
    models = Models(paths, safe_mode=True, cache=cache, max_loaded=1)
    sizes = []
    for round_number in range(20):
        for number in range(10):
            models.get(f"customers/c{number}").predict(X)
        if round_number in (9, 19):
            sizes.append(processes.written_here() or 0)
    assert sizes[1] - sizes[0] < 100 * 20_000, sizes  # bytes for each load


def test_pattern_in_a_worker(start_worker: StartWorker, tmp_path: Path) -> None:
    """Beside another model, which predictors have; a name that a task was sent reaches no other file."""
    of_customers(tmp_path / "models", 3)
    times(9).save(tmp_path / "secret.keras")
    conf = {
        "tf_model_path": {"main": str(tmp_path / "secret.keras"), "c/*": str(tmp_path / "models" / "{name}.keras")},
        "tf_max_loaded_models": 2,
        "tf_predictors": 1,
    }
    worker = start_worker("-c", "1", app="by_customer", conf=conf, env=python_path(APPS))
    assert "model 'c/*': 3 at " in worker.log
    assert [[[1.0]], [[2.0]], [[0.0]], [[1.0]]] == [worker.call("predict", f"c/c{n}", [1.0, 0.0]) for n in (1, 2, 0, 1)]
    assert [[9.0]] == worker.call("predict", "main", [1.0, 0.0])
    assert "UnknownModelError" == worker.call("predict", "c/../secret", [1.0, 0.0])
    models = wait_until(lambda: worker.stats()["tfpool"]["children"][0]["models"], "the child's models")
    assert {"c/c0", "c/c1", "main"} == set(models)


def test_settings_of_many() -> None:
    found = settings.read({"tf_model_path": {"a/*": "m/{name}.keras"}, "tf_max_loaded_models": 3}, {})
    assert (3, True) == (found.max_loaded_models, found.model_path[0].is_pattern)
