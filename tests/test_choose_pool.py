"""The pool and its model, chosen in every way that Celery offers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import APPS, POOL, Program, StartWorker, marked, quiet, wait_until

from celery_tfpool import UnknownModelError


def celery(*arguments: str, env: dict[str, str] | None = None, cwd: Path = APPS) -> subprocess.CompletedProcess[str]:
    environ = quiet(os.environ) | {"TFPOOL_TEST_CONF": "{}"} | (env or {})
    command = [sys.executable, "-m", "celery", *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True, env=environ, cwd=cwd, timeout=120)


@pytest.mark.parametrize(
    ("option", "conf", "env"),
    [
        (f"--pool={POOL}", {}, {}),
        (f"-P{POOL}", {}, {}),
        (None, {"worker_pool": POOL}, {}),
        ("--pool=custom", {}, {"CELERY_CUSTOM_WORKER_POOL": POOL}),
    ],
    ids=["--pool", "-P", "worker_pool", "custom"],
)
def test_on_the_command_line(start_worker: StartWorker, digits: str, option: str, conf: dict, env: dict) -> None:  # type: ignore[type-arg]
    """Each way brings the pool, the bootstep and the remote-control command."""
    worker = start_worker("-c", "1", pool=option, conf=conf | {"tf_model_path": digits}, env=env)
    assert [[32.0]] == worker.call("predict", 1, None, 2.0)
    stats = worker.stats()
    assert "celery_tfpool.pool.prefork:TFPrefork" == stats["pool"]["implementation"]
    assert {"default": digits} == stats["tfpool"]["models"]
    assert 1 == len(stats["pool"]["processes"])
    assert stats["tfpool"]["models"] == worker.control("tfpool")["models"]


def test_help_lists_ours_and_a_wrong_name_is_refused() -> None:
    """Nothing else of the command line has changed."""
    assert f"custom|{POOL}]" in "".join(celery("-A", "proj", "worker", "--help").stdout.split())
    wrong = celery("-A", "proj", "worker", "--pool=celery_tfpool:TFPreforq")
    assert 2 == wrong.returncode
    assert "Invalid value for '-P' / '--pool': 'celery_tfpool:TFPreforq' is not one of 'prefork'" in wrong.stderr
    assert POOL in wrong.stderr


EMBEDDED = """
import gc, json, os, sys
from celery.contrib.testing.worker import start_worker
from proj import app, predict, pid
import celery.contrib.testing.tasks

def held():
    return [path for path in map(os.path.realpath, os.scandir("/proc/self/fd")) if "/celery_tfpool/" in path]

def main():
    with start_worker(app, pool="celery_tfpool:TFPrefork", concurrency=1, perform_ping_check=True) as worker:
        print("answer", predict.delay(1, None, 2.0).get(timeout=60), pid.delay().get(timeout=60) != os.getpid())
        print("pool", type(worker.pool).__name__, list(worker.stats()["tfpool"]["models"]))
        (answers,) = app.control.inspect(timeout=30, limit=1)._request("tfpool").values()
        print("inspect", list(answers["models"]), "held", len(held()), gc.get_freeze_count() > 0)
    print("afterwards", len(held()), gc.get_freeze_count())

