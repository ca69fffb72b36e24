"""Keras on JAX or PyTorch, in environments without TensorFlow: ``make test-backends`` runs this in each of them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import celery
import numpy as np
import pytest
from celery.exceptions import TimeLimitExceeded
from conftest import APPS, StartWorker, Worker, make_model, python_path, quiet, wait_until

from celery_tfpool import InvalidInputError
from celery_tfpool.models.handle import Handle
from celery_tfpool.models.lazy_model import LazyModel

BACKEND = os.environ.get("KERAS_BACKEND", "")
if BACKEND not in ("jax", "torch"):
    pytest.skip("needs KERAS_BACKEND=jax or torch, see `make test-backends`", allow_module_level=True)

TITLE = {"jax": "JAX", "torch": "PyTorch"}[BACKEND]
SPAWNS = celery.VERSION >= (5, 7)
#: Large enough for PyTorch to compute it with all threads.
LARGE = "model = keras.Sequential([layers.Input((16,)), layers.Dense(2048, activation='relu'), layers.Dense(2048)])"
ROW = [1.0 / n for n in range(1, 17)]
KERAS_ITSELF = """\
import sys, json, keras, numpy as np
print(json.dumps(keras.models.load_model(sys.argv[1]).predict(np.array([json.loads(sys.argv[2])]), verbose=0).tolist()))
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_model(str(tmp_path_factory.mktemp("models") / "large.keras"), LARGE)


def of_keras_itself(path: str) -> list[list[float]]:
    """What Keras says of `ROW` in a process of its own."""
    command = [sys.executable, "-c", KERAS_ITSELF, path, str(ROW)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=quiet(os.environ))
    return eval(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


# -- workers -------------------------------------------------------------------


def test_predicts_as_keras(start_worker: StartWorker, large: str, engine: str) -> None:
    """In forked children, in those that replace them, and without TensorFlow."""
    worker = start_worker("-c", "2", broker=engine, conf={"tf_model_path": large})
    expected = of_keras_itself(large)
    answers = [worker.call("predict_row", ROW) for _ in range(6)]
    assert all(np.array_equal(expected, predicted) for _, predicted in answers)
    victim = answers[0][0]
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: victim not in worker.children() and len(worker.children()) == 2, "a replacement")
    assert all(np.array_equal(expected, worker.call("predict_row", ROW)[1]) for _ in range(6))
    assert worker.call("imported", BACKEND)
    assert not worker.call("imported", "tensorflow")
    facts = worker.stats()["tfpool"]
    assert "fork" == facts["start_method"]
    assert {"keras", BACKEND} == set(facts["versions"])
    assert f"is not shared: Keras runs on {TITLE}, and what is shared is a graph of TensorFlow" in worker.log
    assert "WARNING/MainProcess] importing" not in worker.log


def test_outputs_of_layers(large: str) -> None:
    """As Keras itself gives them."""
    import keras

    handle, model = Handle(lambda: lazy), keras.saving.load_model(large)
    lazy = LazyModel("m", large, safe_mode=True)
    first, last = (layer.name for layer in model.layers)
    rows = np.random.default_rng(0).random((40, 16), "float32")
    expected = keras.Model(model.inputs[0], model.get_layer(first).output).predict(rows, verbose=0)
    np.testing.assert_allclose(expected, handle.predict(rows, outputs=first), rtol=1e-6)
    both = handle.predict(rows, outputs=[last, first])
    np.testing.assert_allclose(expected, both[1], rtol=1e-6)
    np.testing.assert_allclose(model.predict(rows, verbose=0), both[0], rtol=1e-5)
    assert (0, 2048) == handle.predict(rows[:0], outputs=first).shape


def test_replaced_after_each_task(start_worker: StartWorker, large: str) -> None:
    conf = {"tf_model_path": large, "tf_model_load": "eager"}
    worker = start_worker("-c", "1", "--max-tasks-per-child=1", conf=conf)
    answers = [worker.call("predict_row", ROW) for _ in range(3)]
    assert 3 == len({pid for pid, _ in answers})
    assert all(np.array_equal(answers[0][1], predicted) for _, predicted in answers)


def test_deferred(start_worker: StartWorker, large: str) -> None:
    """``MODEL = load_model(path)`` at the top of the app."""
    env = {**python_path(APPS / "as_written"), "MODEL": large}
    worker = start_worker("-c", "1", "--max-tasks-per-child=1", app="global_model", env=env)
    expected = of_keras_itself(large)
    assert all(np.array_equal(expected, worker.call("predict", ROW)) for _ in range(3))
    assert "fork" == worker.stats()["tfpool"]["start_method"]
    assert "initialised in the worker" not in worker.log


