"""All that prefork does still works, on both engines."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest
from celery import chain, chord, group
from celery.exceptions import SoftTimeLimitExceeded, TaskRevokedError, TimeLimitExceeded, WorkerLostError
from conftest import PATIENCE, Program, StartWorker, Worker, marked, wait_until


@pytest.fixture(scope="module", params=["redis", "filesystem", "amqp"])
def worker(request: pytest.FixtureRequest, start_shared_worker: StartWorker) -> Worker:
    """One worker with two children for all tests of this module that leave it as it was."""
    broker = request.getfixturevalue("rabbitmq_url") if request.param == "amqp" else request.param
    return start_shared_worker("-c", "2", broker=broker, conf={"worker_pool_restarts": True})


def running(worker: Worker) -> dict[str, int]:
    """The child of each task that runs, by the task's id."""
    tasks = worker.client.control.inspect([worker.name], timeout=10, limit=1).active() or {}
    return {task["id"]: task["worker_pid"] for task in tasks.get(worker.name, []) if task["worker_pid"]}


def test_soft_time_limit(worker: Worker) -> None:
    """A task can catch its soft time limit, and otherwise fails with it."""
    assert "soft limit" == worker.call("nap_softly", 60, soft_time_limit=1)
    with pytest.raises(SoftTimeLimitExceeded):
        worker.call("nap", 60, soft_time_limit=1)


def test_hard_time_limit_and_replacement(worker: Worker) -> None:
    """The child of a task over its hard limit is killed and replaced, and the next task is served."""
    before = worker.children()
    with pytest.raises(TimeLimitExceeded):
        worker.call("nap", 60, time_limit=1)
    wait_until(lambda: len(worker.children()) == 2 and worker.children() != before, "a replacement")
    assert 3 == worker.call("add", 1, 2)


def test_revoke_with_terminate(worker: Worker) -> None:
    result = worker.send("nap", 60)
    wait_until(lambda: result.id in running(worker), "the task runs")
    worker.client.control.revoke(result.id, terminate=True, destination=[worker.name])
    with pytest.raises(TaskRevokedError):
        result.get(timeout=PATIENCE)
    assert 3 == worker.call("add", 1, 2)


def test_retries_and_eta(worker: Worker) -> None:
    assert 2 == worker.call("succeed_at_last")
    started = time.monotonic()
    assert 3 == worker.call("add", 1, 2, countdown=1)
    assert time.monotonic() - started >= 0.9


def test_canvas(worker: Worker) -> None:
    """Chains, groups and chords."""
    sign = worker.client.signature
    in_turn = worker.keep(chain(sign("proj.add", (1, 2)), sign("proj.add", (3,))).apply_async())
    assert 6 == in_turn.get(timeout=PATIENCE)
    adds = [sign("proj.add", (n, n)) for n in range(5)]
    together = worker.keep(group(adds, app=worker.client).apply_async())
    assert [0, 2, 4, 6, 8] == together.get(timeout=PATIENCE)
    summed = worker.keep(chord(adds, sign("proj.total"), app=worker.client).apply_async())
    assert 20 == summed.get(timeout=PATIENCE)


def test_acks_late_and_reject_on_worker_lost(worker: Worker, tmp_path: Path) -> None:
    """The task of a child that was killed runs again, in another child."""
    assert worker.call("die_once", str(tmp_path / "died")) in worker.children()
    assert (tmp_path / "died").exists()


def test_lost_worker(worker: Worker) -> None:
    """Without acks_late the task of a child that was killed fails with WorkerLostError."""
    result = worker.send("nap", 60)
    pid = wait_until(lambda: running(worker).get(result.id), "the task runs")
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(WorkerLostError):
        result.get(timeout=PATIENCE)


def test_grow_and_shrink(worker: Worker) -> None:
    worker.control("pool_grow", n=1)
    wait_until(lambda: len(worker.children()) == 3, "a third child")
    wait_until(lambda: [c["slot"] for c in worker.stats()["tfpool"]["children"] if c["ready"]] == [0, 1, 2], "slots")
    worker.control("pool_shrink", n=1)
    wait_until(lambda: len(worker.children()) == 2, "two children again")
    assert 3 == worker.call("add", 1, 2)
    assert "worker stops" not in worker.log


def test_pool_restart(worker: Worker) -> None:
    """As in stock prefork a child that waits for a task ends after its next one."""
    before = set(worker.children())
    worker.control("pool_restart")
    wait_until(lambda: worker.call("add", 1, 2) == 3 and not set(worker.children()) & before, "new children")
    wait_until(lambda: len(worker.children()) == 2, "two of them")


def test_max_tasks_per_child(engine: str, start_worker: StartWorker) -> None:
    """Each task has a new child, and all children have the same slot."""
    worker = start_worker("-c", "1", "--max-tasks-per-child=1", broker=engine)
    pids = [worker.call("pid") for _ in range(4)]
    assert 4 == len(set(pids))
    assert {0} == {worker.call("slot") for _ in range(2)}
    assert 0 == worker.stop()


