"""Predictors under many askers, without Celery: nobody is harmed by whoever stands beside.

Real predictors, started by a real supervisor, asked by threads and forks of this process.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import company
import numpy as np
import psutil
import pytest
import stand_ins
from conftest import wait_until

from celery_tfpool import (
    InvalidInputError,
    PredictionError,
    PredictionTimeout,
    PredictorOverloaded,
    PredictorUnavailable,
)
from celery_tfpool.model_path import ModelPath
from celery_tfpool.predictors import busyness, server
from celery_tfpool.predictors.client import Client, Limits, Predictors
from celery_tfpool.predictors.codec import encode
from celery_tfpool.predictors.connection import Connection, ask_statistics, socket_path
from celery_tfpool.predictors.framing import Reader, message
from celery_tfpool.predictors.messages import AskPrediction, Outputs
from celery_tfpool.predictors.remote_model import RemoteRunner
from celery_tfpool.predictors.requests import Request
from celery_tfpool.predictors.scheduler import Scheduler
from celery_tfpool.predictors.served_model import ServedModel
from celery_tfpool.predictors.server import Job, started_at
from celery_tfpool.predictors.supervisor import Supervisor
from celery_tfpool.runners.keras_model import KerasRunner
from celery_tfpool.settings import Settings


class Company:
    """Predictors, and whoever asks them."""

    def __init__(self, supervisor: Supervisor, settings: Settings) -> None:
        self.supervisor = supervisor
        self.known = supervisor.client(settings.response_timeout, settings.max_request_bytes)

    def ask(self, name: str, x: Any, batch_size: int | None = None, limits: Callable[[], Limits] = Limits) -> Any:
        """As a process that has asked nothing before."""
        indices, facts = self.known.models[name]
        return RemoteRunner(name, indices, facts, Client(self.known, limits)).predict(x, batch_size)

    def ask_all(self, name: str, several: list[Any], between: float = 0.0) -> list[Any]:
        """The answers, or what was raised, of so many askers at once."""

        def outcome(x: Any) -> Any:
            try:
                return self.ask(name, x)
            except Exception as exc:
                return exc

        with ThreadPoolExecutor(len(several)) as askers:
            futures = []
            for x in several:
                futures.append(askers.submit(outcome, x))
                time.sleep(between)
            return [future.result() for future in futures]

    def statistics(self) -> dict[str, Any]:
        stats = ask_statistics(self.known.folder, 0, 30.0)
        assert stats is not None
        return stats

    @property
    def restarts(self) -> int:
        return sum(one["restarts"] for one in self.supervisor.facts())

    def descriptors(self) -> list[int]:
        """Of this process, which is worker main here, and of the predictors, once nobody asks any more."""
        pids = [os.getpid(), *(one["pid"] for one in self.supervisor.facts())]
        found: list[list[int]] = []
        while len(found) < 4 or any(one != found[-1] for one in found[-4:]):
            gc.collect()
            found.append([psutil.Process(pid).num_fds() for pid in pids])
            time.sleep(0.05)
        return found[-1]


@contextlib.contextmanager
def predictors(
    *models: ModelPath, count: int = 1, threads: int = 1, program: Any = server.main, **options: Any
) -> Iterator[Company]:
    settings = Settings(**{"response_timeout": 60.0, **options})

    def job(index: int, models: tuple[ModelPath, ...], place: str) -> Job:
        return Job(index, models, (), (), settings, threads, 1, place, os.getpid(), started_at(os.getpid()))

    supervisor = Supervisor(
        [models] * count,
        job=job,
        give_up=lambda reason: None,
        startup_timeout=120.0,
        program=program,
    )
    supervisor.start(lambda: None)
    try:
        yield Company(supervisor, settings)
    finally:
        supervisor.stop()


def of(function: str, **options: Any) -> ModelPath:
    return ModelPath(function, f"company:{function}", **options)


def row(value: float, columns: int = 1) -> Any:
    return np.full((1, columns), value, "float32")


# -- never differ ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def several() -> Iterator[Company]:
    """One predictor with two threads and whatever models, which all are used with care."""
    models = [of(name) for name in ("convolution", "centred", "raises", "raises_own", "counting", "double")]
    with predictors(
        *models, of("widths", batch=True, max_batch_size=8), threads=2, max_enqueued_batches=1000
    ) as company:
        yield company


def test_rows_in_their_order(several: Company) -> None:
    """Of a request that is larger than a batch, whose parts are computed side by side and end in any order."""
    x = np.arange(1, 101, dtype="float32").reshape(100, 1, 1, 1) * np.ones((1, 25, 25, 1), "float32")
    expected = np.concatenate([several.ask("convolution", one[None]) for one in x])
    for answer in several.ask_all("convolution", [x] * 20):
        np.testing.assert_allclose(answer, expected, rtol=1e-4)


def test_rows_that_depend_on_each_other(several: Company) -> None:
    """A subclassed model, whose graph does not tell: no row of another request has a say."""
    answers = several.ask_all("centred", [row(value, 2) for value in (1.0, 5.0, 9.0, 100.0) * 25])
    assert [[[0.0, 0.0]]] * 100 == [answer.tolist() for answer in answers]


def test_state(several: Company) -> None:
    """Of rows of one request, too, each call counts, and none is made to warm up."""
    assert [[1.0], [1.0], [2.0]] == several.ask("counting", np.zeros((3, 1), "float32"), 2).tolist()
    assert [[3.0]] == several.ask("counting", np.zeros((1, 1), "float32"), 2).tolist()


def test_answers_may_be_written_to(several: Company) -> None:
    answer = several.ask("double", np.ones((3, 1), "float32"))
    answer += 1
    assert [[3.0], [3.0], [3.0]] == answer.tolist()


# -- errors -----------------------------------------------------------------------------


@pytest.mark.parametrize("columns", range(len(company.ERRORS) + 1))
def test_whatever_is_raised_while_it_is_traced(several: Company, columns: int) -> None:
    """Is the answer, in its own words and at once; the connection stays, and so do the descriptors."""
    indices, facts = several.known.models["raises"]
    runner = RemoteRunner("raises", indices, facts, Client(several.known))
    assert [[2.0] * 20] == runner.predict(row(1.0, 20), None).tolist()
    before = several.descriptors()
    # Keras and TensorFlow say so that an input does not fit.
    is_misfit = columns == len(company.ERRORS) or company.ERRORS[columns] is ValueError
    for _ in range(3):
        started = time.monotonic()
        with pytest.raises(
            InvalidInputError if is_misfit else PredictionError, match=r"of the errors|Matrix size|Dimensions must"
        ):
            runner.predict(row(1.0, columns), None)
        assert time.monotonic() - started < 5
        assert [[2.0] * 20] == runner.predict(row(1.0, 20), None).tolist()
    assert before == several.descriptors()
    assert 0 == several.restarts


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (1, "model 'raises_own' could not predict: OwnError: .*<object object"),
        (2, "model 'raises_own' could not predict: Unspeakable: .*its text cannot be made: RuntimeError"),
    ],
)
def test_errors_that_no_wire_carries(several: Company, columns: int, words: str) -> None:
    """A subclass of ours with an argument that JSON has not, and one without words."""
    with pytest.raises(PredictionError, match=words):
        several.ask("raises_own", row(1.0, columns))
    assert 0 == several.restarts


def test_an_answer_that_cannot_be_sent(several: Company) -> None:
    """Costs nobody else's: of a batch with the last part of a large request, whose outputs do not fit together."""
    large = np.arange(1, 13, dtype="float32").reshape(12, 1) * np.ones((1, 16), "float32")
    answers = several.ask_all("widths", [large, *[np.full((1, 16), 4.0, "float32")] * 8])
    assert isinstance(answers[0], PredictionError)
    assert [1] * 8 == [len(answer) for answer in answers[1:]]


