"""Start and stop what is measured: Redis, Celery workers, model servers; read the memory of a process tree."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import environments
import psutil
from contestants import Contestant

HERE = Path(__file__).parent
APPS = HERE / "apps"
#: Seconds until a program that was started must accept connections, or have ended when asked to.
PATIENCE = 120.0
#: Idle workers of other contestants must not disturb.
SILENCE = ["--without-gossip", "--without-mingle", "--without-heartbeat"]


def environment() -> dict[str, str]:
    """The variables of whatever is measured: without what only the harness needs, and Keras imports where it is."""
    path = os.pathsep.join([str(APPS), str(HERE / "lean")])
    return {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": path}


class Failed(Exception):
    """A contestant could not do its part; its message goes into the table."""


@dataclass
class Program:
    """A running program with its process tree and its log."""

    process: subprocess.Popen[bytes]
    log: Path
    #: When it was started, on the clock of `time.perf_counter`.
    started: float = field(default_factory=time.perf_counter)

    def tree(self) -> list[psutil.Process]:
        """The program's processes, itself first."""
        with contextlib.suppress(psutil.NoSuchProcess):
            top = psutil.Process(self.process.pid)
            return [top, *top.children(recursive=True)]
        return []

    def check(self) -> None:
        """Raise `Failed` with the end of the log when the program has ended."""
        code = self.process.poll()
        if code is not None:
            raise Failed(f"ended with exit code {code}: {self.tail()}")

    def tail(self) -> str:
        """The last line of the log that says something."""
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1][:300] if lines else "nothing in its log"

    def stop(self) -> None:
        """SIGTERM, then SIGKILL for whatever of the tree is left."""
        tree = self.tree()
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(PATIENCE / 4)
        for process in tree:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()


@dataclass
class Memory:
    """Bytes of a process tree: shared pages counted once in ``pss``; the others by process.

    ``private`` are pages that no other process maps at the moment, ``written`` those that this one has changed: who
    else maps the same library says nothing about them.
    """

    pss: int
    private: dict[int, int]
    written: dict[int, int]

    @classmethod
    def of(cls, *programs: Program) -> Memory:
        found = cls(0, {}, {})
        for process in (process for program in programs for process in program.tree()):
            with contextlib.suppress(psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
                rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()[1:]
                sizes = {name: 1024 * int(rest.split()[0]) for name, rest in (line.split(":") for line in rollup)}
                found.pss += sizes["Pss"]
                found.private[process.pid] = sizes["Private_Clean"] + sizes["Private_Dirty"]
                found.written[process.pid] = sizes["Private_Dirty"] + sizes.get("Swap", 0)
        return found


@contextlib.contextmanager
def running(command: list[str], variables: dict[str, str]) -> Iterator[Program]:
    """A program, stopped in the end with all that it started."""
    with tempfile.NamedTemporaryFile(prefix="bench-", suffix=".log") as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**environment(), **variables},
            cwd=APPS,
        )
        program = Program(process, Path(log.name))
        try:
            yield program
        finally:
            program.stop()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def redis() -> Iterator[str]:
    """A Redis of our own, which keeps nothing on disk; its URL."""
    port = free_port()
    command = ["redis-server", "--port", str(port), "--save", "", "--appendonly", "no", "--bind", "127.0.0.1"]
    with running(command, {}) as server:
        _wait_for(port, server)
        yield f"redis://127.0.0.1:{port}/0"


@dataclass
class Worker:
    """A contestant's worker, and the model server beside it if it has one."""

    contestant: Contestant
    queue: str
    celery: Program
    server: Program | None

    @property
    def node(self) -> str:
        return f"{self.queue}@bench"

    def check(self) -> None:
        self.celery.check()
        if self.server:
            self.server.check()

    def memory(self) -> Memory:
        return Memory.of(self.celery, *([self.server] if self.server else []))


@contextlib.contextmanager
def worker(queue: str, contestant: Contestant, *, concurrency: int, variables: dict[str, str]) -> Iterator[Worker]:
    """Start a contestant's worker, which serves ``queue`` and may still be starting."""
    port = free_port()
    variables = {**variables, **contestant.variables, "BENCH_SERVER_PORT": str(port)}
    python = environments.python(contestant.environment)
    options = ["-c", str(concurrency), "-Q", queue, "-n", f"{queue}@bench", "-l", "WARNING"]
    command = [python, "-m", "celery", "-A", contestant.app, "worker", "-P", contestant.pool, *options]
    with contextlib.ExitStack() as stack:
        celery = stack.enter_context(running([*command, *SILENCE], variables))
        server = None
        if contestant.server:
            options = ["--port", str(port), "--timeout", "60000", "--log-level", "error"]
            command = [environments.python("server"), f"{contestant.server}.py", *options]
            server = stack.enter_context(running(command, variables))
            _wait_for(port, server)
        yield Worker(contestant, queue, celery, server)


def _wait_for(port: int, program: Program) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        program.check()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.02)
    raise Failed(f"did not accept connections within {PATIENCE:g} s: {program.tail()}")


if not sys.platform.startswith("linux"):
    raise SystemExit("the benchmarks read /proc/PID/smaps_rollup, which only Linux has")
