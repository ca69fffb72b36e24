"""Predictions by way of a real predictor process, against keras.Model.predict on the same file.

Within float tolerance: a predictor computes rows of several requests in one
call, on a frozen graph where that is faster.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from test_parity import for_keras, keras_itself
from zoo import ZOO, chain

from celery_tfpool import InvalidInputError
from celery_tfpool.model_path import ModelPath
from celery_tfpool.models.handle import Handle
from celery_tfpool.models.of_process import Models
from celery_tfpool.packs import build
from celery_tfpool.packs.attach import load
from celery_tfpool.packs.cache import PackCache
from celery_tfpool.predictors.batching import Part
from celery_tfpool.predictors.client import Client
from celery_tfpool.predictors.messages import ModelFacts
from celery_tfpool.predictors.remote_model import RemoteRunner
from celery_tfpool.predictors.row_check import Reason
from celery_tfpool.predictors.server import Job, started_at
from celery_tfpool.predictors.supervisor import Supervisor
from celery_tfpool.settings import Settings

#: Noise is another every time, also in Keras.
NAMES = [name for name in ZOO if name != "sampling"]


@pytest.fixture(scope="module")
def predictors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[Any, Handle, ModelFacts]]]:
    """By name of the zoo: the model by Keras, a handle of it in predictors, and what these say of it."""
    folder = tmp_path_factory.mktemp("zoo")
    theirs, paths, packs = {}, [], []
    for number, name in enumerate(NAMES):
        path = folder / f"{number}.keras"
        try:
            model = ZOO[name].build()
            model.save(path)
            theirs[name] = keras.models.load_model(path)
        except (TypeError, ValueError, AttributeError):  # an old Keras that cannot
            continue
        paths.append(ModelPath(name, f"zoo_files:m{number}"))
    for name in ("conv", "dense"):  # the same from packs, the first of them frozen where that is faster
        cache = PackCache(folder / "packs", 2**30)
        path = str(folder / f"{NAMES.index(name)}.keras")
        packs.append((f"{name}, packed", build.find_or_make("m", path, cache, safe_mode=True).folder))
        paths.append(ModelPath(f"{name}, packed", path))
        theirs[f"{name}, packed"] = theirs[name]
    # Each of the models has a part of the time to warm up.
    settings = Settings(max_batch_size=16, response_timeout=60.0, startup_timeout=1200.0)

    def job(index: int, models: tuple[ModelPath, ...], place: str) -> Job:
        return Job(index, models, tuple(packs), (), settings, 1, 1, place, os.getpid(), started_at(os.getpid()))

    supervisor = Supervisor(
        [tuple(paths)],
        job=job,
        give_up=pytest.fail,
        startup_timeout=600,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZOO_FILES", str(folder))
        patch.syspath_prepend(str(Path(__file__).parent / "apps"))  # a spawned process gets it from here
        served = supervisor.start(lambda: None)
    client = Client(supervisor.client(60.0, 2**28))
    remote = {name: RemoteRunner(name, indices, facts, client) for name, (indices, facts) in served.items()}
    models = Models(paths, safe_mode=True, remote=remote)
    try:
        yield {name: (theirs[name], models.get(name), facts) for name, (_, facts) in served.items()}
    finally:
        supervisor.stop()


Served = dict[str, tuple[Any, Handle, ModelFacts]]


def assert_close(ours: Any, theirs: Any) -> None:
    keras.tree.assert_same_structure(ours, theirs)
    for one, other in zip(keras.tree.flatten(ours), keras.tree.flatten(theirs), strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        if one.dtype.kind in "biuOS":
            assert np.array_equal(one, other)
        else:
            exact = {2: 1e-2, 4: 1e-5, 8: 1e-12}[one.dtype.itemsize]
            largest = np.abs(other.astype("float64")).max(initial=0.0)
            np.testing.assert_allclose(one.astype("float64"), other.astype("float64"), rtol=0, atol=exact * largest)


def has(predictors: Served, name: str) -> tuple[Any, Handle, ModelFacts]:
    if name not in predictors:
        pytest.skip(f"Keras {keras.__version__} cannot")
    if predictors[name][2].only_here:
        pytest.skip(f"not served by predictors: {predictors[name][2].only_here}")
    return predictors[name]


@pytest.mark.parametrize("rows", [1, 33, 0])
@pytest.mark.parametrize("name", [*NAMES, "conv, packed", "dense, packed"])
def test_same_numbers(predictors: Served, name: str, rows: int) -> None:
    """Whatever the model: 1 row, more rows than a batch has, and none."""
    theirs, ours, _ = has(predictors, name)
    specimen = ZOO[name.removesuffix(", packed")]
    x = specimen.rows(max(rows, 4))
    if rows == 0:  # Keras itself refuses no rows of many models
        x, some = keras.tree.map_structure(lambda v: v[:0], x), theirs.predict(for_keras(x), verbose=0)
        expected = keras.tree.map_structure(lambda v: v[:0], some)
        assert_close(ours.predict(x), expected)
        return
    x = keras.tree.map_structure(lambda v: v[:rows] if rows < 4 and name != "fixed number of rows" else v, x)
    assert_close(ours.predict(x), theirs.predict(for_keras(x), verbose=0))


@pytest.mark.parametrize("name", ["conv", "lstm", "several, named", "subclassed", "StringLookup", "mixed_bfloat16"])
def test_many_at_once(predictors: Served, name: str) -> None:
    """Requests of 1 to 20 rows from 8 threads at once: each gets its own rows back."""
    theirs, ours, _ = has(predictors, name)
    requests = [ZOO[name].rows(rows) for rows in range(1, 21)] * 2
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(ours.predict, requests))
    for x, answer in zip(requests, answers, strict=True):
        assert_close(answer, theirs.predict(for_keras(x), verbose=0))


def test_what_is_not_batched(predictors: Served) -> None:
    """What has a fixed number of rows, or cannot be tried; everything else shares calls."""
    alone = {name: facts.alone for name, (_, _, facts) in predictors.items() if facts.alone}
    no_noise, not_tried = Reason.NO_NOISE.value, Reason.NOT_TRIED.value
    assert alone == {
        "fixed number of rows": Reason.FIXED_ROWS.value,
        **dict.fromkeys(["StringLookup", "TextVectorization"], no_noise),
        **{name: not_tried for name in alone if alone[name] == not_tried},
    }
    assert {"subclassed"} == {name for name in alone if alone[name] == not_tried and name in ("subclassed", "dense")}
    ours_alone = {name: facts.only_here for name, (_, _, facts) in predictors.items() if facts.only_here}
    assert {"TextVectorization, ragged": "the size of its outputs depends on what is in its inputs"} == ours_alone


@pytest.mark.parametrize(
    ("name", "x"),
    [
        ("dense", np.zeros((2, 9))),
        ("dense", np.zeros((2, 8), "complex64")),
        ("dense", [["a"] * 8]),
        ("dense", 3.0),
        ("several, named", {"wide": np.zeros((2, 4)), "id": np.zeros((2, 3))}),
        ("several, named", {"wide": np.zeros((2, 4)), "ids": np.zeros((3, 3))}),
        ("subclassed", np.zeros((2, 5))),
    ],
)
def test_refused_in_the_same_words(predictors: Served, tmp_path: Path, name: str, x: Any) -> None:
    """As without predictors."""
    theirs, ours, _ = has(predictors, name)
    theirs.save(tmp_path / "m.keras")
    here = load(name, str(tmp_path / "m.keras"), safe_mode=True)
    with pytest.raises(InvalidInputError) as without:
        here.predict(x, 32)
    with pytest.raises(InvalidInputError) as caught:
        ours.predict(x)
    if name != "subclassed":  # whose own words name the call
        assert str(without.value) == str(caught.value)


@pytest.mark.parametrize(
    "x", [[0.5] * 8, [[0.5] * 8], np.full((2, 8), 0.5), tf.fill((2, 8), 0.5), [np.full((2, 8), 0.5)], {"x": 0}, []]
)
def test_forms_of_input(predictors: Served, tmp_path: Path, x: Any) -> None:
    """Lists, tensors, boxed arrays, empty lists: what is taken, and what comes of it, is as without predictors."""
    theirs, ours, _ = predictors["dense"]
    theirs.save(tmp_path / "m.keras")
    here = load("dense", str(tmp_path / "m.keras"), safe_mode=True)
    expected, came = (outcome(lambda p=predict: p(x)) for predict in (lambda x: here.predict(x, 32), ours.predict))
    if isinstance(expected, str):
        assert expected == came
    else:
        assert_close(came, expected)


def outcome(predict: Callable[[], Any]) -> Any:
    """What comes of it: outputs, or the words of the refusal."""
    try:
        return predict()
    except InvalidInputError as exc:
        return str(exc)


def test_calls_that_are_sure_to_be_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the clock says: not those that run Python, loop, branch, or take inputs of any size."""
    from celery_tfpool.predictors import calls, tuning
    from celery_tfpool.predictors.served_model import ServedModel
    from celery_tfpool.runners.keras_model import KerasRunner

    monkeypatch.setattr(tuning, "_QUICK", 60.0)

    @keras.saving.register_keras_serializable("test_predictor_parity")
    class Python(layers.Layer):
        def call(self, x: Any) -> Any:
            return tf.ensure_shape(tf.numpy_function(np.negative, [x], tf.float32), x.shape)

    models = {
        "dense": chain((3,), layers.Dense(2)),
        "Python": chain((3,), Python()),
        "loop": chain((5, 3), layers.LSTM(2)),
        "any size": chain((None, 3), layers.Dense(2)),
    }
    found = {}
    for name, model in models.items():
        served = ServedModel(KerasRunner(name, model), 8)
        served.warm_up()
        x = np.ones((2, *(size or 4 for size in model.input_shape[1:])), "float32")
        (outputs,) = calls.run([Part(served.prepare([x], 32), 0, 2)])
        assert_close(outputs, model.predict(x, verbose=0))
        found[name] = served.is_quick
    assert {"dense": True, "Python": False, "loop": False, "any size": False} == found


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (lambda rows: 0.001 + 0.0001 * rows, 32),  # short whatever its size
        (lambda rows: 0.01 + 0.01 * rows, 16),  # the last 3 % are not worth it
        (lambda rows: 0.03 * rows, 1),
        (lambda rows: 0.03 * rows if rows < 4 else 0.01 * rows, 4),  # only from a certain size on
        (lambda rows: 0.03 * rows if rows < 8 else 0.01 * rows, 1),  # what does not pay twice is not tried again
        (lambda rows: 1.0 + 0.001 * rows, 32),
    ],
)
def test_batches_as_large_as_pays(monkeypatch: pytest.MonkeyPatch, seconds: Any, expected: int) -> None:
    """More rows in a call that is long already must make each row cheaper."""
    from celery_tfpool.predictors import freezing
    from celery_tfpool.predictors.served_model import ServedModel
    from celery_tfpool.runners.keras_model import KerasRunner

    monkeypatch.setattr(freezing, "fastest", lambda call, values: seconds(len(values[0])))
    served = ServedModel(KerasRunner("m", chain((3,), layers.Dense(2))), 32)
    served.warm_up()
    assert expected == served.max_size
    assert 32 == served.rows_that_count  # tf_max_enqueued_batches means what it meant


