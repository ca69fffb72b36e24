"""Children and predictors killed at random under load: every task ends, with the right number, without any retry.

``TFPOOL_CHAOS_TASKS=5000`` (``make chaos``) runs it for minutes.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import subprocess
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import port_for
import psutil
import redis
from celery import Celery
from conftest import PATIENCE, StartWorker, Worker, wait_until

TASKS = int(os.environ.get("TFPOOL_CHAOS_TASKS", "600"))
#: Seconds from one kill to the next; a predictor that was never ready three times in a row would stop the worker.
BETWEEN = (0.5, 2.0)


def killer(worker: Worker, killed: Counter[str], stop: threading.Event) -> None:
    """Kill a child or a ready predictor from time to time."""
    chance = random.Random(7)
    while not stop.wait(chance.uniform(*BETWEEN)):
        ready = {int(pid) for pid in re.findall(r"predictor \d+ \(pid (\d+)\): ready", worker.log)}
        predictors = {pid for pid in ready if psutil.pid_exists(pid)}
        kinds = {"predictor": sorted(predictors), "child": worker.pool_children()}
        kind = chance.choice(sorted(kinds))
        if kinds[kind]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(chance.choice(kinds[kind]), signal.SIGKILL)
                killed[kind] += 1


def test_chaos(start_worker: StartWorker) -> None:
    model = {"path": "trapped:model", "batch": True}
    conf = {"tf_model_path": {"default": model}, "tf_predictors": 2, "worker_prefetch_multiplier": 1}
    worker = start_worker("-c", "4", conf=conf)
    killed: Counter[str] = Counter()
    stop = threading.Event()
    thread = threading.Thread(target=killer, args=(worker, killed, stop))
    thread.start()
    try:
        results = [worker.send("double_whatever_dies", number / 4 + 1000) for number in range(TASKS)]
        answers = [result.get(timeout=PATIENCE + TASKS / 20) for result in results]
    finally:
        stop.set()
        thread.join()
    assert [number / 2 + 2000 for number in range(TASKS)] == answers
    assert killed["child"] > 0
    assert killed["predictor"] > 0
    assert 0 == worker.stop()


class Redis:
    """A server of this test's own, that keeps what it has on disk."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder, self.port = folder, port_for.select_random()
        self.start()

    def start(self) -> None:
        command = ["redis-server", "--port", str(self.port), "--dir", str(self._folder), "--appendonly", "yes"]
        self._process = subprocess.Popen([*command, "--appendfsync", "always"], stdout=subprocess.DEVNULL)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(PATIENCE)


def test_redis_restarted(start_worker: StartWorker, tmp_path: Path) -> None:
    """Nothing is lost, and predictors and children are still the same.

    The result backend is restarted under load.  The broker is when no message is unacknowledged: with one, closing the
    lost connection may end a worker with any pool (kombu #582; docs/limits.md).
    """
    broker, results = Redis(tmp_path / "broker"), Redis(tmp_path / "results")
    try:
        conf = {
            "broker_url": f"redis://127.0.0.1:{broker.port}/0",
            "result_backend": f"redis://127.0.0.1:{results.port}/0",
            "result_backend_always_retry": True,  # or a result that cannot be stored makes a task fail
            "tf_model_path": {"default": {"path": "trapped:model", "batch": True}},
            "tf_predictors": 1,
        }
        worker = start_worker("-c", "2", conf=conf)
        before = worker.stats()["tfpool"]

        under_load = [worker.send("double_whatever_dies", 1000 + number) for number in range(200)]
        for done in (20, 60):
            wait_until(lambda done=done: sum(map(is_done, under_load)) >= done, "some answers")
            results.stop()
            results.start()
        assert [2000.0 + 2 * number for number in range(200)] == answers_of(under_load)

        for start in (2000, 3000):
            wait_until(lambda: not redis.Redis(port=broker.port).exists("unacked"), "acknowledgements")
            broker.stop()
            broker.start()
            more = [worker.send("double_whatever_dies", start + number) for number in range(50)]
            assert [2.0 * (start + number) for number in range(50)] == answers_of(more)

        worker.client = Celery("fresh", set_as_current=False)  # connections of the last are broken
        worker.client.conf.update(broker_url=conf["broker_url"], result_backend=conf["result_backend"])
        after = worker.stats()["tfpool"]
        for kind in ("children", "predictors"):
            assert [one["pid"] for one in before[kind]] == [one["pid"] for one in after[kind]]
        assert 0 == worker.stop()
    finally:
        broker.stop()
        results.stop()


def answers_of(several: list[Any]) -> list[Any]:
    wait_until(lambda: all(map(is_done, several)), "all answers")
    return [result.result for result in several]


def is_done(result: Any) -> bool:
    try:
        return bool(result.state in ("SUCCESS", "FAILURE"))
    except redis.RedisError:  # it is not there yet, or still loading
        return False
