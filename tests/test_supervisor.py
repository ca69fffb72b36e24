"""The supervisor without Celery and TensorFlow: stand-ins for predictors, and peers of the worst kind."""

from __future__ import annotations

import atexit
import contextlib
import gc
import json
import multiprocessing
import os
import resource
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import psutil
import pytest
import stand_ins
from conftest import forkserver_pid, lives, suspended, wait_until

from celery_tfpool import PredictorUnavailable
from celery_tfpool.model_path import ModelPath
from celery_tfpool.predictors.busyness import LoadBoard
from celery_tfpool.predictors.client import Client
from celery_tfpool.predictors.connection import coroner_path, socket_path
from celery_tfpool.predictors.server import Job, started_at
from celery_tfpool.predictors.supervisor import CannotStart, Supervisor
from celery_tfpool.settings import Settings

MODEL = ModelPath("m", "stand_ins:none")


def supervisor_of(
    program: Any, *, count: int = 1, timeout: float = 60.0, **options: Any
) -> tuple[Supervisor, list[str]]:
    """It, and the reasons for which it gave up."""
    reasons: list[str] = []

    def job(index: int, models: tuple[ModelPath, ...], place: str) -> Job:
        return Job(index, models, (), (), Settings(), 1, 1, place, os.getpid(), started_at(os.getpid()))

    made = Supervisor(
        [(MODEL,)] * count,
        job=job,
        give_up=reasons.append,
        startup_timeout=timeout,
        program=program,
        preload=[],
        **options,
    )
    return made, reasons


@contextlib.contextmanager
def supervised(program: Any, **options: Any) -> Iterator[tuple[Supervisor, list[str]]]:
    made, reasons = supervisor_of(program, **options)
    made.start(lambda: None)
    try:
        yield made, reasons
    finally:
        started = time.monotonic()
        made.stop()
        assert time.monotonic() - started < 15
        assert not os.path.exists(made.folder)


def pid_of(supervisor: Supervisor) -> int:
    pid = supervisor._predictors[0].pid  # `facts` asks for statistics, which a stand-in has not
    assert isinstance(pid, int)
    return pid


def replaced(supervisor: Supervisor, number: signal.Signals = signal.SIGKILL) -> int:
    """The process that follows after the present one is killed."""
    before = pid_of(supervisor)
    os.kill(before, number)
    wait_until(lambda: pid_of(supervisor) != before and supervisor._predictors[0].facts, "a replacement", timeout=20)
    return pid_of(supervisor)


def ask(supervisor: Supervisor, question: bytes, timeout: float = 20.0) -> bytes:
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(timeout)
        peer.connect(coroner_path(supervisor.folder))
        peer.sendall(question)
        return peer.recv(10_000)


# -- when all is well -------------------------------------------------------------------


def test_how_one_ended() -> None:
    """Is told to whoever asks, before and after."""
    with supervised(stand_ins.ready) as (supervisor, reasons):
        first = pid_of(supervisor)
        answers: list[bytes] = []
        asker = threading.Thread(target=lambda: answers.append(ask(supervisor, b"[0, %d]\n" % first)))
        asker.start()
        second = replaced(supervisor)
        asker.join(20)
        expected = b"predictor 0 (pid %d) was ended by SIGKILL\n" % first
        assert [expected] == answers
        assert expected == ask(supervisor, b"[0, %d]\n" % first)
        assert expected == ask(supervisor, b"[0, null]\n")
        replaced(supervisor, signal.SIGSEGV)
        assert b"predictor 0 (pid %d) was ended by SIGSEGV\n" % second == ask(supervisor, b"[0, null]\n")
        replaced(supervisor, signal.Signals(signal.SIGRTMIN) + 6)  # which has no name
        assert f"was ended by signal {signal.SIGRTMIN + 6}\n".encode() in ask(supervisor, b"[0, null]\n")
        assert [] == reasons
        assert 3 == supervisor.facts()[0]["restarts"]


def test_nothing_is_inherited() -> None:
    """A predictor has none of worker main's descriptors."""
    with socket.socketpair()[0] as one, open(os.devnull) as other, supervised(stand_ins.ready) as (supervisor, _):
        os.set_inheritable(one.fileno(), True)
        os.set_inheritable(other.fileno(), True)
        pid = replaced(supervisor)
        links = {os.readlink(f"/proc/{pid}/fd/{number}") for number in os.listdir(f"/proc/{pid}/fd")}
        assert os.readlink(f"/proc/self/fd/{one.fileno()}") not in links