@pytest.mark.parametrize(("seconds", "parallel"), [(0.0, 2), (60.0, 1)])
@pytest.mark.parametrize("name", ["conv", "lstm", "several, nested"])
def test_batches_in_several_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, seconds: float, parallel: int
) -> None:
    """Where calls in one thread each are faster in all, which `_at_once` tells; the same numbers."""
    from celery_tfpool.predictors import calls, freezing, tuning
    from celery_tfpool.predictors.served_model import ServedModel

    monkeypatch.setattr(freezing, "faster", lambda plain, other, values: other)
    monkeypatch.setattr(tuning, "_QUICK", 0.0)
    monkeypatch.setattr(tuning, "_at_once", lambda call, threads, computing: seconds)
    served = ServedModel(saved_and_loaded(tmp_path, name), 8, threads=2)
    with ThreadPoolExecutor(2) as computing:
        served.warm_up(computing)
    assert (served.is_frozen, parallel) == (True, served.parallel)
    x = ZOO[name].rows(5)
    call = served.prepare(served.runner._inputs.values(x), 32)
    (outputs,) = calls.run([Part(call, 0, 5)], in_one_thread=True)
    assert_close(outputs, served.runner.predict(x, 32))


def test_at_once() -> None:
    """Each call of a thread meets one of each other thread."""
    from celery_tfpool.predictors import tuning

    threads: set[int] = set()
    together = threading.Barrier(3, timeout=60)

    def call() -> None:
        threads.add(threading.get_ident())
        together.wait()

    with ThreadPoolExecutor(3) as computing:
        assert computing.submit(tuning._at_once, call, 3, computing).result(timeout=60) > 0
    assert 3 == len(threads)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["conv", "dense", "lstm", "several, nested", "bfloat16"])