def test_max_memory_per_child_counts_private_memory(engine: str, start_worker: StartWorker, tmp_path: Path) -> None:
    """A mapped file and memory given back do not recycle a child; memory kept does."""
    big = tmp_path / "weights"
    with big.open("wb") as file:
        file.truncate(300 << 20)
    worker = start_worker("-c", "1", "--max-memory-per-child=200000", broker=engine)
    first = worker.call("pid")
    worker.call("eat", 300)
    assert first == worker.call("map_file", str(big), 300)
    assert first == worker.call("pid")
    assert first == worker.call("keep", 250)
    assert first != worker.call("pid")


def test_autoscale(engine: str, start_worker: StartWorker) -> None:
    worker = start_worker("--autoscale=3,1", broker=engine, conf={"worker_prefetch_multiplier": 1})
    naps = [worker.send("nap", 3) for _ in range(6)]
    wait_until(lambda: len(worker.children()) == 3, "three children")
    assert 3 == len({nap.get(timeout=PATIENCE) for nap in naps})


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGTERM, "done"), (signal.SIGQUIT, "lost")])
def test_warm_and_cold_shutdown(engine: str, start_worker: StartWorker, number: int, expected: str) -> None:
    """SIGTERM lets a task finish, SIGQUIT does not; nothing is left of the worker either way."""
    worker = start_worker("-c", "2", broker=engine)
    result = worker.send("nap", 3)
    wait_until(lambda: result.id in running(worker), "the task runs")
    code = worker.stop(number)
    if expected == "done":
        assert result.get(timeout=5) > 0
        assert 0 == code
    else:
        assert not result.successful()


def test_soft_shutdown(start_worker: StartWorker) -> None:
    """Celery's soft shutdown waits for a running task before the cold one."""
    worker = start_worker("-c", "1", conf={"worker_soft_shutdown_timeout": 20.0})
    result = worker.send("nap", 3)
    wait_until(lambda: result.id in running(worker), "the task runs")
    worker.stop(signal.SIGQUIT)
    assert result.get(timeout=5) > 0


def test_killed_worker_leaves_nothing(engine: str, start_worker: StartWorker) -> None:
    """After kill -9 of worker main no child survives, idle or busy."""
    worker = start_worker("-c", "2", broker=engine)
    result = worker.send("nap", 60)
    wait_until(lambda: result.id in running(worker), "the task runs")
    worker.process.kill()
    wait_until(lambda: not marked(worker.mark), "all children have ended")
    worker.wait()


def test_idle_children_killed(worker: Worker) -> None:
    """Kill -9 of every idle child, again and again: each is replaced, and tasks are served."""
    for _ in range(3):
        before = worker.children()
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda old=set(before): len(worker.children()) == 2 and not old & set(worker.children()), "new ones")
        assert [3] * 4 == [worker.call("add", 1, 2) for _ in range(4)]


def test_dead_child_is_replaced_at_once(start_worker: StartWorker) -> None:
    """On an event loop, and not when a timer of 5 s comes round."""
    worker = start_worker("-c", "1")
    for _ in range(5):
        before = worker.call("pid")
        os.kill(before, signal.SIGKILL)
        wait_until(lambda old=before: worker.children() not in ([], [old]), "a replacement", timeout=2)


LAST_WORDS = """
import os, signal
from conftest import wait_until
from celery_tfpool.pool.plan import Plan
from celery_tfpool.pool.blocking_engine import TFBlockingPool
from celery_tfpool.pool.child_main import CHILD_STATUS
from celery_tfpool.pool.child_rules import Status

pool = TFBlockingPool(processes=1, plan=Plan())
known = lambda: [(state.slot, state.ready) for state in pool.children.values()]
wait_until(lambda: known() == [(0, True)], "the child is ready")
(process,) = pool._pool
os.kill(process.pid, signal.SIGKILL)
wait_until(lambda: process.pid not in pool.children, "its end is noted")
pool._outqueue.put((CHILD_STATUS, (process.pid, Status({}, ready=True))))
wait_until(lambda: known() and known()[0] == (0, True), "the next one is ready")
print(known(), process.pid in pool.children)
pool.close()
pool.join()
"""


def test_last_words_of_a_child_that_is_gone() -> None:
    """They are no child, and not the beginning of one that gets the same pid later."""
    program = Program([sys.executable, "-c", LAST_WORDS], env={**os.environ}, cwd=Path(__file__).parent)
    assert 0 == program.wait(), program.log
    assert "[(0, True)] False" in program.log


@pytest.mark.parametrize(("options", "naps"), [(["-c", "1", "--max-tasks-per-child=1"], 1), (["--autoscale=3,1"], 3)])
def test_warm_shutdown_of_later_children(engine: str, start_worker: StartWorker, options: list[str], naps: int) -> None:
    """Tasks finish in children that were started later as well, replacements and autoscaled ones."""
    worker = start_worker(*options, broker=engine, conf={"worker_prefetch_multiplier": 1})
    worker.call("pid")
    results = [worker.send("nap", 10) for _ in range(naps)]
    wait_until(lambda: {result.id for result in results} <= running(worker).keys(), "all of them run")
    assert 0 == worker.stop()
    assert ["SUCCESS"] * naps == [result.state for result in results], worker.log
    assert naps == len({result.result for result in results})
    assert "signal 9" not in worker.log
