"""Predictor processes of a real worker: what tasks see of them, when all is well and when one dies."""

from __future__ import annotations

import os
import re
import signal
import socket
import stat
import tempfile
import time
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import psutil
import pytest
from celery.exceptions import SoftTimeLimitExceeded
from conftest import PATIENCE, StartWorker, Worker, make_model, marked, wait_until

from celery_tfpool.model_path import ModelPath
from celery_tfpool.pool.plan import assign

#: Doubles its input, slowly or with a crash if asked.
TRAPPED: dict[str, Any] = {"tf_model_path": {"default": {"path": "trapped:model", "batch": True}}, "tf_predictors": 1}
#: Keeps a predictor busy until the gate is opened.
GATE = 17


def predictors(worker: Worker) -> list[dict[str, Any]]:
    return list(worker.stats()["tfpool"]["predictors"])


def processes(worker: Worker) -> list[int]:
    return [one["pid"] for one in predictors(worker)]


def statistics(worker: Worker) -> dict[str, Any]:
    (one,) = predictors(worker)
    return dict(one["stats"])


@pytest.fixture
def place() -> Iterator[str]:
    """A folder for the sockets of a test's workers; pytest's own have names that are too long for sockets."""
    with tempfile.TemporaryDirectory(prefix="run-") as folder:
        yield folder


def folder_of_sockets(place: str) -> str:
    (folder,) = (name for name in os.listdir(place) if name.startswith("celery_tfpool-"))
    return folder


# -- when all is well ---------------------------------------------------------


def test_children_need_no_tensorflow(place: str, start_worker: StartWorker, digits: str, engine: str) -> None:
    """They only ask; what only Keras has is loaded where it is asked for, all the same."""
    conf = {"tf_model_path": digits, "tf_predictors": 1}
    worker = start_worker("-c", "2", broker=engine, conf=conf, env={"TMPDIR": place})
    assert ".> predictors:  1, batches of up to 32 rows" in worker.log
    assert [[16.0]] * 3 == worker.call("predict", 3)
    assert not worker.call("has_runtime_after_predicting")
    assert 1 == worker.call("count_layers")
    (one,) = predictors(worker)
    assert one["models"]["default"]["packed"]
    assert one["stats"]["memory"]["pss"] > 0
    assert 0 == one["restarts"]
    folder = folder_of_sockets(place)
    assert stat.S_IMODE(os.stat(os.path.join(place, folder)).st_mode) == 0o700
    assert 0 == worker.stop()
    assert "requests, 0 of them failed" in worker.log
    assert [] == os.listdir(place)


def has_tensorflow(pid: int) -> bool:
    return "libtensorflow" in Path(f"/proc/{pid}/maps").read_text()


def test_only_predictors_import_tensorflow(start_worker: StartWorker, digits: str, tmp_path: Path, engine: str) -> None:
    """Neither worker main nor a child, packing included, and numbers are cast as Keras does all the same."""
    conf = {"tf_model_path": digits, "tf_predictors": 1, "tf_cache_dir": str(tmp_path / "cache")}
    worker = start_worker("-c", "2", broker=engine, conf=conf)
    assert "model 'default': packed in" in worker.log
    assert [[16.0]] == worker.call("predict_row", [1] * 16)[1]  # whole numbers
    (predictor,) = processes(worker)
    assert has_tensorflow(predictor)
    assert [False] * 3 == [has_tensorflow(pid) for pid in (worker.process.pid, *worker.pool_children())]


def test_models_that_children_load_are_imported_for(start_worker: StartWorker) -> None:
    """A model that only Keras itself predicts with is loaded in children: worker main imports TensorFlow for them."""
    worker = start_worker("-c", "1", conf={"tf_model_path": "proj:own_predict", "tf_predictors": 1})
    assert has_tensorflow(worker.process.pid)
    assert [[16.0]] == worker.call("predict_row", [1.0] * 16)[1]