def test_descriptors_after_many_ends() -> None:
    with supervised(stand_ins.ready) as (supervisor, _):
        replaced(supervisor)
        gc.collect()  # what tests before have left
        before = psutil.Process().num_fds()
        for _ in range(5):
            replaced(supervisor)
        assert before == psutil.Process().num_fds()


def test_sockets_stay_when_the_user_logs_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with supervised(stand_ins.ready):
        assert [] == os.listdir(tmp_path)


def test_in_a_daemonic_process() -> None:
    """As a worker does that somebody has started with `multiprocessing`."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_supervise, args=(sender,), daemon=True)
    process.start()
    assert receiver.poll(30)
    assert "replaced" == receiver.recv()
    process.join(20)
    assert 0 == process.exitcode


def _supervise(sender: Any) -> None:
    with supervised(stand_ins.ready) as (supervisor, _):
        replaced(supervisor)
        sender.send("replaced")


# -- peers of the worst kind ------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        b"",
        b"null\n",
        b"[99, 1]\n",
        b"[-7, 1]\n",
        b"[0, []]\n",
        b"[0]\n",
        b"3\n",
        b"[0, 1",
        b"\xff\xfe\n",
        b"[" * 900 + b"\n",
    ],
    ids=repr,
)
def test_peers_that_make_no_sense(words: bytes) -> None:
    """Whether they wait or go: predictors are replaced, and the supervisor stops."""
    with supervised(stand_ins.ready) as (supervisor, reasons):
        peers = []
        for number in range(20):
            peer = socket.socket(socket.AF_UNIX)
            peer.connect(coroner_path(supervisor.folder))
            peer.sendall(words)
            if number % 2:
                peer.close()
            peers.append(peer)
        replaced(supervisor)
        assert [] == reasons
        for peer in peers:
            peer.close()


def test_peer_that_says_too_much() -> None:
    with supervised(stand_ins.ready) as (supervisor, _):
        with contextlib.suppress(ConnectionError):
            ask(supervisor, b"[" * 10_000_000)
        replaced(supervisor)


def test_peers_that_are_gone_leave_nothing() -> None:
    with supervised(stand_ins.ready) as (supervisor, _):
        gc.collect()
        before, pid = psutil.Process().num_fds(), pid_of(supervisor)
        for _ in range(50):
            with socket.socket(socket.AF_UNIX) as peer:
                peer.connect(coroner_path(supervisor.folder))
                peer.sendall(b"[0, %d]\n" % pid)
        wait_until(lambda: psutil.Process().num_fds() == before, "closed descriptors", timeout=5)


@contextlib.contextmanager
def descriptors_left(count: int) -> Iterator[None]:
    """This process may open so many more and no others."""
    gc.collect()
    free = os.dup(0)
    os.close(free)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + count, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


# -- when it cannot go on -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        (stand_ins.fails, "the last one ended with exit code 4: the weights are on the moon"),
        (stand_ins.crashes, "the last one was ended by SIGSEGV: see above for what it said"),
        (lambda job, listener, link: None, "cannot be started"),  # cannot be pickled
    ],
)
def test_cannot_start(program: Any, reason: str) -> None:
    supervisor, reasons = supervisor_of(program)
    with pytest.raises(CannotStart, match=reason):
        supervisor.start(lambda: None)
    assert not os.path.exists(supervisor.folder)
    assert [] == reasons


def test_never_ready() -> None:
    """Is killed, though it ignores what it is told first."""
    supervisor, _ = supervisor_of(stand_ins.never_ready, timeout=4.0)  # until it ignores that, on a busy machine
    with pytest.raises(CannotStart, match=r"3 times in a row before it was ready; the last one was ended by SIGKILL"):
        supervisor.start(lambda: None)


def test_half_a_word() -> None:
    with supervised(stand_ins.half_a_word) as (supervisor, _):
        assert 1 == supervisor.facts()[0]["restarts"]


def test_no_place_for_sockets(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    supervisor, _ = supervisor_of(stand_ins.ready)
    with descriptors_left(1), pytest.raises(CannotStart, match=r"their sockets cannot be made .*Too many open files"):
        supervisor.start(lambda: None)
    assert not os.path.exists(supervisor.folder)


def test_no_descriptors_for_a_replacement() -> None:
    """The worker stops with the reason, and whoever waits is told at once."""
    with supervised(stand_ins.ready) as (supervisor, reasons):
        client = Client(supervisor.client(60.0, 2**20))
        with descriptors_left(2):
            os.kill(pid_of(supervisor), signal.SIGKILL)
            wait_until(lambda: reasons, "a reason", timeout=20)
        assert "Too many open files" in reasons[0]
        started = time.monotonic()
        with pytest.raises(PredictorUnavailable, match=r"predictor 0 cannot be started: .*Too many open files"):
            client.predict("m", (0,), [np.ones((1, 1))], None)
        assert time.monotonic() - started < 2


def test_those_who_wait_when_it_gives_up() -> None:
    """Whoever is in the queue of the socket by then, and whoever comes later."""
    with supervised(stand_ins.ready_once) as (supervisor, reasons):
        client = Client(supervisor.client(60.0, 2**20))
        outcomes: list[BaseException] = []

        def wait() -> None:
            try:
                client.predict("m", (0,), [np.ones((1, 1))], None)
            except BaseException as exc:
                outcomes.append(exc)

        waiting = [threading.Thread(target=wait) for _ in range(5)]
        for thread in waiting:
            thread.start()
        time.sleep(0.2)
        os.kill(pid_of(supervisor), signal.SIGKILL)
        for thread in waiting:
            thread.join(30)
        wait()
        assert 6 == len(outcomes)
        for outcome in outcomes:
            assert isinstance(outcome, PredictorUnavailable)
            assert "predictor 0 ended 3 times in a row before it was ready; the last one ended with exit code 6" in str(
                outcome
            )
        assert 1 == len(reasons)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_end_of_the_forkserver(number: signal.Signals) -> None:
    """Predictors live on, and the next one comes from another forkserver."""
    with supervised(stand_ins.ready) as (supervisor, reasons):
        pid = pid_of(supervisor)
        parent = psutil.Process(pid).ppid()
        os.kill(parent, number)
        wait_until(lambda: psutil.Process(pid).ppid() != parent, "an orphan", timeout=5)
        time.sleep(0.5)
        assert pid == pid_of(supervisor)
        assert 0 == supervisor.facts()[0]["restarts"]
        replaced(supervisor)
        assert f"predictor 0 (pid {pid}) ended, nobody knows how" == supervisor._predictors[0].end_of(pid)
        assert [] == reasons


def test_forkserver_that_hangs() -> None:
    """It is killed, and the next predictor comes from another one."""
    with (
        supervised(stand_ins.ready, timeout=6.0) as (supervisor, reasons),
        suspended(psutil.Process(pid_of(supervisor)).ppid()) as forkserver,
    ):
        replaced(supervisor)
        assert not forkserver.is_running()
        assert [] == reasons


def test_forkserver_that_hangs_while_the_worker_starts_or_stops() -> None:
    with (
        suspended(forkserver_pid()),
        supervised(stand_ins.ready, timeout=6.0) as (supervisor, reasons),
    ):
        parent = psutil.Process(pid_of(supervisor)).ppid()
        assert [] == reasons
        with suspended(parent) as forkserver:
            os.kill(pid_of(supervisor), signal.SIGKILL)
            wait_until(lambda: supervisor._predictors[0].is_starting, "a start")
            started = time.monotonic()
            supervisor.stop()
            assert time.monotonic() - started < 10
            wait_until(lambda: not lives(forkserver), "its end", timeout=5)


def test_start_that_comes_too_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody knows of that process any more, so it must not answer beside its replacement."""
    original, pids = Supervisor._new_process, []

    def new_process(self: Supervisor, one: Any) -> Any:
        process, link = original(self, one)
        pids.append(process.pid)
        if len(pids) == 1:
            time.sleep(9)
        return process, link

    monkeypatch.setattr(Supervisor, "_new_process", new_process)
    with supervised(stand_ins.ready, timeout=6.0) as (supervisor, reasons):
        assert pids[1] == pid_of(supervisor)
        first = psutil.Process(pids[0])
        wait_until(lambda: not lives(first), "its end")
        assert pids[1] == pid_of(supervisor)
        assert [] == reasons


