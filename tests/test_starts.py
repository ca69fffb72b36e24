"""Starting processes, when the forkserver that should fork them does not answer."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import forkserver_pid, lives, suspended, wait_until

from celery_tfpool import processes
from celery_tfpool.packs import build
from celery_tfpool.packs.cache import PackCache


@pytest.fixture
def hanging() -> Iterator[psutil.Process]:
    """The forkserver of this process, stopped."""
    with suspended(forkserver_pid()) as process:
        yield process


def new_process() -> Any:
    return multiprocessing.get_context("forkserver").Process(target=time.sleep, args=(0,))


def test_it_does_not_answer(hanging: psutil.Process) -> None:
    """It is killed in time, and the next start has another one."""
    with pytest.raises(TimeoutError, match=r"the forkserver has not started it within 0\.5 s"):
        processes.start(new_process(), lambda: None, 0.5)
    wait_until(lambda: not lives(hanging), "its end", timeout=5)
    process = new_process()
    processes.start(process, lambda: None, 60.0)
    process.join(30)
    assert 0 == process.exitcode


def test_interrupted(hanging: psutil.Process) -> None:
    """By whoever looks whether the worker should stop."""

    def tick() -> None:
        raise SystemExit(0)

    with pytest.raises(SystemExit):
        processes.start(new_process(), tick, 600.0)
    wait_until(lambda: not lives(hanging), "its end", timeout=5)


def test_model_without_a_pack(hanging: psutil.Process, tmp_path: Path) -> None:
    """The worker starts without it, and says why."""
    (tmp_path / "model.keras").touch()
    packing = build.pack_in_process(
        "m",
        str(tmp_path / "model.keras"),
        PackCache(tmp_path / "cache", 2**30),
        safe_mode=True,
        start_method="forkserver",
        timeout=1.0,
        tick=lambda: None,
    )
    assert packing.folder is None
    assert packing.is_problem
    assert "no process to pack it was started: the forkserver has not started it within 1 s" == packing.reason


def test_several_threads_of_a_daemonic_process() -> None:
    """None of them takes the leave to start from another."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_start_many, args=(sender,), daemon=True)
    process.start()
    assert receiver.poll(60)
    assert [] == receiver.recv()
    process.join(20)


def _start_many(sender: Any) -> None:
    failures: list[str] = []

    def start() -> None:
        for _ in range(10):
            process = new_process()
            try:
                with processes.allowed_to_start():
                    process.start()
                process.join()
            except BaseException as exc:
                failures.append(repr(exc))

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sender.send(failures)