def test_rows_of_many_tasks_share_a_batch(start_worker: StartWorker, tmp_path: Path) -> None:
    """While the predictor is busy requests gather; the next batch takes them all."""
    worker = start_worker("-c", "8", conf=TRAPPED, env={"GATE": str(tmp_path)})
    first = busy(worker, tmp_path)
    rest = [worker.send("double", value) for value in range(20, 27)]
    wait_until(lambda: statistics(worker)["pending_request_count"] == 7, "all of them waiting")
    (tmp_path / "open").touch()
    assert [2.0 * GATE, *(2.0 * value for value in range(20, 27))] == [r.get(timeout=PATIENCE) for r in (first, *rest)]
    stats = statistics(worker)
    assert (8, 0, 8) == (stats["request_success"], stats["request_failure"], stats["inference_count"])
    assert (2, 8) == (stats["execution_count"], stats["queue_count"])
    assert stats["compute_duration"] > 0
    assert stats["queue_duration"] > 0


def busy(worker: Worker, gate: Path) -> Any:
    """A task whose request the predictor computes until the file "open" is in its folder ``gate``."""
    result = worker.send("double", GATE)
    wait_until((gate / "computing").exists, "it is computed")
    return result


def test_larger_than_a_batch(start_worker: StartWorker) -> None:
    """A request of many rows is split, and comes back whole."""
    worker = start_worker("-c", "1", conf=TRAPPED | {"tf_max_batch_size": 8})
    values = [value + 0.5 for value in range(30)]
    assert [2 * value for value in values] == worker.call("double_rows", values)
    assert 4 == statistics(worker)["execution_count"]


def test_batches_in_several_threads(start_worker: StartWorker, tmp_path: Path) -> None:
    """Where a call in each of two threads does more than one call in both, two full batches are computed at a time."""
    model = {"path": "trapped:slow_as_without_python", "batch": True, "max_batch_size": 2}
    conf = {"tf_model_path": {"default": model}, "tf_predictors": 1, "tf_intra_op_parallelism": 2}
    worker = start_worker("-c", "4", conf=conf, env={"SLOW_CALLS": str(tmp_path / "calls")})
    assert "batches of up to 2 rows, 2 at a time" in worker.log
    before = len((tmp_path / "calls").read_text().splitlines())
    several = [[value + 0.25, value + 0.5] for value in range(12)]
    results = [worker.send("double_rows", values) for values in several]
    assert [[2 * one, 2 * other] for one, other in several] == [result.get(timeout=PATIENCE) for result in results]
    stats = statistics(worker)
    assert (12, 12, 24) == (stats["request_success"], stats["execution_count"], stats["inference_count"])
    calls = [tuple(map(float, line.split())) for line in (tmp_path / "calls").read_text().splitlines()[before:]]
    assert [2.0] * 12 == [rows for rows, _, _ in calls]
    events = sorted([(start, 1) for _, start, _ in calls] + [(stop, -1) for _, _, stop in calls])
    assert 2 == max(accumulate(change for _, change in events))


def test_one_bad_request_fails_alone(start_worker: StartWorker, tmp_path: Path) -> None:
    """A batch that fails is computed again one by one, and only the guilty task gets the error."""
    worker = start_worker("-c", "8", conf=TRAPPED, env={"GATE": str(tmp_path)})
    first = busy(worker, tmp_path)
    bad = worker.send("double", 13)
    good = [worker.send("double", value) for value in range(20, 25)]
    wait_until(lambda: statistics(worker)["pending_request_count"] == 6, "all of them waiting")
    (tmp_path / "open").touch()
    assert 2.0 * GATE == first.get(timeout=PATIENCE)
    with pytest.raises(Exception, match=r"model 'default' could not predict: .*unlucky"):
        bad.get(timeout=PATIENCE)
    assert [2.0 * value for value in range(20, 25)] == [result.get(timeout=PATIENCE) for result in good]
    assert 1 == statistics(worker)["request_failure"]