def test_stop_when_the_forkserver_has_ended() -> None:
    """For `multiprocessing` its children have ended, too."""
    with supervised(stand_ins.ready) as (supervisor, _):
        predictor = psutil.Process(pid_of(supervisor))
        forkserver = psutil.Process(predictor.ppid())
        forkserver.kill()
        wait_until(lambda: not lives(forkserver), "its end")
        multiprocessing.get_context("fork").Process(target=print).start()  # which looks at all that were started
        assert lives(predictor)
    wait_until(lambda: not lives(predictor), "its end", timeout=10)


def test_many_who_wait() -> None:
    """While a predictor is being replaced, and the supervisor is busy."""
    with supervised(stand_ins.ready) as (supervisor, _), contextlib.ExitStack() as peers:
        for path in (socket_path(supervisor.folder, 0), coroner_path(supervisor.folder)):
            for _ in range(500):
                peer = peers.enter_context(socket.socket(socket.AF_UNIX))
                peer.settimeout(5)
                peer.connect(path)


def links() -> set[str]:
    """What this process has open."""
    found = set()
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # that of the list itself
            found.add(os.readlink(f"/proc/self/fd/{number}"))
    return found


def test_a_fork_of_worker_main() -> None:
    """It neither stops predictors when it ends, nor keeps their sockets and the lock of their folder."""
    with supervised(stand_ins.ready) as (supervisor, _):
        sockets = [supervisor._predictors[0].listener, supervisor._coroner]
        mine = {os.readlink(f"/proc/self/fd/{one.fileno()}") for one in sockets} | {supervisor.folder}
        receiver, sender = os.pipe()
        fork = os.fork()
        if fork == 0:
            try:
                os.write(sender, " ".join(links()).encode())
                atexit._run_exitfuncs()
            finally:
                os._exit(0)
        theirs = set(os.read(receiver, 100_000).decode().split())
        os.waitpid(fork, 0)
        assert mine <= links()
        assert not mine & theirs
        assert os.path.exists(supervisor.folder)
        assert psutil.pid_exists(pid_of(supervisor))
        assert b"ended" in ask(supervisor, b"[0, %d]\n" % [pid_of(supervisor), replaced(supervisor)][0])


