"""The decisions of the pool, as plain functions of what is known and of the time."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from string import Formatter
from typing import Any

import billiard
import pytest
from celery import Celery

import celery_tfpool.predictors.supervisor
from celery_tfpool import errors
from celery_tfpool.pool.blocking_engine import CrashSafeQueue, LastingThread, ProcessLock
from celery_tfpool.pool.child_rules import ChildState, Status
from celery_tfpool.pool.fork_guard import fork_decision
from celery_tfpool.pool.plan import plan, predictor_threads, threads
from celery_tfpool.processes import GRACE, CrashLoop
from celery_tfpool.runners import installed, tf_state
from celery_tfpool.runners.culprit import blame
from celery_tfpool.settings import Settings


@pytest.mark.parametrize(
    ("evidence", "fork_guard", "can_spawn", "decision"),
    [
        ("", "spawn", True, "fork"),
        ("", "error", False, "fork"),
        ("an eager context", "spawn", True, "spawn"),
        ("an eager context", "spawn", False, "refuse"),
        ("an eager context", "error", True, "refuse"),
    ],
)
def test_fork_decision(evidence: str, fork_guard: str, can_spawn: bool, decision: str) -> None:
    assert decision == fork_decision(evidence=evidence, fork_guard=fork_guard, can_spawn=can_spawn)


@pytest.mark.parametrize(
    ("has_context", "threads", "devices", "evidence"),
    [
        (False, ["python", "python"], [], ""),
        (False, ["python"], ["CPU"], ""),
        (True, ["python"], [], "an eager context"),
        (False, ["python", "tf_graph_runner"], [], ""),
        (False, ["python", "tf_graph_runner", "tf_Compute"], [], "native threads of a TensorFlow session"),
        (False, ["python", "tf_Compute"], [], "native threads of a TensorFlow session"),
        (False, ["python"], ["CPU", "GPU"], "an initialised accelerator driver"),
    ],
)
def test_evidence(has_context: bool, threads: list[str], devices: list[str], evidence: str) -> None:
    """Imported and asked for its devices TensorFlow may be; a GPU among them has started CUDA."""
    assert evidence == tf_state.judge(has_context=has_context, thread_names=threads, device_types=devices)
    assert tf_state.judge(has_context=has_context, thread_names=threads, device_types=devices, was_seen=True)


@pytest.mark.parametrize(
    ("configured", "cores", "processes", "threads"),
    [(0, 8, 2, 4), (0, 8, 3, 2), (0, 2, 8, 1), (0, 1, 0, 1), (3, 8, 8, 3)],
)
def test_threads_per_process(configured: int, cores: int, processes: int, threads: int) -> None:
    """An equal share of the cores, at least 1, unless a number is configured."""
    assert threads == tf_state.threads_per_process(configured, cores=cores, processes=processes)


def test_plan() -> None:
    """A user's own larger worker_proc_alive_timeout is respected, Celery's default of 4 s is not."""
    assert 120 == plan(Settings(), processes=2, cores=8, proc_alive_timeout=4.0).startup_timeout
    assert 600 == plan(Settings(), processes=2, cores=8, proc_alive_timeout=600.0).startup_timeout
    assert 4 == plan(Settings(), processes=2, cores=8, proc_alive_timeout=4.0).intra_op


def test_child_that_never_becomes_ready() -> None:
    state = ChildState(slot=0, started=100.0)
    assert state.overdue(now=110.0, timeout=10.0) is None
    assert "not ready after 11 s" == state.overdue(now=111.0, timeout=10.0)
    state.update(Status({}, ready=True), now=112.0)
    assert state.overdue(now=1000.0, timeout=10.0) is None


def test_child_that_is_not_ready_when_the_pool_closes() -> None:
    """It gets a grace period of its own, however long it may take to start otherwise."""
    state = ChildState(slot=0, started=100.0)
    assert not state.unwanted(now=500.0, closing_since=None)
    assert not state.unwanted(now=500.0 + GRACE, closing_since=500.0)
    assert state.unwanted(now=501.0 + GRACE, closing_since=500.0)
    state.update(Status({}, ready=True), now=502.0)
    assert not state.unwanted(now=501.0 + GRACE, closing_since=500.0)


def test_child_that_loads_for_ever() -> None:
    """The child itself gives up at the time-out; worker main waits a little longer for it."""
    state = ChildState(slot=0, started=100.0, ready=True)
    state.update(Status({}, loading="digits"), now=200.0)
    assert state.overdue(now=210.0 + GRACE, timeout=10.0) is None
    assert "not done after 16 s, loading model 'digits'" == state.overdue(now=211.0 + GRACE, timeout=10.0)
    state.update(Status({"digits": {"loaded": True}}), now=212.0)
    assert state.overdue(now=1000.0, timeout=10.0) is None


def test_crash_loop() -> None:
    """Only ends in a row count."""
    loop = CrashLoop(limit=3)
    assert [False, False, False, False, False, True] == [loop.ended(ready) for ready in (0, 0, 1, 0, 0, 0)]


def test_blame_names_the_users_line(tmp_path: Path) -> None:
    """The innermost line outside TensorFlow and Keras; in an installed package also the user's own."""
    own, library = str(tmp_path / "tasks.py"), "/venv/lib/python3.11/site-packages/deepface/load.py"
    inside = "/venv/lib/python3.11/site-packages/keras/src/layers/layer.py"

    def frame(filename: str, line: int, text: str) -> traceback.FrameSummary:
        return traceback.FrameSummary(filename, line, "f", line=text)

    stack = [frame(own, 7, "M = load_model(P)"), frame(inside, 3, "x"), frame(inside, 4, "y")]
    assert f"{own}:7: M = load_model(P)" == blame(stack)
    stack.insert(1, frame(library, 9, "keras.load()"))
    assert f"{library}:9: keras.load(), called from {own}:7: M = load_model(P)" == blame(stack)
    assert "an unknown line" == blame([])