# -- never lose ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def deadly() -> Iterator[Company]:
    # A batch of nine leaves as soon as it is full, however slowly they come.
    models = of("deadly", batch=True, max_batch_size=9), of("deadly_at_tracing")
    with predictors(*models, threads=1, batch_timeout=2.0) as company:
        yield company


INNOCENT = [row(100.0 + value) for value in range(8)]


@pytest.mark.parametrize("way", company.WAYS)
@pytest.mark.parametrize(
    "place",
    [company.IN_CALL, company.AT_COLLECTION, company.IN_THREAD, company.AT_TRACING],
    ids=lambda place: f"{place}",
)
def test_crash_matrix(deadly: Company, place: int, way: int) -> None:
    """One request that is deadly among eight that are not: eight right answers, and two deaths at most.

    By ``sys.exit`` nothing dies: it is an exception of the call, or of a thread, or of nobody.
    """
    before, pid = deadly.restarts, deadly.supervisor.facts()[0]["pid"]
    if place == company.AT_TRACING:
        name, guilty, innocent = "deadly_at_tracing", row(1.0, place + way), [row(1.0 + n, 3) for n in range(8)]
    else:
        name, guilty, innocent = "deadly", row(float(place + way)), INNOCENT
    # One who is connected and asks nothing: a batch waits for him as long as it may, so that others join it.
    with contextlib.closing(Connection(deadly.known.folder, 0, time.monotonic() + 30)):
        first, *others = deadly.ask_all(name, [guilty, *innocent])
    assert [(2 * x).tolist() for x in innocent] == [answer.tolist() for answer in others]
    if way == 1:
        assert before == deadly.restarts
        if place in (company.IN_CALL, company.AT_TRACING):
            assert isinstance(first, PredictionError)
        else:
            assert (2 * guilty).tolist() == first.tolist()
        return
    notes = np.count_nonzero(np.fromfile(Path(deadly.known.folder) / f"computing-0-{pid}", "uint64"))
    if place == company.AT_TRACING:  # nobody else's request is computed; the loop may just be looking at one
        assert notes <= 2
    else:
        assert notes == 9
    assert isinstance(first, PredictorUnavailable)
    cause = {2: "ended with exit code 3", 3: "was ended by SIGSEGV", 4: "was ended by SIGKILL"}[way]
    assert cause in str(first)
    assert "its inputs are probably the cause" in str(first)
    wait_until(lambda: deadly.restarts == before + 2, "two restarts")


