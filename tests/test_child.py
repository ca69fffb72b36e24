"""What a process that runs tasks keeps of the user's, and what its forks do not use of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import APPS, PATIENCE, StartWorker

from celery_tfpool.pool import child
from celery_tfpool.pool.interruption import interruptible
from celery_tfpool.pool.plan import Plan


@pytest.fixture
def rung() -> Iterator[list[float]]:
    """When the task's own alarm has rung, in seconds from now."""
    started, rung = time.monotonic(), []
    before = signal.signal(signal.SIGALRM, lambda *_: rung.append(time.monotonic() - started))
    yield rung
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


#: Set when a load was.
interrupted = threading.Event()


def nap(seconds: float) -> None:
    """Sleep, alarms or not."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(0.01)


def load(seconds: float) -> None:
    with interruptible(60.0, TimeoutError("too long"), on_interruption=interrupted.set):
        nap(seconds)


def test_alarm_after_the_load(rung: list[float]) -> None:
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    load(0.1)
    assert [] == rung
    nap(1.0)
    assert 1 == len(rung)
    assert rung[0] >= 0.5


def test_alarm_during_the_load(rung: list[float]) -> None:
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    load(0.5)
    assert 1 == len(rung)
    assert rung[0] < 0.5


def test_alarm_that_repeats(rung: list[float]) -> None:
    """During the load, and after it."""
    signal.setitimer(signal.ITIMER_REAL, 0.2, 0.2)
    load(0.5)
    assert 2 == len(rung)
    nap(0.5)
    assert len(rung) >= 4


def test_no_alarm(rung: list[float]) -> None:
    signal.setitimer(signal.ITIMER_REAL, 0)
    load(0.1)
    assert (0.0, 0.0) == signal.getitimer(signal.ITIMER_REAL)
    assert [] == rung


def test_alarm_that_ends_the_load() -> None:
    """A task's own limit is raised where it waits, which is in the load."""

    def limit(number: int, frame: object) -> None:
        raise TimeoutError("the task's own limit")

    before = signal.signal(signal.SIGALRM, limit)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        with pytest.raises(TimeoutError, match="the task's own limit"):
            load(5.0)
        assert interrupted.is_set()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        child._retired = False


def test_each_child_draws_other_numbers() -> None:
    """Of NumPy, though all are forks of one process that has it."""
    np.random.seed(1)
    drawn = []
    for _ in range(3):
        receiver, sender = os.pipe()
        if os.fork() == 0:
            child.prepare(Plan())
            os.write(sender, repr(float(np.random.random())).encode())
            os._exit(0)
        os.wait()
        drawn.append(os.read(receiver, 100))
    assert 3 == len(set(drawn))


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ("", "<model 'faces' from 'faces.keras', not loaded>"),
        ("Celery('other', set_as_current=False)", "<model 'faces' from 'faces.keras', not loaded>"),
        (
            "other = Celery('other', set_as_current=False); other.conf.tf_model_path = {'b': 'b.keras'}",
            "UnknownModelError",
        ),
    ],
)
def test_a_thread_of_a_web_process(more: str, expected: str) -> None:
    """Has no current app; it gets the models of the only one that has any, and the same as all others."""
    program = (
        "import threading; from celery import Celery; from celery_tfpool import get_model\n"
        "app = Celery('proj'); app.conf.tf_model_path = {'faces': 'faces.keras'}\n"
        f"{more}\n"
        "def show():\n"
        "    try: print(get_model('faces'), get_model('faces')._find() is get_model('faces')._find())\n"
        "    except Exception as exc: print(type(exc).__name__)\n"
        "show(); thread = threading.Thread(target=show); thread.start(); thread.join(); show()"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent.parent), os.environ["PYTHONPATH"]])}
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, env=env)
    first, of_thread, last = done.stdout.splitlines()
    assert first == last == "<model 'faces' from 'faces.keras', not loaded> True"
    assert of_thread.startswith(expected)


def test_fork_of_a_child_in_which_tensorflow_runs(start_worker: StartWorker, digits: str) -> None:
    """Is told so, at once, and the child goes on."""
    worker = start_worker("-c", "1", conf={"tf_model_path": digits})
    assert [[16.0]] == worker.call("predict")
    said = worker.call("predict_in_a_fork", timeout=PATIENCE / 2)
    assert said.startswith("ModelLoadError: could not load model 'default'")
    assert "is a fork of" in said
    assert "predict would wait for ever" in said
    assert [[16.0]] == worker.call("predict")


def test_fork_of_a_child_asks_predictors(start_worker: StartWorker, digits: str, engine: str) -> None:
    """By connections of its own, before and after its parent has asked."""
    worker = start_worker("-c", "1", broker=engine, conf={"tf_model_path": digits, "tf_predictors": 1})
    for _ in range(2):
        assert "[[16.0]]" == worker.call("predict_in_a_fork")
        assert [[16.0]] == worker.call("predict")


def test_path_is_whole_before_a_task_changes_the_folder(start_worker: StartWorker, digits: str) -> None:
    """A relative path is that of the worker's start, for later loads, too."""
    conf = {"tf_model_path": os.path.relpath(digits, APPS), "tf_share_weights": False}
    worker = start_worker("-c", "1", conf=conf)
    assert "/" == worker.call("change_folder", "/")
    assert [[16.0]] == worker.call("predict")