USED = "import keras, numpy; MODEL = keras.saving.load_model({path!r}); MODEL.predict(numpy.ones((500, 16)), verbose=0)"
APP = """\
import json, os
import numpy as np
from celery import Celery
{line}

app = Celery("app")
app.conf.update(json.loads(os.environ["TFPOOL_TEST_CONF"]))


@app.task(name="proj.predict")
def predict():
    return os.getpid(), MODEL.predict(np.ones((500, 16)), verbose=0).shape
"""


def start_app(start_worker: StartWorker, folder: Path, line: str, *arguments: str, **options: Any) -> Worker:
    """A worker of an app with a model that worker main itself has loaded and used."""
    (folder / "app.py").write_text(APP.format(line=line))
    return start_worker("-c", "1", *arguments, app="app", env=python_path(folder), **options)


def test_stock_prefork_hangs(start_worker: StartWorker, large: str, tmp_path: Path) -> None:
    """What the guard is for."""
    worker = start_app(start_worker, tmp_path, USED.format(path=large), pool=None)
    with pytest.raises(TimeLimitExceeded):
        worker.call("predict", time_limit=10)


@pytest.mark.skipif(not SPAWNS, reason="Celery before 5.7 has no spawn")
def test_used_in_worker_main(start_worker: StartWorker, large: str, tmp_path: Path, engine: str) -> None:
    """JAX: children are spawned, and the line is named.  PyTorch on a CPU survives the fork."""
    line = USED.format(path=large)
    worker = start_app(start_worker, tmp_path, line, "--max-tasks-per-child=1", broker=engine)
    answers = [worker.call("predict") for _ in range(3)]
    assert 3 == len({pid for pid, _ in answers})
    assert [[500, 2048]] * 3 == [shape for _, shape in answers]
    assert {"jax": "spawn", "torch": "fork"}[BACKEND] == worker.stats()["tfpool"]["start_method"]
    said = rf"JAX was initialised in the worker's main process by .*{tmp_path}/app.py:4: import keras"
    assert bool(re.search(said, worker.log)) == (BACKEND == "jax"), worker.log


@pytest.mark.skipif(BACKEND != "jax", reason="PyTorch on a CPU survives a fork")
@pytest.mark.parametrize("line", ["import jax.numpy as jnp; ONE = jnp.ones(1)", "import jax; jax.devices()"])
def test_refused(start_worker: StartWorker, tmp_path: Path, line: str) -> None:
    worker = start_app(start_worker, tmp_path, line, conf={"tf_fork_guard": "error"}, wait=False)
    assert 1 == worker.wait()
    assert f"JAX was initialised in the worker's main process by {tmp_path}/app.py:4: {line}" in worker.log
    assert "Traceback" not in worker.log


def test_predictors(start_worker: StartWorker, large: str) -> None:
    """One process has the model, and computes each request alone; children and worker main do not even import Keras."""
    worker = start_worker("-c", "2", conf={"tf_model_path": large, "tf_predictors": 1})
    expected = of_keras_itself(large)
    results = [worker.send("predict_row", ROW) for _ in range(20)]
    assert all(np.array_equal(expected, result.get(timeout=60)[1]) for result in results)
    assert [] == worker.call("predict", 0)
    assert not worker.call("imported", "keras")
    assert "requests are not batched: Keras does not run on TensorFlow" in worker.log
    assert 21 == worker.stats()["tfpool"]["predictors"][0]["stats"]["request_success"]


def test_what_predictors_cannot_have() -> None:
    for function in ("subclassed", "own_predict"):
        _, handle = made(function)
        assert handle._lazy.load().only_here()


@pytest.mark.parametrize("threads", [1, 3])
def test_threads(start_worker: StartWorker, large: str, threads: int) -> None:
    conf = {"tf_model_path": large, "tf_intra_op_parallelism": threads}
    worker = start_worker("-c", "1", conf=conf)
    worker.call("predict_row", ROW)
    assert threads == worker.call(f"threads_of_{BACKEND}")


def test_fork_of_a_task(start_worker: StartWorker, large: str) -> None:
    """A helper that a task forks after it has predicted: is told, or predicts."""
    worker = start_worker("-c", "1", conf={"tf_model_path": large})
    pid, _ = worker.call("predict_row", ROW)
    said = worker.call("predict_in_a_fork")
    if BACKEND == "jax":
        assert f"is a fork of {pid}, in which JAX was in use: predict would wait for ever" in said
    else:
        assert said.startswith("[[")


def test_wants_tensorflow(start_worker: StartWorker, tmp_path: Path) -> None:
    """What only TensorFlow can load is refused at the start."""
    (tmp_path / "saved_model.pb").touch()
    worker = start_worker("-c", "1", conf={"tf_model_path": str(tmp_path)}, wait=False)
    assert 1 == worker.wait()
    assert "it needs TensorFlow, which is not installed: pip install 'celery-tfpool[tensorflow]'" in worker.log
    assert "Traceback" not in worker.log


