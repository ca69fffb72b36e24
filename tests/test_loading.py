"""Models are loaded in each child, once, when needed, however long it takes; and what happens when they cannot be."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from celery.exceptions import SoftTimeLimitExceeded
from conftest import APPS, PATIENCE, StartWorker, Worker, make_model, python_path, quiet, wait_until

from celery_tfpool import ModelLoadError, UnknownModelError

SLOW = {"TFPOOL_TEST_LOAD_SECONDS": "10"}


def loaded_children(worker: Worker) -> list[dict[str, object]]:
    return [child for child in worker.stats()["tfpool"]["children"] if child["models"].get("default", {}).get("loaded")]


def test_lazy(start_worker: StartWorker, digits: str, engine: str) -> None:
    """Nothing is loaded until a task asks, and then in its child only; stats say so."""
    worker = start_worker("-c", "2", broker=engine, conf={"tf_model_path": digits})
    wait_until(lambda: [c["ready"] for c in worker.stats()["tfpool"]["children"]] == [True, True], "two children")
    assert [] == loaded_children(worker)
    assert "loading model" not in worker.log
    worker.call("predict")
    (child,) = wait_until(lambda: loaded_children(worker), "a loaded child")
    assert child["pid"] in worker.children()
    assert child["models"]["default"]["load_time"] > 0  # type: ignore[index]


def test_eager(start_worker: StartWorker, digits: str, engine: str) -> None:
    """Each child has loaded before it takes a task."""
    worker = start_worker("-c", "2", broker=engine, conf={"tf_model_path": digits, "tf_model_load": "eager"})
    wait_until(lambda: len(loaded_children(worker)) == 2, "both children loaded")
    worker.call("predict")
    assert 2 == worker.log.count("loading model")


@pytest.mark.parametrize("load", ["lazy", "eager"])
def test_handlers_of_the_users_may_predict(start_worker: StartWorker, digits: str, load: str) -> None:
    """Those of ``worker_process_init`` come before ours, which loads what is to be loaded eagerly."""
    conf = {"tf_model_path": digits, "tf_model_load": load}
    worker = start_worker("-c", "1", app="warms_up", conf=conf)
    assert [[[16.0]]] == worker.call("predicted_before")
    assert 1 == worker.log.count("loading model")


def test_a_child_without_models_takes_no_task(start_worker: StartWorker, tmp_path: Path) -> None:
    """Celery would log what a handler of ``worker_process_init`` raises, and let the child take tasks."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "if 'worker' in sys.argv:\n"
        "    from celery_tfpool.pool import child\n"
        "    child.Models = lambda *_, **__: 1 / 0\n"
    )
    worker = start_worker("-c", "1", env=python_path(tmp_path), wait=False)
    result = worker.send("add", 1, 2)
    assert 1 == worker.wait()
    assert "ZeroDivisionError: division by zero" in worker.log
    assert "PENDING" == result.state


@pytest.mark.parametrize("load", ["lazy", "eager"])
def test_slow_load_in_first_and_replaced_children(start_worker: StartWorker, engine: str, load: str) -> None:
    """10 s of loading is not killed after Celery's 4 s, neither at the start nor after a SIGKILL."""
    conf = {"tf_model_path": "proj:slow_model", "tf_model_load": load}
    worker = start_worker("-c", "1", broker=engine, conf=conf, env=SLOW)
    assert [[2.0]] == worker.call("predict")
    (before,) = worker.children()
    os.kill(before, signal.SIGKILL)
    wait_until(lambda: worker.children() not in ([], [before]), "a replacement")
    (after,) = worker.children()
    assert [[2.0]] == worker.call("predict")
    assert [after] == worker.children()
    assert "Timed out waiting for UP message" not in worker.log


def test_larger_worker_proc_alive_timeout(start_worker: StartWorker, engine: str) -> None:
    """Whoever has raised Celery's own time-out for children gets that much, although tf_startup_timeout is less."""
    conf = {"tf_model_path": "proj:slow_model", "tf_model_load": "eager", "tf_startup_timeout": 2}
    worker = start_worker("-c", "1", broker=engine, conf=conf | {"worker_proc_alive_timeout": 60}, env=SLOW)
    assert [[2.0]] == worker.call("predict")
    assert 1 == worker.log.count("loading model")


def test_several_threads_ask_at_once(start_worker: StartWorker) -> None:
    """The model is loaded once, and all get their answer."""
    worker = start_worker("-c", "1", conf={"tf_model_path": "proj:slow_model"}, env={"TFPOOL_TEST_LOAD_SECONDS": "1"})
    assert [[[2.0]]] * 8 == worker.call("predict_together", 8)
    assert 1 == worker.log.count("loading model")