def test_frozen(tmp_path: Path, name: str, packed: bool) -> None:
    """Variables as constants: the same numbers, of the model itself and of its pack."""
    from celery_tfpool.packs.attach import PackRunner
    from celery_tfpool.packs.write import write
    from celery_tfpool.predictors import freezing

    runner = saved_and_loaded(tmp_path, name)
    if packed:
        (tmp_path / "pack").mkdir()
        write(runner, str(tmp_path / "pack"))
        runner = PackRunner(name, str(tmp_path / "pack"))
    frozen = freezing.frozen(runner)
    assert frozen is not None
    x = ZOO[name].rows(5)
    values = runner.fit_flat(runner._inputs.values(x))
    assert_close(frozen.call(1)(*values), runner.predict(x, 32))


def test_not_frozen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has lookup tables, or is large and has no convolution."""
    from celery_tfpool.predictors import freezing

    assert freezing.frozen(saved_and_loaded(tmp_path, "StringLookup")) is None
    monkeypatch.setattr(freezing, "_SMALL", 100)
    assert freezing.frozen(saved_and_loaded(tmp_path, "dense")) is None
    assert freezing.frozen(saved_and_loaded(tmp_path, "conv")) is not None


def test_frozen_with_other_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keras's numbers come before speed."""
    from celery_tfpool.predictors import calls, freezing
    from celery_tfpool.predictors.served_model import ServedModel
    from celery_tfpool.runners.keras_model import KerasRunner
    from celery_tfpool.runners.protocol import Compiled

    model = chain((3,), layers.Dense(2))
    runner = KerasRunner("m", model)
    wrong = Compiled(lambda x: x[:, :2] + 1.0, runner.compiled().outputs, runner.compiled().graph_def)
    monkeypatch.setattr(freezing.Frozen, "call", lambda self, threads: wrong)
    served = ServedModel(runner, 8)
    served.warm_up()
    assert not served.is_frozen
    (outputs,) = calls.run([Part(served.prepare([np.ones((2, 3), "float32")], 32), 0, 2)])
    assert_close(outputs, model.predict(np.ones((2, 3)), verbose=0))


def saved_and_loaded(folder: Path, name: str) -> Any:
    path = folder / f"{name}.keras"
    with keras_itself():
        ZOO[name].build().save(path)
    return load(name, str(path), safe_mode=True)