main()
"""


@pytest.mark.parametrize("broker", ["redis", "memory://"])
def test_embedded_worker(digits: str, redis_url: str, tmp_path: Path, broker: str) -> None:
    """celery.contrib.testing's start_worker, as in users' own tests, on both engines."""
    conf = {"result_backend": redis_url + "/2", "tf_model_path": digits, "task_default_queue": tmp_path.name}
    conf["broker_url"] = redis_url + "/2" if broker == "redis" else broker
    program = Program([sys.executable, "-c", EMBEDDED], env=quiet(os.environ) | {"TFPOOL_TEST_CONF": json.dumps(conf)})
    assert 0 == program.wait(), program.log
    assert "answer [[32.0]] True" in program.log
    assert "pool TFPrefork ['default']" in program.log
    assert "inspect ['default'] held 1 True" in program.log
    assert "afterwards 0 0" in program.log


def test_inspect_in_a_shell(start_worker: StartWorker, digits: str) -> None:
    """`celery inspect tfpool` knows the command, and prints what the worker answers."""
    worker = start_worker("-c", "1", conf={"tf_model_path": digits})
    worker.stats()
    keys = ("broker_url", "result_backend")
    env = {"TFPOOL_TEST_CONF": json.dumps({key: worker.client.conf[key] for key in keys})}
    done = celery("-A", "proj", "inspect", "--json", "-d", worker.name, "-t", "30", "tfpool", env=env)
    assert 0 == done.returncode, done.stderr
    assert {"default": digits} == json.loads(done.stdout)[worker.name]["models"]


def test_app_worker(digits: str, redis_url: str) -> None:
    """app.Worker(pool=…): the settings are checked in its constructor, as an exception of ours."""
    code = """
from proj import app
from celery_tfpool import SettingsError, TFPrefork
assert type(app.Worker(pool="celery_tfpool:TFPrefork").pool) is TFPrefork
assert type(app.Worker(pool=TFPrefork).pool) is TFPrefork
assert type(app.Worker(pool="solo").pool) is not TFPrefork
app.conf.tf_model_load = "soon"
try:
    app.Worker(pool="celery_tfpool:TFPrefork")
except SettingsError as exc:
    print(exc)