def every(cls: type[errors.TFPoolError]) -> Iterator[type[errors.TFPoolError]]:
    for sub in [sub for sub in cls.__subclasses__() if sub.__module__.startswith("celery_tfpool.")]:
        yield from (sub, *every(sub))


assert celery_tfpool.predictors.supervisor.CannotStart  # whose error is among them
ERRORS = sorted(every(errors.TFPoolError), key=lambda cls: cls.__name__)
#: As many arguments as each error has, with a number where one is formatted.
ARGUMENTS = {"PredictionTimeout": ("m", 120.0, "expires"), "PredictorOverloaded": ("m", 7, 10)}


def arguments(cls: type[errors.TFPoolError]) -> tuple[Any, ...]:
    places = 1 + max(int(place[0]) for _, place, *_ in Formatter().parse(cls.template) if place)
    return ARGUMENTS.get(cls.__name__, tuple(f"argument {number}" for number in range(places)))


@pytest.mark.parametrize("cls", ERRORS, ids=lambda cls: cls.__name__)
def test_errors_survive_pickle_and_json(cls: type[errors.TFPoolError]) -> None:
    """Celery rebuilds an exception as cls(*args); every fact is in the text."""
    error = cls(*arguments(cls))
    for rebuilt in (
        pickle.loads(pickle.dumps(error)),
        cls(*json.loads(json.dumps(error.args))),
        backend().exception_to_python(json.loads(json.dumps(backend().prepare_exception(error, "json")))),
    ):
        assert type(rebuilt) is cls
        assert str(error) == str(rebuilt)
        assert error.args == tuple(rebuilt.args)
    for argument in error.args:
        assert f"{argument:g}" if isinstance(argument, float) else str(argument) in str(error)


def backend() -> Any:
    app = Celery(set_as_current=False)
    app.conf.result_backend = "cache+memory://"
    return app.backend


@pytest.mark.parametrize("cls", [errors.TFPoolError, *ERRORS], ids=lambda cls: cls.__name__)
@pytest.mark.parametrize(
    "args", [(), (None,), ("a",), ("a", "b", "c"), (1, 2, 3, 4, 5), ("m", "120", object()), ([], {})]
)
def test_every_error_has_a_text(cls: type[errors.TFPoolError], args: tuple[Any, ...]) -> None:
    """Whatever somebody else has rebuilt it of."""
    assert isinstance(str(cls(*args)), str)
    assert args == cls(*args).args