def test_check(large: str) -> None:
    """``celery tfpool check``."""
    command = [sys.executable, "-m", "celery", "tfpool", "check", large]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=quiet(os.environ))
    assert re.search(r"weights 4,231,168 numbers, 16\.9 MB", done.stdout), done.stdout
    assert "predict one row of zeros: ok" in done.stdout


# -- numbers, in this process --------------------------------------------------


def made(function: str) -> tuple[Any, Handle]:
    """A model, and its handle."""
    lazy = LazyModel("model", f"backend_models:{function}", safe_mode=True)
    return lazy.load().keras_model, Handle(lambda: lazy)


@pytest.mark.parametrize("rows", [1, 32, 70])
@pytest.mark.parametrize("function", ["functional", "two_inputs", "named_inputs", "subclassed", "dropout"])
def test_same_numbers(function: str, rows: int) -> None:
    """Bit for bit those of ``keras.Model.predict``, in the same structure."""
    import backend_models
    import keras

    model, handle = made(function)
    x = backend_models.inputs_of(function, rows)
    expected, outputs = model.predict(x, verbose=0), handle.predict(x)
    keras.tree.assert_same_structure(expected, outputs)
    assert all(map(np.array_equal, keras.tree.flatten(expected), keras.tree.flatten(outputs)))
    assert all(type(leaf) is np.ndarray for leaf in keras.tree.flatten(outputs))


def test_what_predict_takes() -> None:
    """Lists, one row too few, no rows, another size of a batch: as with TensorFlow."""
    model, handle = made("functional")
    x = np.ones((3, 5, 4))
    expected = model.predict(x, verbose=0)
    assert np.array_equal(expected, handle.predict(x.tolist()))
    assert np.array_equal(expected, handle.predict(x, batch_size=2, verbose=0))
    assert np.array_equal(expected, handle.predict_on_batch(x))
    assert np.array_equal(expected, handle.predict(x, steps=1))
    assert (0, 3) == handle.predict(x[:0]).shape
    with pytest.raises(InvalidInputError, match=r"expects .*: float32 \(rows, 5, 4\); got .*shape \(5, 4\)"):
        handle.predict(x[0])


def test_tensors_of_its_own() -> None:
    """A tensor may be given, and ``model(x)`` gives one."""
    import keras

    model, handle = made("functional")
    x = np.ones((3, 5, 4), "float32")
    tensor = keras.ops.convert_to_tensor(x)
    assert np.allclose(model.predict(x, verbose=0), handle.predict(tensor), atol=1e-6)
    assert type(model(tensor)) is type(handle(x))
    assert np.allclose(model.predict(x, verbose=0), keras.ops.convert_to_numpy(handle(x)), atol=1e-6)


def test_predict_of_its_own() -> None:
    _, handle = made("own_predict")
    assert ("its own", {"batch_size": None, "verbose": 0, "steps": None, "callbacks": None}) == handle.predict(
        [[1.0] * 4]
    )


def test_interrupted() -> None:
    """By a time limit, in the middle of a call: the model is what it was."""
    model, handle = made("functional")
    x = np.ones((40, 5, 4))
    expected = handle.predict(x)
    step = model.predict_function

    def interrupted(*_: Any) -> Any:
        raise TimeoutError

    model.predict_function = interrupted
    with pytest.raises(TimeoutError):
        handle.predict(x)
    model.predict_function = step
    assert np.array_equal(expected, handle.predict(x))


def test_several_threads() -> None:
    _, handle = made("functional")
    x = np.ones((4, 5, 4))
    expected = handle.predict(x)
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: handle.predict(x), range(100)))
    assert all(np.array_equal(expected, answer) for answer in answers)


# -- private names -------------------------------------------------------------


def test_all_are_there() -> None:
    """With the versions that are installed; importing Keras initialises nothing."""
    program = f"import {BACKEND}, keras; from celery_tfpool.runners import runtimes; "
    program += "print(runtimes.names_gone(), runtimes.running())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "[] None" == done.stdout.strip()


@pytest.mark.skipif(BACKEND != "jax", reason="no private name of PyTorch is used")
def test_a_renamed_name_does_not_silence_the_fork_guard() -> None:
    program = "import jax._src.xla_bridge as bridge; del bridge.backends_are_initialized; "
    program += "from celery_tfpool.runners import runtimes; print(runtimes.running().evidence())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    told = "a version of JAX whose state cannot be read: it has no jax._src.xla_bridge.backends_are_initialized"
    assert told == done.stdout.strip()