"""
    env = quiet(os.environ) | {"TFPOOL_TEST_CONF": json.dumps({"tf_model_path": digits, "broker_url": redis_url})}
    program = Program([sys.executable, "-c", code], env=env)
    assert 0 == program.wait(), program.log
    assert "tf_model_load: must be 'lazy' or 'eager', got 'soon'" in program.log


def test_multi_and_detach(digits: str, redis_url: str, tmp_path: Path) -> None:
    """`celery multi start`, which runs `celery worker --detach`; and `stopwait`."""
    conf = {"broker_url": redis_url + "/3", "result_backend": redis_url + "/3"}
    env = {"TFPOOL_TEST_CONF": json.dumps(conf), "TFPOOL_TEST_MARK": tmp_path.name}
    files = [f"--pidfile={tmp_path}/%n.pid", f"--logfile={tmp_path}/%n%I.log"]
    options = ["-A", "proj", "-c", "1", f"--pool={POOL}", f"--tf-model-path={digits}", "-l", "INFO", *files]
    log = tmp_path / "w1.log"
    try:
        started = celery("multi", "start", "w1", *options, env=env)
        assert 0 == started.returncode, started.stdout + started.stderr
        wait_until(lambda: log.exists() and " ready." in log.read_text(), "the detached worker is ready")
        call = "import proj; print(proj.predict.delay(1).get(timeout=60))"
        environ = quiet(os.environ) | env
        answer = subprocess.run(
            [sys.executable, "-c", call], check=False, capture_output=True, text=True, env=environ, cwd=APPS
        )
        assert "[[16.0]]" in answer.stdout, answer.stderr + log.read_text()
        assert 0 == celery("multi", "stopwait", "w1", *options, env=env).returncode
        wait_until(lambda: not marked(tmp_path.name), "the detached worker has ended")
    finally:
        for process in marked(tmp_path.name):
            process.kill()


def test_detached_worker_with_wrong_settings(tmp_path: Path) -> None:
    """Who has no terminal finds the message in the log file."""
    log = tmp_path / "log"
    celery(
        *("-A", "proj", "worker", "--detach", f"--logfile={log}", f"--pidfile={tmp_path}/pid", f"--pool={POOL}"),
        env={"CELERY_TF_MODEL_PATH": "/nowhere.keras", "TFPOOL_TEST_CONF": '{"broker_url": "memory://"}'},
    )
    wait_until(lambda: log.exists() and "no such file or folder" in log.read_text(), "the message")


def test_command_line_before_environment_before_configuration(start_worker: StartWorker, digits: str) -> None:
    conf, env = {"tf_model_path": "/conf.keras"}, {"CELERY_TF_MODEL_PATH": "/env.keras"}
    worker = start_worker("-c", "1", f"--tf-model-path={digits}", conf=conf, env=env)
    assert [[16.0]] == worker.call("predict")
    assert {"default": digits} == worker.stats()["tfpool"]["models"]
    worker = start_worker("-c", "1", conf=conf, env={"CELERY_TF_MODEL_PATH": digits})
    assert {"default": digits} == worker.stats()["tfpool"]["models"]


def test_one_of_several_models(start_worker: StartWorker, digits: str) -> None:
    """Others, whose files this machine need not have, are unknown to this worker, and a message says why."""
    conf = {"tf_model_path": {"digits": "/nowhere.keras", "other": "/nowhere/else.keras"}}
    options = [f"--tf-model-path=digits={digits},other=/nowhere.keras", "--tf-models=digits"]
    worker = start_worker("-c", "1", *options, conf=conf)
    assert [[16.0]] == worker.call("predict")
    assert {"digits": digits} == worker.stats()["tfpool"]["models"]
    with pytest.raises(UnknownModelError, match=r"'other'; tf_model_path, of which tf_models .*, has: digits"):
        worker.call("predict_row", [1.0] * 16, "other")


def test_django_namespace(start_worker: StartWorker, digits: str) -> None:
    """CELERY_TF_MODEL_PATH in a settings module, read with namespace="CELERY"."""
    worker = start_worker("-c", "1", app="namespaced", env={"TFPOOL_TEST_MODEL": digits})
    assert [[16.0]] == worker.call("namespaced.predict")


def test_environment_before_django_namespace(start_worker: StartWorker, digits: str) -> None:
    """CELERY_TF_MODEL_PATH of the environment goes before that of the settings module."""
    env = {"TFPOOL_TEST_MODEL": "/conf.keras", "CELERY_TF_MODEL_PATH": digits}
    worker = start_worker("-c", "1", app="namespaced", env=env)
    assert [[16.0]] == worker.call("namespaced.predict")
    assert {"default": digits} == worker.stats()["tfpool"]["models"]


def test_unknown_setting(start_worker: StartWorker) -> None:
    """The worker ends with exit code 1 and the nearest right name, before anything else."""
    worker = start_worker("-c", "1", conf={"tf_model_lod": "eager"}, wait=False)
    assert 1 == worker.wait()
    assert "tf_model_lod: unknown (did you mean tf_model_load?)" in worker.log
    assert "Traceback" not in worker.log


@pytest.mark.parametrize("pool", ["threads", "solo", "gevent", "eventlet", "prefork"])
def test_other_pools(start_worker: StartWorker, digits: str, pool: str) -> None:
    """The same app and code under the pools that people use today, with the model from any place."""
    worker = start_worker("-c", "2", f"--tf-model-path={digits}", pool=f"--pool={pool}")
    results = [worker.send("predict", 1, None, float(n)) for n in range(4)]
    assert [[[16.0 * n]] for n in range(4)] == [result.get(timeout=90) for result in results]
    assert "tfpool" not in worker.stats()


def test_spawn_by_choice(start_worker: StartWorker, digits: str, engine: str) -> None:
    """Celery's own --pool-start-method=spawn, where there is one, replacements included."""
    from celery import VERSION

    if VERSION < (5, 7):
        pytest.skip("Celery before 5.7 has no spawn")
    worker = start_worker(
        *("-c", "1", "--pool-start-method=spawn", "--max-tasks-per-child=1"),
        broker=engine,
        conf={"tf_model_path": digits},
    )
    assert [[[16.0]]] * 2 == [worker.call("predict") for _ in range(2)]
    assert "spawn" == worker.stats()["tfpool"]["start_method"]
    assert "initialised" not in worker.log
