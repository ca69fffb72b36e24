"""The code that hangs elsewhere, as people have written it: it runs unchanged, from one copy of the weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from conftest import APPS, StartWorker, make_model, python_path, quiet, wait_until

from celery_tfpool.models.stand_in import Later

AS_WRITTEN = APPS / "as_written"
APP_NAMES = ["global_model", "with_graph", "task_class", "lazy_property", "flask_app", "mysite", "prepared"]
ONES = [1.0] * 16


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("deferred")
    (folder / "other").mkdir()
    doubled = "model.set_weights([2 * weight for weight in model.get_weights()])"
    return {
        "MODEL": make_model(str(folder / "sum.keras")),
        "OTHER_MODEL": make_model(str(folder / "other" / "sum.keras"), doubled),
        "SAVED_MODEL": make_model(str(folder / "exported")),
    }


def environment(models: dict[str, str]) -> dict[str, str]:
    return {**python_path(AS_WRITTEN), **models}


@pytest.mark.parametrize("app", APP_NAMES)
@pytest.mark.parametrize("predictors", [0, 1])
def test_as_written(start_worker: StartWorker, models: dict[str, str], app: str, predictors: int) -> None:
    conf = {"tf_predictors": predictors}
    worker = start_worker("-c", "2", app=app, conf=conf, env=environment(models))
    assert [[[16.0]]] * 4 == [worker.call("predict", ONES) for _ in range(4)]
    assert "TensorFlow was initialised" not in worker.log
    if app == "lazy_property":
        return  # loaded by each child
    facts = worker.stats()["tfpool"]
    assert {"sum": models["MODEL"]} == facts["models"]
    assert facts["packs"]["sum"]["packed"] is True
    assert "fork" == facts["start_method"]
    assert f"sum = {models['MODEL']} (shared)" in worker.log
    assert "model 'sum' is loaded where it is used, and not at " in worker.log
    assert f"{'apps' if app == 'mysite' else app}.py:" in worker.log


def test_what_stands_for_it(start_worker: StartWorker, models: dict[str, str], engine: str) -> None:
    worker = start_worker("-c", "1", app="global_model", broker=engine, env=environment(models))
    is_model, text = worker.call("is_model")
    assert is_model
    assert f"<model 'sum' from {models['MODEL']!r}, not loaded>" == text
    assert "Sequential" == worker.call("load")


def test_training(start_worker: StartWorker, models: dict[str, str]) -> None:
    """With what it was compiled with in worker main."""
    worker = start_worker("-c", "1", app="prepared", env=environment(models))
    assert ["SGD", True] == worker.call("train")


def test_asked_for_by_name(start_worker: StartWorker, models: dict[str, str]) -> None:
    """``get_model()`` is still the only one of the settings; by its name any is to be had."""
    conf = {"tf_model_path": models["OTHER_MODEL"]}
    worker = start_worker("-c", "1", app="by_name", conf=conf, env=environment(models))
    assert [16.0, 32.0, 16.0] == worker.call("predict", ONES)


def test_replaced_child(start_worker: StartWorker, models: dict[str, str]) -> None:
    worker = start_worker("-c", "1", "--max-tasks-per-child=1", app="global_model", env=environment(models))
    assert [[[16.0]]] * 3 == [worker.call("predict", ONES) for _ in range(3)]


def test_eager(start_worker: StartWorker, models: dict[str, str]) -> None:
    worker = start_worker("-c", "1", app="global_model", conf={"tf_model_load": "eager"}, env=environment(models))
    wait_until(lambda: worker.stats()["tfpool"]["children"][0]["models"].get("sum", {}).get("loaded"), "a loaded model")


@pytest.mark.parametrize("predictors", [0, 1])
def test_two_models(start_worker: StartWorker, models: dict[str, str], predictors: int) -> None:
    conf = {"tf_predictors": predictors}
    worker = start_worker("-c", "1", app="two_models", conf=conf, env=environment(models))
    assert [16.0, 32.0, 16.0] == worker.call("predict", ONES)
    paths = {"sum": models["MODEL"], "sum-2": models["OTHER_MODEL"], "sum-3": models["MODEL"]}
    assert paths == worker.stats()["tfpool"]["models"]


def test_beside_tf_model_path(start_worker: StartWorker, models: dict[str, str]) -> None:
    conf = {"tf_model_path": {"sum": models["OTHER_MODEL"]}}
    worker = start_worker("-c", "1", app="global_model", conf=conf, env=environment(models))
    assert [[16.0]] == worker.call("predict", ONES)
    assert {"sum": models["OTHER_MODEL"], "sum-2": models["MODEL"]} == worker.stats()["tfpool"]["models"]


def test_other_forms(start_worker: StartWorker, models: dict[str, str]) -> None:
    """Are loaded by the same call in each child."""
    worker = start_worker("-c", "2", app="other_forms", env=environment(models))
    assert [16.0, 16.0, True] == worker.call("predict", ONES)


def test_pool_of_the_configuration(start_worker: StartWorker, models: dict[str, str]) -> None:
    worker = start_worker("-c", "1", app="in_configuration", pool=None, env=environment(models))
    assert [[16.0]] == worker.call("predict", ONES)
    assert "fork" == worker.stats()["tfpool"]["start_method"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing.keras", "File not found: filepath=.*missing.keras"),
        ("cut.keras", "it is damaged or truncated"),
    ],
)
def test_wrong_path(start_worker: StartWorker, models: dict[str, str], tmp_path: Path, name: str, words: str) -> None:
    """Is told at the line that loads it."""
    (tmp_path / "cut.keras").write_bytes(Path(models["MODEL"]).read_bytes()[:100])
    env = {**environment(models), "MODEL": str(tmp_path / name)}
    worker = start_worker("-c", "1", app="global_model", env=env, wait=False)
    assert worker.wait() != 0
    worker.wait_for(words)
    assert 'global_model.py", line 13' in worker.log


def test_not_wanted(start_worker: StartWorker, models: dict[str, str]) -> None:
    """Then it is loaded there, and the fork guard has a say."""
    conf = {"tf_defer_loading": False, "tf_fork_guard": "error"}
    worker = start_worker("-c", "1", app="global_model", conf=conf, env=environment(models), wait=False)
    assert 1 == worker.wait()
    assert "TensorFlow was initialised in the worker's main process by " in worker.log


def test_not_wanted_too_late(start_worker: StartWorker, models: dict[str, str], tmp_path: Path) -> None:
    """A configuration that says so after the line that loads it."""
    written = (AS_WRITTEN / "global_model.py").read_text()
    (tmp_path / "late.py").write_text(f"{written}\n\napp.conf.tf_defer_loading = False\n")
    env = {**environment(models), **python_path(tmp_path)}
    worker = start_worker("-c", "1", app="late", env=env, wait=False)
    assert 1 == worker.wait()
    assert "tf_defer_loading is False, which was not known yet when these lines loaded a model" in worker.log
    assert "late.py:13: model = load_model(" in worker.log


@pytest.mark.parametrize("pool", ["solo", "threads"])
def test_other_pools(start_worker: StartWorker, models: dict[str, str], pool: str) -> None:
    """There the functions are Keras's own."""
    worker = start_worker("-c", "1", app="global_model", pool=f"--pool={pool}", env=environment(models))
    assert "Sequential" in worker.call("is_model")[1]
    assert [[16.0]] == worker.call("predict", ONES)