# -- stopping ----------------------------------------------------------------------------------------


def test_stop_at_any_time() -> None:
    """Twice, by several threads, before it was started, after its folder was removed."""
    supervisor, _ = supervisor_of(stand_ins.ready)
    supervisor.stop()
    supervisor, reasons = supervisor_of(stand_ins.ready)
    supervisor.start(lambda: None)
    pid = pid_of(supervisor)
    shutil.rmtree(supervisor.folder)
    stoppers = [threading.Thread(target=supervisor.stop) for _ in range(3)]
    for stopper in stoppers:
        stopper.start()
    for stopper in stoppers:
        stopper.join(20)
        assert not stopper.is_alive()
    supervisor.stop()
    assert not psutil.pid_exists(pid)
    assert [] == reasons


def test_interrupted_start() -> None:
    """What ``tick`` raises ends it, and all that was started."""
    supervisor, _ = supervisor_of(stand_ins.never_ready)
    ticks = iter(range(30))

    def tick() -> None:
        if next(ticks, None) is None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        supervisor.start(tick)
    wait_until(
        lambda: not supervisor._predictors[0].process or not psutil.pid_exists(supervisor._predictors[0].pid or 0), ""
    )


# -- a socket that is not there -------------------------------------------------------------------------


def _missing(path: str) -> None:
    os.unlink(path)


def _refusing(path: str) -> None:
    os.unlink(path)
    with socket.socket(socket.AF_UNIX) as closed:
        closed.bind(path)


def _full(path: str) -> None:
    os.unlink(path)
    full = socket.socket(socket.AF_UNIX)
    full.bind(path)
    full.listen(0)
    socket.socket(socket.AF_UNIX).connect(path)
    _full.kept = full  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("break_it", "cause"),
    [
        (_missing, r"the socket of predictor 0 is gone \(No such file or directory\)"),
        (_refusing, r"the socket of predictor 0 is gone \(Connection refused\)"),
        (_full, "so many requests wait to be received by predictor 0 that no other may"),
    ],
)
def test_socket_that_cannot_be_reached(break_it: Callable[[str], None], cause: str) -> None:
    """Is said at once, and with its cause."""
    with supervised(stand_ins.ready) as (supervisor, _):
        break_it(socket_path(supervisor.folder, 0))
        started = time.monotonic()
        with pytest.raises(PredictorUnavailable, match=cause):
            Client(supervisor.client(60.0, 2**20)).predict("m", (0,), [np.ones((1, 1))], None)
        assert time.monotonic() - started < 7


def test_nobody_is_there_any_more() -> None:
    with supervised(stand_ins.ready) as (supervisor, _):
        client = Client(supervisor.client(60.0, 2**20))
    with pytest.raises(PredictorUnavailable, match="the worker is stopping"):
        client.predict("m", (0,), [np.ones((1, 1))], None)


def test_counters_outlive_a_predictor() -> None:
    with supervised(stand_ins.ready, count=2) as (supervisor, _):
        LoadBoard(supervisor.folder).count(1, [3, 1, 0.5])
        replaced(supervisor)
        assert [3.0, 1.0, 0.5] == LoadBoard(supervisor.folder).counters(1)[:3]
        assert [0.0] * 8 == LoadBoard(supervisor.folder).counters(0)
        assert json.dumps(supervisor.facts())