def test_wrong_input_never_joins_a_batch(start_worker: StartWorker, digits: str) -> None:
    worker = start_worker("-c", "1", conf={"tf_model_path": digits, "tf_predictors": 1})
    with pytest.raises(Exception, match=r"model 'default' expects .*float32 \(rows, 16\); got .*shape \(1, 3\)"):
        worker.call("predict_row", [1.0] * 3)
    assert 0 == statistics(worker)["execution_count"]


def test_two_predictors_share_the_load(start_worker: StartWorker) -> None:
    """Whoever is free is asked."""
    worker = start_worker("-c", "2", conf=TRAPPED | {"tf_predictors": 2})
    both = [worker.send("double", 102) for _ in range(2)]
    assert [204.0, 204.0] == [result.get(timeout=PATIENCE) for result in both]
    assert [1, 1] == [one["stats"]["request_success"] for one in predictors(worker)]


def test_models_of_their_own_number(start_worker: StartWorker, digits: str) -> None:
    """One model in all predictors, one in a single one and unbatched, one in the children."""
    paths = {
        "all": digits,
        "one": {"path": digits, "predictors": 1, "max_batch_size": 1},
        "none": {"path": digits, "predictors": 0},
    }
    worker = start_worker("-c", "1", conf={"tf_model_path": paths, "tf_predictors": 2})
    for name in paths:
        assert [[16.0]] == worker.call("predict", 1, name)
    assert [["all", "one"], ["all"]] == [sorted(one["models"]) for one in predictors(worker)]
    assert "max_batch_size is 1" == predictors(worker)[0]["models"]["one"]["alone"]
    assert worker.call("has_runtime_after_predicting", "none")


def test_assign() -> None:
    """Those with a number of their own go where there are the fewest."""
    a, b, c = ModelPath("a", "a"), ModelPath("b", "b", predictors=1), ModelPath("c", "c", predictors=5)
    assert [(b, a, c), (a, c)] == assign([b, a, c], 2)
    assert [(b,), (ModelPath("d", "d", predictors=1),)] == assign([b, ModelPath("d", "d", predictors=1)], 2)


@pytest.mark.parametrize("start", [["--max-tasks-per-child=1"], ["--autoscale=3,1"]])
def test_replaced_children_ask_too(start_worker: StartWorker, digits: str, engine: str, start: list[str]) -> None:
    count = [] if "autoscale" in start[0] else ["-c", "2"]
    worker = start_worker(*count, *start, broker=engine, conf={"tf_model_path": digits, "tf_predictors": 1})
    several = [worker.send("predict_row", [1.0] * 16) for _ in range(8)]
    assert {16.0} == {result.get(timeout=PATIENCE)[1][0][0] for result in several}


# -- limits ---------------------------------------------------------------------


def test_response_timeout(start_worker: StartWorker, tmp_path: Path) -> None:
    """The wait ends in time; what nobody waits for any more is not computed."""
    worker = start_worker("-c", "3", conf=TRAPPED | {"tf_response_timeout": 2}, env={"GATE": str(tmp_path)})
    slow = busy(worker, tmp_path)
    late = worker.send("double", 20)
    for result in (slow, late):
        with pytest.raises(Exception, match=r"no answer from a predictor for model 'default' within 2 s"):
            result.get(timeout=PATIENCE)
    (tmp_path / "open").touch()
    assert 42.0 == worker.call("double", 21)
    assert 2 == statistics(worker)["execution_count"]


def test_soft_time_limit_ends_the_wait(start_worker: StartWorker, engine: str) -> None:
    """At once, not when the predictor is done."""
    worker = start_worker("-c", "1", broker=engine, conf=TRAPPED)
    started = time.monotonic()
    with pytest.raises(SoftTimeLimitExceeded):
        worker.call("double", 130, soft_time_limit=1)
    assert time.monotonic() - started < 20


