"""What every kind of process here needs of the system: its memory, leave to start others, an end of crash loops.

Private names used, because there is no public way: of `multiprocessing`
``_config`` of a process, and ``_forkserver`` and its attributes, which a fork
inherits and cannot use.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import forkserver
from typing import Any

logger: logging.Logger = logging.getLogger(__name__)

#: So many children in a row that end before they are ready stop the worker.
MAX_FAILED_STARTS = 3
#: Seconds between two looks at whether the worker should stop.
TICK = 0.02
#: Held while this process starts another.
_starting = threading.Lock()
#: Seconds between a child's own deadline and worker main's next harder means.
GRACE = 5.0


# -- memory, by ``smaps_rollup`` of Linux, in bytes ----


def memory_of(pid: int) -> dict[str, int]:
    """``private``: what the process alone has written; ``pss``: its fair share of all its pages.

    Pages shared with other processes do not count as private, nor do mapped
    files, which the kernel can drop at any time.  Empty where that cannot be
    read: the process has ended, or this is not Linux 4.14 or newer.
    """
    try:
        with open(f"/proc/{pid}/smaps_rollup") as file:
            found = {line.split(":")[0]: 1024 * int(line.split()[1]) for line in list(file)[1:]}
    except OSError:
        return {}
    return {"private": found["Private_Dirty"] + found.get("SwapPss", 0), "pss": found["Pss"]}


def written_here() -> int | None:
    """``private`` of this process; None where that cannot be read."""
    return memory_of(os.getpid()).get("private")


#: Of ``mallopt`` in glibc.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8


def give_back_what_is_free() -> None:
    """Give the system the memory that was freed here, which glibc keeps for what comes next.  No effect elsewhere."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def keep_what_is_freed() -> None:
    """Give back what is free now, and from now on reuse large pieces of memory instead of giving each back.

    glibc maps a piece of more than 32 MB anew each time, and the kernel clears
    its pages.  The layers of a convolutional network on a batch are such
    pieces: MobileNetV2 on 32 rows is a quarter faster without.  Threads share
    one arena, since that of a thread ends at 64 MB.  No effect elsewhere.
    """
    give_back_what_is_free()
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_ARENA_MAX, 1)
        mallopt(_MMAP_THRESHOLD, 2**30)
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)


# -- starting ----


@contextlib.contextmanager
def allowed_to_start() -> Iterator[None]:
    """Let this process start others, daemonic or not; whoever starts one ends it himself.

    A worker that somebody starts with `multiprocessing` may be daemonic, and then `multiprocessing` forbids it, so that
    no grandchild is left behind; billiard, whose children Celery's are, does not.
    """
    _forget_forkserver_of_parent()
    config = multiprocessing.current_process()._config  # type: ignore[attr-defined]
    with _starting:
        daemon = config.pop("daemon", None)
        try:
            yield
        finally:
            if daemon is not None:
                config["daemon"] = daemon


def _let_fork_start() -> None:
    global _starting
    _starting = threading.Lock()


os.register_at_fork(after_in_child=_let_fork_start)


def start(process: Any, tick: Callable[[], None], timeout: float) -> None:
    """Start a process of `multiprocessing`, without waiting for ever for a forkserver that does not answer.

    Args:
        tick: called all the while; whatever it raises ends the wait.
        timeout: seconds until the forkserver is killed, which the next start replaces.

    Raises:
        TimeoutError: the process is not started by then.
    """
    with ThreadPoolExecutor(1, "starter") as thread:

        def start_it() -> None:
            with allowed_to_start():
                process.start()

        starting, deadline = thread.submit(start_it), time.monotonic() + timeout
        try:
            while not futures.wait([starting], TICK).done:
                tick()
                if time.monotonic() > deadline:
                    raise TimeoutError(f"the forkserver has not started it within {timeout:g} s")
        except BaseException:
            end_forkserver()  # or this thread would not end either
            if starting.exception() is None:  # it was only slow, and nobody is told of the process
                kill(process)
            raise
        starting.result()


def kill(process: Any) -> None:
    """Kill a process of `multiprocessing`, which does so itself only while the forkserver lives that has forked it."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGKILL)


def end_forkserver() -> None:
    """Kill the forkserver of this process, which does not answer; whoever waits for its answer sees that it is gone."""
    server: Any = forkserver._forkserver
    if server._forkserver_pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(server._forkserver_pid, signal.SIGKILL)


def _forget_forkserver_of_parent() -> None:
    """In a fork of a process that has a forkserver, start another: `multiprocessing` would wait for one of its own."""
    server: Any = forkserver._forkserver
    if server._forkserver_pid is not None:
        try:
            os.waitid(os.P_PID, server._forkserver_pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            server._forkserver_pid = server._forkserver_address = server._forkserver_alive_fd = None


@dataclass
class CrashLoop:
    """Counts children that ended before they were ready, in a row."""

    limit: int
    failed: int = 0

    def ended(self, ready: bool) -> bool:
        """Count one end; whether it is time to give up."""
        self.failed = 0 if ready else self.failed + 1
        return self.failed >= self.limit


def missing_names(names: Mapping[str, str]) -> list[str]:
    """Which of ``names`` (module → its names, between blanks) are not there any more, as ``module.name``."""
    missing = []
    for module, several in names.items():
        for name in several.split():
            try:
                found: Any = importlib.import_module(module)
                for part in name.split("."):
                    found = getattr(found, part)
            except (ImportError, AttributeError):
                missing.append(f"{module}.{name}")
    return missing


def say_what_is_gone(names: Sequence[str], of: str) -> None:
    """Warn, in one line, of private names that this version of ``of`` does not have."""
    if names:
        logger.warning(
            "this version of %s has no %s any more, which celery_tfpool uses: expect failures, and take one of the "
            "versions that its README names",
            of,
            ", ".join(names),
        )