def test_a_thread_that_was_stopped() -> None:
    """Says so to who calls it after that, and does not let him wait."""
    thread = LastingThread("test")
    assert 7 == thread.call(lambda: 7)
    thread.stop()
    with pytest.raises(RuntimeError, match="was stopped"):
        thread.call(lambda: 7)


def test_threads_of_python_are_not_tensorflows() -> None:
    """Python 3.14 gives them their names."""
    code = (
        "import ctypes, sys, threading, types; from celery_tfpool.runners import tf_state\n"
        "sys.modules['tensorflow'] = types.ModuleType('tensorflow')\n"
        "def run(): ctypes.CDLL(None).prctl(15, b'tf_io'); print(repr(tf_state.evidence()))\n"
        "t = threading.Thread(target=run); t.start(); t.join()"
    )
    assert "''\n" == subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize(
    ("environ", "settings", "expected"),
    [
        ({}, Settings(), (4, 4)),
        ({"TF_NUM_INTRAOP_THREADS": "3", "TF_NUM_INTEROP_THREADS": "1"}, Settings(), (3, 1)),
        ({"TF_NUM_INTRAOP_THREADS": "3"}, Settings(intra_op_parallelism=2), (2, 4)),
        ({"TF_NUM_INTRAOP_THREADS": "many"}, Settings(), (4, 4)),
    ],
)
def test_threads_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], settings: Settings, expected: tuple[int, int]
) -> None:
    """What the operator has told TensorFlow counts, and what he has told us before that; for predictors, too."""
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert expected == threads(settings, cores=8, processes=2)
    assert expected == predictor_threads(replace(settings, predictors=2), cores=8)


@pytest.mark.parametrize("module", ["celery_tfpool", "celery_tfpool.cli", "celery_tfpool.pool.startup"])
def test_importing_costs_nothing(module: str) -> None:
    """Neither the package nor what every `celery` command imports brings TensorFlow or Keras, or starts a thread."""
    code = (
        f"import {module}, sys, threading as t; print({{'tensorflow', 'keras'}} & set(sys.modules), t.active_count())"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "set() 1" == done.stdout.strip()


# -- locks of the dead -------------------------------------------------------------


def hold(lock: ProcessLock, taken: Any) -> None:
    lock.acquire()
    taken.set()
    time.sleep(60)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_lock_of_a_dead_child(method: str) -> None:
    """Is taken while the child that has it lives, and free when that is killed."""
    context = billiard.get_context(method)
    lock, taken = ProcessLock(), context.Event()
    child = context.Process(target=hold, args=(lock, taken))
    child.start()
    assert taken.wait(30)
    assert not lock.acquire(False)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert lock.acquire(False)


def end_as_billiard_does(pipe: CrashSafeQueue) -> None:
    """Say the last word with the signal masked, in this thread: Python still runs its handler when another gets it."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        pipe.put("the last word")
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        time.sleep(0.1)  # nothing ends it early if the signal came before it
    finally:
        os._exit(0)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # Python's, of threads
def test_lock_of_a_child_ended_at_its_last_word() -> None:
    """Worker main sends SIGTERM once it has read that; of 50 children with a thread one kept a semaphore."""
    pipe = CrashSafeQueue(ctx=billiard.get_context("fork"))
    for _ in range(200):
        pid = os.fork()
        if not pid:
            end_as_billiard_does(pipe)
        assert "the last word" == pipe.reader.recv()
        os.kill(pid, signal.SIGTERM)
        os.waitpid(pid, 0)
        assert pipe._wlock.acquire(False)
        pipe._wlock.release()


@pytest.mark.parametrize(
    ("variable", "file", "backend"),
    [
        (None, None, "tensorflow"),
        (None, '{"backend": "jax"}', "jax"),
        ("torch", '{"backend": "jax"}', "torch"),
        ("", '{"backend": "jax"}', "jax"),
        (None, '{"floatx": "float64"}', "tensorflow"),
        (None, "[", "tensorflow"),
    ],
)
def test_backend_of_keras(
    variable: str | None, file: str | None, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Keras itself finds it, which is not imported yet."""
    monkeypatch.delitem(sys.modules, "keras", raising=False)
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    if variable is not None:
        monkeypatch.setenv("KERAS_BACKEND", variable)
    if file is not None:
        (tmp_path / "keras.json").write_text(file)
    assert backend == installed.backend()