def test_death_while_an_answer_is_joined() -> None:
    """Which takes more memory than to compute its parts: who asked for that much is told so; nobody else suffers."""
    with predictors(of("double", max_batch_size=2), program=stand_ins.dies_joining) as company:
        with pytest.raises(PredictorUnavailable, match="its inputs are probably the cause"):
            company.ask("double", np.ones((6, 1), "float32"), 2)
        wait_until(lambda: company.restarts == 2, "two restarts")
        assert [[2.0]] == company.ask("double", row(1.0)).tolist()


def test_those_who_wait_are_innocent(deadly: Company) -> None:
    """Whoever was not being computed is served, however many predictors die before it is its turn."""
    guilty = [row(float(company.IN_CALL + 4))] * 3
    several = [x for one in guilty for x in (one, *INNOCENT)]
    answers = deadly.ask_all("deadly", several)
    for x, answer in zip(several, answers, strict=True):
        if x[0, 0] < 100:
            assert isinstance(answer, PredictorUnavailable)
        else:
            assert (2 * x).tolist() == answer.tolist()


# -- bounds and turns ------------------------------------------------------------------------


@pytest.fixture
def slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Company, Callable[[], list[float]]]]:
    """A model whose calls take a tenth of a second each, and the rows of each call so far."""
    monkeypatch.setenv("SLOW_CALLS", str(tmp_path / "calls"))

    def calls() -> list[float]:
        written = (tmp_path / "calls").read_text() if (tmp_path / "calls").exists() else ""
        return [float(line.split()[0]) for line in written.splitlines()]

    shared = ModelPath("shared", "trapped:slow", batch=True, max_batch_size=8)
    alone = ModelPath("alone", "trapped:slow", batch=False)
    with predictors(shared, alone, max_enqueued_batches=4) as company:
        yield company, calls


@pytest.mark.parametrize("name", ["shared", "alone"])
def test_large_requests_take_turns(slow: tuple[Company, Callable[[], list[float]]], name: str) -> None:
    """While one of very many rows is computed, a request of one row waits for two batches at most; none is refused."""
    company, calls = slow
    large = np.ones((400, 1), "float32")
    with ThreadPoolExecutor(1) as other:
        waiting = other.submit(company.ask, name, large)
        so_far = len(calls())
        wait_until(lambda: len(calls()) > so_far + 1, "a call of the large one")
        for value in range(3):
            before = len(calls())
            assert [[2.0 * value]] == company.ask(name, row(value)).tolist()
            assert len(calls()) - before <= 4  # one that ran, two, and its own
        assert not waiting.done()
        assert [2.0] * 400 == waiting.result()[:, 0].tolist()


@pytest.mark.parametrize("name", ["shared", "alone"])
def test_what_nobody_waits_for_is_not_computed(slow: tuple[Company, Callable[[], list[float]]], name: str) -> None:
    """Between the batches of a large request neither: when its asker dies, and when its task has reached a limit."""
    company, calls = slow

    def limits() -> Limits:
        return Limits(expires=time.monotonic() + 0.5)

    with pytest.raises(PredictionTimeout, match=r"within 0\.5 s \(expires\)"):
        company.ask(name, np.ones((400, 1), "float32"), limits=limits)
    before = len(calls())
    assert [[6.0]] == company.ask(name, row(3.0)).tolist()
    assert len(calls()) - before <= 2
    asker = os.fork()
    if asker == 0:
        with contextlib.suppress(BaseException):
            company.ask(name, np.ones((400, 1), "float32"))
        os._exit(0)
    before = len(calls())
    wait_until(lambda: len(calls()) > before + 1, "a call of the large one")
    os.kill(asker, signal.SIGKILL)
    os.waitpid(asker, 0)
    before = len(calls())
    assert [[6.0]] == company.ask(name, row(3.0)).tolist()
    assert len(calls()) - before <= 2