def test_flask_serves(models: dict[str, str]) -> None:
    """The same module, in a process that serves: the model is Keras's own."""
    program = (
        "import flask_app\n"
        "answer = flask_app.flask.test_client().post('/predict', json=[[1.0] * 16]).json\n"
        "print()\n"
        "print(type(flask_app.flask.extensions['model']).__name__, answer)"
    )
    assert "Sequential [[16.0]]" == lines_of(program, models)[-1]


def test_outside_a_worker(models: dict[str, str]) -> None:
    """In a shell or a web process, with `defer_loading` at the top of the module as well."""
    program = "import in_configuration as app; print(type(app.model).__name__, app.predict([1.0] * 16))"
    assert "Sequential [[16.0]]" == lines_of(program, models)[-1]


def lines_of(program: str, models: dict[str, str]) -> list[str]:
    env = quiet(os.environ) | environment(models) | {"TFPOOL_TEST_CONF": json.dumps({})}
    command = [sys.executable, "-c", program]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.splitlines()


def test_loaded_once_by_two_threads() -> None:
    """What is no pack is loaded by the first thread that uses it, and the others wait."""
    started: list[int] = []

    def load() -> Any:
        started.append(threading.get_ident())
        time.sleep(0.2)
        return str

    later = Later(load, "a detector")
    with ThreadPoolExecutor(4) as threads:
        assert ["7"] * 4 == list(threads.map(later, [7] * 4))
    assert 1 == len(started)