def test_overloaded(start_worker: StartWorker, tmp_path: Path) -> None:
    """Beyond tf_max_enqueued_batches a request is refused, and says what to do."""
    conf = TRAPPED | {"tf_max_batch_size": 1, "tf_max_enqueued_batches": 2}
    worker = start_worker("-c", "4", conf=conf, env={"GATE": str(tmp_path)})
    results = [busy(worker, tmp_path), *(worker.send("double", value) for value in (20, 21))]
    wait_until(lambda: statistics(worker)["pending_request_count"] == 2, "two waiting")
    for value in (22, 23):
        with pytest.raises(Exception, match="as many as tf_max_enqueued_batches = 2 allows"):
            worker.call("double", value)
    (tmp_path / "open").touch()
    assert [2.0 * GATE, 40.0, 42.0] == [result.get(timeout=PATIENCE) for result in results]


# -- predictors that die ----------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "cause"), [(3, "ended with exit code 3"), (9, "was ended by SIGKILL"), (11, "was ended by SIGSEGV")]
)
def test_deadly_request(start_worker: StartWorker, value: int, cause: str) -> None:
    """Whoever asked learns how two predictors died of it; the next caller is served."""
    worker = start_worker("-c", "2", conf=TRAPPED)
    told = rf"no predictor could answer for model 'default': predictor 0 .*{cause} while it computed this request"
    with pytest.raises(Exception, match=told):
        worker.call("double", value)
    assert 40.0 == worker.call("double", 20)
    (one,) = predictors(worker)
    assert 2 == one["restarts"]
    assert cause in one["last_end"]


def test_innocent_requests_survive(start_worker: StartWorker, engine: str) -> None:
    """Who waits when the predictor is killed is served by its replacement, and knows nothing of it."""
    worker = start_worker("-c", "4", broker=engine, conf=TRAPPED)
    (pid,) = processes(worker)
    several = [worker.send("double", value) for value in (106, 20, 21, 22)]
    wait_until(lambda: statistics(worker)["pending_request_count"] or statistics(worker)["execution_count"], "requests")
    os.kill(pid, signal.SIGKILL)
    assert [212.0, 40.0, 42.0, 44.0] == [result.get(timeout=PATIENCE) for result in several]
    assert "was ended by SIGKILL" in worker.log
    assert processes(worker) != [pid]


def test_dead_child_takes_its_request_along(start_worker: StartWorker, tmp_path: Path) -> None:
    worker = start_worker("-c", "2", conf=TRAPPED, env={"GATE": str(tmp_path)})
    computed = busy(worker, tmp_path)
    lost = worker.send("double", 20)
    wait_until(lambda: statistics(worker)["pending_request_count"] == 1, "a request that waits")
    for child in worker.stats()["pool"]["processes"]:
        if any(psutil.Process(child).net_connections(kind="unix")):
            os.kill(child, signal.SIGKILL)
    wait_until(lambda: statistics(worker)["pending_request_count"] == 0, "an empty queue")
    for result in (computed, lost):
        with pytest.raises(Exception, match="Worker exited prematurely"):
            result.get(timeout=PATIENCE)
    (tmp_path / "open").touch()
    assert 42.0 == worker.call("double", 21)
    assert 2 == statistics(worker)["inference_count"]


def test_cannot_start(start_worker: StartWorker, engine: str) -> None:
    """A model that no predictor can load stops the worker, with the reason, before any task is taken."""
    conf = {"tf_model_path": "proj:broken_model", "tf_predictors": 2}
    worker = start_worker("-c", "1", broker=engine, conf=conf, wait=False)
    assert 1 == worker.wait()
    assert "no predictor could be started: predictor" in worker.log
    assert "RuntimeError: the weights are on the moon" in worker.log
    assert "Traceback" not in worker.log


def test_too_slow_to_start(start_worker: StartWorker) -> None:
    conf = {"tf_model_path": "proj:hanging_model", "tf_predictors": 1, "tf_startup_timeout": 12}
    worker = start_worker("-c", "1", conf=conf, wait=False)
    assert 1 == worker.wait()
    assert re.search(r"not ready after \d+ s; tf_startup_timeout is 12 s", worker.log)
    assert "in hanging_model" in worker.log