def test_time_limit_of_the_task(slow: tuple[Company, Callable[[], list[float]]]) -> None:
    """What Celery interrupts is not computed after that; nobody has to be told."""
    company, calls = slow
    busy = ThreadPoolExecutor(2)
    first = busy.submit(company.ask, "shared", np.ones((80, 1), "float32"))
    wait_until(calls, "a call")

    def limits() -> Limits:
        return Limits(time_limit=time.monotonic() + 0.01)

    late = busy.submit(company.ask, "alone", np.full((1, 1), 7.0, "float32"), None, limits)
    assert [2.0] * 80 == first.result()[:, 0].tolist()
    assert 0 == company.statistics()["pending_request_count"]
    assert not late.done()
    assert [8] * 10 == calls()
    company.supervisor.stop()
    assert isinstance(late.exception(timeout=60), PredictorUnavailable)


def test_statistics_of_what_waited(slow: tuple[Company, Callable[[], list[float]]]) -> None:
    """A request that is refused has not waited."""
    company, _ = slow
    with pytest.raises(InvalidInputError):
        company.ask("shared", row(1.0, 3))
    company.ask("shared", row(1.0))
    stats = company.statistics()
    assert (1, 0, 1) == (stats["request_success"], stats["request_failure"], stats["queue_count"])


def test_more_bytes_than_a_request_may_have() -> None:
    """Are refused by whoever asks, and not received from anybody else."""
    with predictors(of("double"), max_request_bytes=1024) as company:
        assert [[2.0]] * 250 == company.ask("double", np.ones((250, 1), "float32")).tolist()
        with pytest.raises(InvalidInputError, match=r"1,024 bytes .*tf_max_request_bytes\); got 1,\d\d\d bytes"):
            company.ask("double", np.ones((300, 1), "float32"))
        (pid,) = (one["pid"] for one in company.supervisor.facts())
        before = psutil.Process(pid).memory_info().vms
        description, body = encode([np.ones((300, 1), "float32")])
        with socket.socket(socket.AF_UNIX) as stranger:
            stranger.connect(socket_path(company.known.folder, 0))
            start, *_ = message(asking("double", description).to_json(), body)
            stranger.sendall(start[: len(start) - 1500])
            start = start[:8] + (2**40).to_bytes(8, "little") + start[16:]
        with socket.socket(socket.AF_UNIX) as stranger:
            stranger.connect(socket_path(company.known.folder, 0))
            stranger.sendall(start)
            stranger.settimeout(30)
            with contextlib.suppress(ConnectionResetError):
                while stranger.recv(1000):
                    pass
        assert psutil.Process(pid).memory_info().vms - before < 2**30
        assert [[2.0]] == company.ask("double", row(1.0)).tolist()


def asking(model: str, description: Any, **fields: Any) -> AskPrediction:
    """A request with all fields right but for ``fields``."""
    right = AskPrediction(1, model, description, None, None, alone=False, again=False, deadline=1e9, limit=None)
    return replace(right, **fields)


def test_no_other_thread(tmp_path: Path) -> None:
    """A batch that no thread computes is an answer to those in it, and no end of all others."""
    busyness.make(str(tmp_path), 1)
    answers: list[Any] = []

    class Asker:
        def answer(self, head: Any, body: Any = ()) -> None:
            answers.append(head)

    async def ask() -> None:
        model = ServedModel(KerasRunner("double", company.double()), 8)  # not warm, so not known to be quick
        computing = ThreadPoolExecutor(1)
        computing.shutdown()  # it starts no thread from now on
        settings = Settings(batch_timeout=0.0)
        scheduler = Scheduler({"double": model}, settings, computing, threads=1, folder=str(tmp_path), index=0)
        for number in range(20):
            scheduler.admit(Request(Asker(), asking("double", None, id=number), model, [row(1.0)]))
            await asyncio.sleep(0.01)
        assert 0 == scheduler.facts()["pending_request_count"]
        assert scheduler.overdue(-1.0) is None

    asyncio.run(ask())
    assert [*range(20)] == [head.id for head in answers]
    assert all("cannot schedule new futures" in str(head.exception()) for head in answers)


#: Requests of the storm; ``make storm``: 10,000.
STORM = int(os.environ.get("TFPOOL_STORM_REQUESTS", "400"))