def test_several_models(start_worker: StartWorker, digits: str) -> None:
    """By name; an unknown name, or none, is an error that lists the names."""
    worker = start_worker("-c", "1", conf={"tf_model_path": {"sum": digits, "slow": "proj:slow_model"}})
    assert [[16.0]] == worker.call("predict", 1, "sum")
    assert [[2.0]] == worker.call("predict", 1, "slow")
    for name in ("some", None):
        with pytest.raises(Exception, match="no model named") as caught:
            worker.call("predict", 1, name)
        assert str(UnknownModelError(name, "sum, slow")) == str(caught.value)


@pytest.mark.parametrize("suffix", [".h5", ""], ids=["h5", "saved_model"])
def test_other_formats(start_worker: StartWorker, tmp_path: Path, suffix: str) -> None:
    path = make_model(str(tmp_path / f"model{suffix}"))
    worker = start_worker("-c", "1", conf={"tf_model_path": path})
    assert [[16.0]] == worker.call("predict")
    if not suffix:
        with pytest.raises(Exception, match=r"SavedModel, which has predict\(\) only, no 'set_weights'"):
            worker.call("set_weights", 1.0)
    assert 0 == worker.stop()


def test_outside_a_worker(digits: str) -> None:
    """In a shell, a unit test or with task_always_eager the model is loaded in place."""
    code = "import proj; print(proj.predict(1), proj.predict.delay(1, None, 2.0).get())"
    env = {"TFPOOL_TEST_CONF": json.dumps({"tf_model_path": digits, "task_always_eager": True})}
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, env=quiet(os.environ) | env, cwd=APPS
    )
    assert "[[16.0]] [[32.0]]" in done.stdout, done.stderr


# -- what cannot be loaded -----------------------------------------------------


def break_file(tmp_path: Path) -> str:
    path = tmp_path / "half.keras"
    path.write_bytes(Path(make_model(str(tmp_path / "whole.keras"))).read_bytes()[:-400])
    return str(path)


def make_lambda(tmp_path: Path) -> str:
    code = "model = keras.Sequential([layers.Input((16,)), layers.Lambda(lambda x: x * 2)])"
    return make_model(str(tmp_path / "lambda.keras"), code)


SEEN_BEFORE_FORKING = {
    "missing": (lambda tmp_path: "/nowhere/digits.keras", "no such file or folder"),
    "folder": (str, "the folder is no model"),
    "truncated": (break_file, "it is damaged or truncated"),
    "lambda": (make_lambda, "which tf_safe_mode refuses"),
    "module": (lambda tmp_path: "no_such_module:make", "no module 'no_such_module' on the Python path"),
    "function": (lambda tmp_path: "proj:no_such_function", "module 'proj' has no function 'no_such_function'"),
}


@pytest.mark.parametrize(("make", "reason"), SEEN_BEFORE_FORKING.values(), ids=SEEN_BEFORE_FORKING)
def test_seen_before_forking(start_worker: StartWorker, tmp_path: Path, make, reason: str) -> None:  # type: ignore[no-untyped-def]
    """The worker ends with exit code 1 and one message: the path, the reason, no traceback."""
    path = make(tmp_path)
    worker = start_worker("-c", "1", conf={"tf_model_path": path}, wait=False)
    assert 1 == worker.wait()
    (message,) = [line for line in worker.log.splitlines() if reason in line]
    assert f"tf_model_path: model 'default' at {path!r}: " in message
    assert "Traceback" not in worker.log


def test_no_tensorflow(start_worker: StartWorker, digits: str, tmp_path: Path) -> None:
    """Without TensorFlow the worker says what to install; without a model it needs none."""
    (tmp_path / "sitecustomize.py").write_text(
        "from importlib.machinery import PathFinder\n"
        "find = PathFinder.find_spec\n"
        "PathFinder.find_spec = lambda name, *rest: None if name.startswith('tensorflow') else find(name, *rest)\n"
    )
    env = python_path(tmp_path)
    worker = start_worker("-c", "1", conf={"tf_model_path": digits}, env=env, wait=False)
    assert 1 == worker.wait()
    assert "tf_model_path: TensorFlow is not installed. Install it: pip install" in worker.log
    assert "Traceback" not in worker.log
    assert 3 == start_worker("-c", "1", env=env).call("add", 1, 2)


