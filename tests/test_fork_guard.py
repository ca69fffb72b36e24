"""Never hang: whatever a user's module did to TensorFlow before the fork, a task runs or the worker says why not."""

from __future__ import annotations

import re
from pathlib import Path

import celery
import pytest
from celery.exceptions import TimeLimitExceeded
from conftest import StartWorker, Worker, python_path

SPAWNS = celery.VERSION >= (5, 7)

APP = """\
import json, os
import numpy as np
from celery import Celery
{line}

app = Celery("app")
app.conf.update(json.loads(os.environ["TFPOOL_TEST_CONF"]))


@app.task(name="proj.predict")
def predict():
    return float({model}.predict(np.ones((1, 16)))[0][0])


@app.task(name="proj.ready")
def ready():
    return os.getpid()
"""

#: What people write at the top of a module, and which of it initialises TensorFlow.
LOADED = "import keras; MY_MODEL = keras.models.load_model({path!r})"
TRIPS = {
    "model": "import keras; MY_MODEL = keras.Sequential([keras.layers.Input((16,)), "
    "keras.layers.Dense(1, kernel_initializer='ones')])",
    "layer": "import keras; LAYER = keras.layers.Dense(2); LAYER.build((None, 3))",
    "constant": "import tensorflow as tf; ONE = tf.constant(1)",
    "session": "import tensorflow as tf; G = tf.Graph(); tf.compat.v1.Session(graph=G).list_devices()",
}
HARMLESS = {
    "devices": "import tensorflow as tf; DEVICES = tf.config.list_physical_devices()",
    "import": "import tensorflow, keras",
    "handle": "from celery_tfpool import get_model; MODEL = get_model()",
}


@pytest.fixture
def start_app(start_worker: StartWorker, digits: str, tmp_path: Path):  # type: ignore[no-untyped-def]
    """Start a worker of an app with ``line`` at its top, whose task predicts with ``model``."""

    def start(*arguments: str, line: str, model: str = "__import__('celery_tfpool').get_model()", **options):  # type: ignore[no-untyped-def]
        (tmp_path / "app.py").write_text(APP.format(line=line.format(path=digits), model=model))
        options["conf"] = {"tf_model_path": digits} | options.get("conf", {})
        return start_worker("-c", "2", *arguments, app="app", env=python_path(tmp_path), **options)

    return start


def first_line_of(log: str, start: str) -> str:
    return next(line for line in log.splitlines() if start in line)


@pytest.mark.parametrize("line", TRIPS.values(), ids=TRIPS)
def test_initialised_at_import(line: str, start_app, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Children are spawned and the task runs, or (before Celery 5.7) nothing starts; both name file and line."""
    worker: Worker = start_app(line=line, wait=SPAWNS)
    if SPAWNS:
        assert 16.0 == worker.call("predict")
        assert "spawn" == worker.stats()["tfpool"]["start_method"]
        assert "Children are spawned instead" in worker.log
    else:
        assert 1 == worker.wait()
        assert "cannot spawn children instead (5.7 and newer can)" in worker.log
        assert "Traceback" not in worker.log
    said = first_line_of(worker.log, "TensorFlow was initialised in the worker's main process by")
    assert f"{tmp_path}/app.py:4: {line[:20]}" in said
    assert "set tf_model_path and call celery_tfpool.get_model()" in said


@pytest.mark.skipif(not SPAWNS, reason="Celery before 5.7 has no spawn")
def test_model_built_at_import(start_app, engine: str) -> None:  # type: ignore[no-untyped-def]
    """MY_MODEL = Sequential(…) at module level, MY_MODEL.predict(…) in the task: answers, replacements included."""
    worker: Worker = start_app("--max-tasks-per-child=1", line=TRIPS["model"], model="MY_MODEL", broker=engine)
    assert [16.0, 16.0, 16.0] == [worker.call("predict") for _ in range(3)]
    assert 3 == len({worker.call("ready") for _ in range(3)})


def test_stock_prefork_hangs(start_app) -> None:  # type: ignore[no-untyped-def]
    """What all this is for: the same app under stock prefork never answers."""
    worker: Worker = start_app(line=LOADED, model="MY_MODEL", pool=None, conf={"tf_model_path": None})
    with pytest.raises(TimeLimitExceeded):
        worker.call("predict", time_limit=10)


def test_error_instead_of_spawn(start_app, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """With tf_fork_guard = "error" the worker refuses to start, with the line, exit code 1 and no traceback."""
    worker: Worker = start_app(line=TRIPS["model"], wait=False, conf={"tf_fork_guard": "error"})
    assert 1 == worker.wait()
    said = first_line_of(worker.log, "Error: ")
    assert f"by {tmp_path}/app.py:4: import keras; MY_MODEL" in said
    assert 'tf_fork_guard is "error", so nothing is started' in said
    assert "Traceback" not in worker.log


@pytest.mark.parametrize("line", HARMLESS.values(), ids=HARMLESS)
def test_harmless(line: str, start_app, engine: str) -> None:  # type: ignore[no-untyped-def]
    """TensorFlow imported, or asked for its devices, and a handle at the top of the module: is forked, and predicts."""
    model = {"model": "MODEL"} if "MODEL" in line else {}
    worker: Worker = start_app(line=line, broker=engine, **model)
    assert 16.0 == worker.call("predict")
    assert "fork" == worker.stats()["tfpool"]["start_method"]
    assert not re.search("initialised in the worker's main process", worker.log)


LATE = """\
from celery.signals import worker_ready

@worker_ready.connect
def warm_up(**_):
    import tensorflow as tf
    tf.constant(1)
    print("warmed up", flush=True)
"""


def test_initialised_after_the_start(start_app, engine: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """The first children are safe; a replacement is spawned, or the worker ends with the reason: no child hangs."""
    worker: Worker = start_app("--max-tasks-per-child=1", line=LATE, broker=engine)
    worker.wait_for("warmed up")
    if SPAWNS:
        assert [16.0] * 4 == [worker.call("predict") for _ in range(4)]
        worker.wait_for(rf"initialised in the worker's main process by {tmp_path}/app.py:9: tf.constant\(1\)")
    else:
        assert 16.0 == worker.call("predict")
        worker.wait_for(r"worker stops: TensorFlow was initialised .*No replacement child can be started")
        assert 1 == worker.wait()