def test_storm(slow: tuple[Company, Callable[[], list[float]]]) -> None:
    """Very many requests whose askers are killed or time out while they wait; then one is answered at once.

    Of each hundred askers fifty are threads that wait for 0.1 s, and fifty are those of a process that is killed.
    """
    company, calls = slow
    assert [[6.0]] == company.ask("alone", row(3.0)).tolist()
    before = company.descriptors()

    def late() -> None:
        with contextlib.suppress(PredictionTimeout, PredictorOverloaded):
            company.ask("alone", row(1.0), limits=lambda: Limits(expires=time.monotonic() + 0.1))

    def many(asks: Callable[[], Any]) -> list[threading.Thread]:
        threads = [threading.Thread(target=asks, daemon=True) for _ in range(50)]
        for thread in threads:
            thread.start()
        return threads

    for _ in range(STORM // 100):
        asker = os.fork()
        if asker == 0:
            with contextlib.suppress(BaseException):
                many(lambda: company.ask("alone", row(1.0)))
                time.sleep(60)
            os._exit(0)
        for thread in many(late):
            thread.join()
        os.kill(asker, signal.SIGKILL)
        os.waitpid(asker, 0)
    wait_until(lambda: company.statistics()["pending_request_count"] == 0, "an empty queue", timeout=10)
    so_far, started = len(calls()), time.monotonic()
    assert [[6.0]] == company.ask("alone", row(3.0)).tolist()
    print(f"{STORM} requests abandoned; the next was answered after {time.monotonic() - started:.2f} s; {before}")
    assert len(calls()) - so_far <= 2
    assert before == company.descriptors()


# -- forks of whoever asks ----------------------------------------------------------------------


def test_forks_of_an_asker(several: Company) -> None:
    """Each fork gets its own answers, though its parent has asked before, and asks meanwhile."""
    indices, facts = several.known.models["double"]
    runner = RemoteRunner("double", indices, facts, Client(several.known))

    def right(values: Iterator[float]) -> int:
        return sum(runner.predict(row(value), None).item() == 2 * value for value in values)

    assert 1 == right(iter([7.0]))
    receiver, sender = os.pipe()
    forks = []
    for number in range(4):
        pid = os.fork()
        if pid == 0:
            try:
                os.write(sender, b"%d " % right(1000.0 * number + value for value in range(250)))
            finally:
                os._exit(0)
        forks.append(pid)
    assert 250 == right(float(value) for value in range(250))
    for pid in forks:
        os.waitpid(pid, 0)
    os.close(sender)
    with open(receiver) as file:
        assert ["250"] * 4 == file.read().split()


def test_a_fork_does_not_keep_its_parents_request(slow: tuple[Company, Callable[[], list[float]]]) -> None:
    """A parent that is killed while it waits has a fork that lives on: its request is gone all the same."""
    company, calls = slow
    receiver, sender = os.pipe()
    asker = os.fork()
    if asker == 0:
        threading.Thread(target=company.ask, args=("alone", np.ones((2000, 1), "float32"))).start()
        time.sleep(1.0)
        if os.fork() == 0:
            os.write(sender, b"%d" % os.getpid())
            time.sleep(60)
        time.sleep(60)
        os._exit(0)
    fork = int(os.read(receiver, 100))
    os.kill(asker, signal.SIGKILL)
    os.waitpid(asker, 0)
    try:
        before = len(calls())
        assert [[6.0]] == company.ask("alone", row(3.0)).tolist()
        assert len(calls()) - before <= 2
    finally:
        os.kill(fork, signal.SIGKILL)


# -- a predictor that is not there -----------------------------------------------------------------


def test_answer_for_somebody_else(tmp_path: Path) -> None:
    """An answer of another number is not taken."""
    busyness.make(str(tmp_path), 1)
    known = Predictors(str(tmp_path), {}, 10.0, 2**20)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(socket_path(str(tmp_path), 0))
    listener.listen()

    def serve() -> None:
        connection, _ = listener.accept()
        listener.close()
        reader = Reader()
        heads: list[Any] = []
        while not heads:
            heads = reader.received(connection.recv_into(reader.buffer()))
        description, body = encode(np.ones((1, 1)))
        for buffer in message(Outputs(heads[0][0]["id"] + 1, description).to_json(), body):
            connection.sendall(buffer)
        connection.recv(100)

    thread = threading.Thread(target=serve)
    thread.start()
    with pytest.raises(PredictorUnavailable):
        Client(known).predict("m", (0,), [np.ones((1, 1))], None)
    thread.join()