@pytest.mark.parametrize(
    ("backend", "reason"),
    [
        (
            "jax",
            "JAX is not installed, and Keras is to run on 'jax' (KERAS_BACKEND or ~/.keras/keras.json). Install it: ",
        ),
        ("numpy", "Keras is to run on 'numpy' (KERAS_BACKEND or ~/.keras/keras.json); this pool knows 'tensorflow', "),
    ],
)
def test_other_backend(start_worker: StartWorker, digits: str, backend: str, reason: str) -> None:
    """One that is not installed, or not known here: says so before forking."""
    env = {"KERAS_BACKEND": backend}
    worker = start_worker("-c", "1", conf={"tf_model_path": digits}, env=env, wait=False)
    assert 1 == worker.wait()
    assert f"tf_model_path: {reason}" in worker.log
    assert "Traceback" not in worker.log


SEEN_IN_THE_CHILD = {
    "raises": ("proj:broken_model", "RuntimeError: the weights are on the moon"),
    "no model": ("proj:no_model", "it returned str, which is no keras.Model, has no predict() and cannot be called"),
}


@pytest.mark.parametrize(("path", "reason"), SEEN_IN_THE_CHILD.values(), ids=SEEN_IN_THE_CHILD)
def test_lazy_load_that_fails(start_worker: StartWorker, engine: str, path: str, reason: str) -> None:
    """The task fails with ModelLoadError, and the child lives on."""
    worker = start_worker("-c", "1", broker=engine, conf={"tf_model_path": path})
    before = worker.call("pid")
    with pytest.raises(Exception, match="could not load model 'default'") as caught:
        worker.call("predict")
    assert str(ModelLoadError("default", path, reason)) == str(caught.value)
    assert ["default", path, reason] == worker.call("predict_in_spite_of_errors")
    assert before == worker.call("pid")


@pytest.mark.parametrize(("path", "reason"), SEEN_IN_THE_CHILD.values(), ids=SEEN_IN_THE_CHILD)
def test_eager_load_that_fails(start_worker: StartWorker, engine: str, path: str, reason: str) -> None:
    """After a few children in a row the worker ends with exit code 1 and the reason; no task is lost to a child
    without its model.
    """
    conf = {"tf_model_path": path, "tf_model_load": "eager"}
    worker = start_worker("-c", "2", broker=engine, conf=conf, wait=False)
    waiting = worker.send("predict")
    assert 1 == worker.wait()
    assert reason in worker.log
    assert "worker stops: 3 children in a row ended before they were ready" in worker.log
    assert "PENDING" == waiting.state
    assert worker.log.count("loading model") <= 5


@pytest.mark.parametrize("predictors", [0, 1])
def test_any_object(start_worker: StartWorker, predictors: int) -> None:
    """With a predict() of its own, which gets what was given and nothing else; made once per child, and said so."""
    conf = {"tf_model_path": {"detector": "proj:Detector", "upper": "proj:upper"}, "tf_predictors": predictors}
    worker = start_worker("-c", "1", conf=conf)
    assert ["cat 0.5", "cat 0.9"] == worker.call("detect", "a picture")
    assert "AAA" == worker.call("upper", "aaa")
    assert 1 + predictors == worker.log.count("a detector was made")
    status = worker.stats()["tfpool"]["children"][0]["models"]
    assert {"detector", "upper"} == set(status)
    assert "model 'detector' from 'proj:Detector' is not shared" in worker.log
    with pytest.raises(Exception, match=r"threshold must be below 1"):
        worker.call("detect", "a picture", 1.5)


def test_lazy_load_that_takes_too_long(start_worker: StartWorker, engine: str) -> None:
    """Python code is interrupted: the task fails with ModelLoadError, and its child takes no other task."""
    conf = {"tf_model_path": "proj:slow_model", "tf_startup_timeout": 8}
    worker = start_worker("-c", "1", broker=engine, conf=conf, env={"TFPOOL_TEST_LOAD_SECONDS": "600"})
    before = worker.call("pid")
    with pytest.raises(Exception, match=r"it took longer than 8 s \(tf_startup_timeout\)"):
        worker.call("predict")
    assert before != worker.call("pid")


@pytest.mark.parametrize("path", ["proj:slow_model", "proj:stubborn_model"])
def test_soft_time_limit_while_loading(start_worker: StartWorker, path: str) -> None:
    """The soft limit ends the wait, also where loading catches it, as TensorFlow's import does in places; and a
    child whose load was interrupted half-way takes no other task.
    """
    worker = start_worker("-c", "1", conf={"tf_model_path": path}, env={"TFPOOL_TEST_LOAD_SECONDS": "60"})
    before = worker.call("pid")
    with pytest.raises(SoftTimeLimitExceeded):
        worker.call("predict", soft_time_limit=2)
    assert before != worker.call("pid")