def test_cannot_come_back(start_worker: StartWorker, tmp_path: Path) -> None:
    """When a replacement cannot start either, those who wait are told, and the worker stops with exit code 1."""
    path = make_model(str(tmp_path / "sum.keras"))
    conf = {"tf_model_path": path, "tf_predictors": 1, "tf_share_weights": False}
    worker = start_worker("-c", "1", conf=conf)
    assert [[16.0]] == worker.call("predict")
    os.remove(path)
    (pid,) = processes(worker)
    os.kill(pid, signal.SIGKILL)
    waiting = worker.send("predict")
    told = "no predictor could answer for model 'default': predictor 0 ended 3 times in a row before it was ready"
    with pytest.raises(Exception, match=told):
        waiting.get(timeout=PATIENCE)
    assert 1 == worker.wait()
    assert "worker stops: predictor 0 ended 3 times in a row before it was ready" in worker.log


def test_stuck_predictor(start_worker: StartWorker) -> None:
    """A batch that takes longer than anybody waits ends its predictor, which shows where it was; the next is served."""
    worker = start_worker("-c", "1", conf=TRAPPED | {"tf_response_timeout": 1})
    with pytest.raises(Exception, match="no answer from a predictor"):
        worker.call("double", 199)
    worker.wait_for("is not done after 6 s; ending, see stderr for where it was")
    worker.wait_for("was ended by SIGABRT")
    worker.wait_for(r"predictor 0 \(pid \d+\): ready", times=2)
    assert 40.0 == worker.call("double", 20)
    assert "in trap" in worker.log


def test_garbage_on_the_socket(place: str, start_worker: StartWorker, digits: str) -> None:
    """Is refused with a line in the log, and disturbs nobody."""
    conf = {"tf_model_path": digits, "tf_predictors": 1}
    worker = start_worker("-c", "1", conf=conf, env={"TMPDIR": place})
    folder = folder_of_sockets(place)
    for data in (b"GET / HTTP/1.1\r\n\r\n", b"TFP1" + b"\xff" * 12, b"TFP1\x02\0\0\0" + bytes(8) + b"{}", b"TF"):
        with socket.socket(socket.AF_UNIX) as stranger:
            stranger.connect(os.path.join(place, folder, "predictor-0"))
            stranger.sendall(data)
            if len(data) > 2:
                stranger.settimeout(PATIENCE)
                while stranger.recv(1000):
                    pass
    worker.wait_for("closing a connection", times=3)
    assert [[16.0]] == worker.call("predict")


def test_killed_worker_main(place: str, start_worker: StartWorker, digits: str, engine: str) -> None:
    """After kill -9 of worker main nothing survives it, and nothing is left on disk."""
    conf = {"tf_model_path": digits, "tf_predictors": 2}
    worker = start_worker("-c", "2", broker=engine, conf=conf, env={"TMPDIR": place})
    assert [[16.0]] == worker.call("predict")
    assert [] != os.listdir(place)
    worker.process.kill()
    wait_until(lambda: not marked(worker.mark), "the end of all its processes", timeout=10)
    assert [] == os.listdir(place)


def test_warm_shutdown(start_worker: StartWorker, engine: str, tmp_path: Path) -> None:
    """A task that runs when the worker is told to stop still has its predictor, also when all get the signal."""
    worker = start_worker("-c", "1", broker=engine, conf=TRAPPED, env={"GATE": str(tmp_path)})
    running = busy(worker, tmp_path)
    for pid in [*processes(worker), worker.process.pid]:
        os.kill(pid, signal.SIGTERM)
    wait_until(lambda: "Warm shutdown" in worker.log, "the end to begin")
    (tmp_path / "open").touch()
    assert 0 == worker.wait()
    assert 2.0 * GATE == running.get(timeout=PATIENCE)