def test_lazy_load_that_hangs_in_native_code(start_worker: StartWorker, engine: str) -> None:
    """Worker main kills the child, which shows where it hung; the task fails and the next is served."""
    worker = start_worker(
        "-c", "1", broker=engine, conf={"tf_model_path": "proj:hanging_model", "tf_startup_timeout": 15}
    )
    with pytest.raises(Exception, match="Worker exited prematurely: signal 6"):
        worker.call("predict")
    assert "loading model 'default'; tf_startup_timeout is 15 s. Killing it" in worker.log
    assert "Fatal Python error: Aborted" in worker.log
    assert "in hanging_model" in worker.log
    assert 3 == worker.call("add", 1, 2)


@pytest.mark.parametrize("path", ["proj:slow_model", "proj:hanging_model"])
def test_eager_load_that_takes_too_long(start_worker: StartWorker, engine: str, path: str) -> None:
    """Children that are never ready are ended, on either engine, and after a few the worker."""
    conf = {"tf_model_path": path, "tf_model_load": "eager", "tf_startup_timeout": 5}
    worker = start_worker("-c", "3", broker=engine, conf=conf, env={"TFPOOL_TEST_LOAD_SECONDS": "600"}, wait=False)
    assert 1 == worker.wait()
    assert "worker stops: 3 children in a row ended before they were ready" in worker.log


def test_stop_while_children_hang_in_their_start(start_worker: StartWorker, engine: str) -> None:
    """Children that are not ready have no task and do not keep the worker from stopping, whatever they hang in."""
    conf = {"tf_model_path": "proj:hanging_model", "tf_model_load": "eager", "tf_startup_timeout": 600}
    worker = start_worker("-c", "2", broker=engine, conf=conf)
    worker.wait_for("loading model", times=2)
    assert 0 == worker.stop()
    assert 2 == worker.log.count("is not ready and the worker stops: killing it")


@pytest.mark.parametrize(("acks_late", "size"), [(True, 1), (False, 100_000)])
def test_stop_while_a_task_waits_for_children_that_hang(
    start_worker: StartWorker, engine: str, acks_late: bool, size: int
) -> None:
    """The task that no child has taken, larger than a pipe or not, goes back to the broker for the next worker."""
    conf = {"tf_model_path": "proj:hanging_model", "tf_model_load": "eager", "tf_startup_timeout": 600}
    worker = start_worker("-c", "2", broker=engine, conf=conf | {"task_acks_late": acks_late}, wait=False)
    waiting = worker.send("total", [0] * size)  # while nobody listens: kombu's filesystem broker reads half a file
    worker.wait_for("loading model", times=2)
    worker.wait_for("Task proj.total.* received")
    assert 0 == worker.stop(timeout=45)
    assert 2 == worker.log.count("is not ready and the worker stops: killing it")
    same_queue = ("broker_url", "broker_transport_options", "task_default_queue", "result_backend")
    start_worker("-c", "1", conf={key: worker.client.conf[key] for key in same_queue})
    assert 0 == waiting.get(timeout=PATIENCE)


def test_file_that_changes_under_a_worker(start_worker: StartWorker, engine: str, tmp_path: Path) -> None:
    """Is refused where it is loaded later, so that one worker never answers with two versions."""
    path = make_model(str(tmp_path / "sum.keras"))
    conf = {"tf_model_path": path, "tf_share_weights": False}
    worker = start_worker("-c", "1", broker=engine, conf=conf)
    assert [[16.0]] == worker.call("predict")
    make_model(path, "model.set_weights([w + 1 for w in model.get_weights()])")
    assert [[16.0]] == worker.call("predict")
    (child,) = worker.children()
    os.kill(child, signal.SIGKILL)
    told = r"its files have changed since the worker started \(fingerprint [0-9a-f]{8}, at the start [0-9a-f]{8}\)"
    with pytest.raises(Exception, match=told):
        worker.call("predict")
    assert 0 == worker.stop()


def test_pack_outlives_a_change_of_its_model(start_worker: StartWorker, tmp_path: Path) -> None:
    """Who has it goes on; what only the model itself has is refused."""
    path = make_model(str(tmp_path / "sum.keras"))
    worker = start_worker("-c", "1", conf={"tf_model_path": path})
    make_model(path, "model.set_weights([w + 1 for w in model.get_weights()])")
    for _ in range(2):
        assert [[16.0]] == worker.call("predict")
        (child,) = worker.children()
        os.kill(child, signal.SIGKILL)
    with pytest.raises(Exception, match="its files have changed since the worker started"):
        worker.call("count_layers")
