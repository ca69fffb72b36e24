"""Run each way of loading a model, before and after, in a real worker, and print a table of what came out.

    python compare.py [--ways 1 4] [--bound 20]

Needs no server.  Every file is in one temporary folder, and every process that
is started is stopped, also after an error or Ctrl+C.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
from celery import Celery

HERE = Path(__file__).parent
OURS = "--pool=celery_tfpool:TFPrefork"
#: Of each way: its name, and what follows ``celery -A`` before and after.
WAYS = {
    1: ("global of the module", "before_1 worker", f"before_1 worker {OURS}"),
    2: ("global and `graph.as_default()`", "before_2 worker", f"before_2 worker {OURS}"),
    3: ("`Task.__init__`", "before_3 worker", f"before_3 worker {OURS}"),
    4: ("property that loads once", "before_4 worker", f"after_4 worker {OURS}"),
    5: ("loaded in each call", "before_5 worker", f"after_5 worker {OURS}"),
    6: ("`worker_process_init`", "before_6 worker", f"after_6 worker {OURS}"),
    7: ("global, and `--pool=solo`", "before_1 worker --pool=solo", f"before_1 worker {OURS}"),
}
OPTIONS = ["--concurrency=2", "--loglevel=INFO", "--without-gossip", "--without-mingle"]
#: Enough that both children get some.
TASKS = 8
ONES = [1.0] * 16
#: Seconds until a worker is ready, and until what shall answer answers.
PATIENCE = 120.0
#: Lines of the worker's log, with the seconds that a task took, and with its error.
SUCCEEDED = re.compile(r"Task \S+ succeeded in ([\d.e-]+)s")
FAILED = re.compile(r"Task \S+ raised unexpected: (\w+)")


class CompareError(Exception):
    """The comparison did not work; the text says what did not."""


class NoAnswer(Exception):
    """What the tasks did instead."""


@dataclass(frozen=True)
class Outcome:
    """What came of the tasks.  Times are seconds, sizes bytes."""

    #: From the start of the worker to the first answer.
    first: float
    #: The quickest task: the model is loaded by then.
    quickest: float
    #: Of each process that predicts: memory that it shares with no other.
    private: list[int]

    def __str__(self) -> str:
        size = sum(self.private) / len(self.private) / 1e6
        return f"{self.first:.1f} s, {1000 * self.quickest:.0f} ms, {len(self.private)} × {size:.0f} MB"


def outcome(arguments: str, bound: float) -> str:
    try:
        return str(measure(arguments, bound))
    except NoAnswer as exc:
        return str(exc)


def measure(arguments: str, bound: float) -> Outcome:
    """Send the tasks to a new worker, which has ``bound`` seconds to answer them once it is ready."""
    for message in Path("queue").glob("*"):
        message.unlink()
    client = Celery("client", set_as_current=False)
    client.config_from_object("celeryconfig")
    # Before the worker runs: kombu's filesystem transport may read a message that is still being written.
    results = [client.send_task(f"{arguments.split()[0]}.predict", [ONES]) for _ in range(TASKS)]
    started = time.monotonic()
    with running_worker(arguments) as process:
        times = follow(process, bound)
        answers = {result.get(timeout=bound) for result in results}
        if answers != {sum(ONES)}:
            raise CompareError(f"{arguments}: the answers are {answers}")
        main = psutil.Process(process.pid)
        private = [child.memory_full_info().uss for child in main.children() or [main]]
        return Outcome(times[0][0] - started, min(seconds for _, seconds in times), private)


@contextlib.contextmanager
def running_worker(arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A worker in a session of its own, all of which is killed at the end: some hang, and nothing is lost with them."""
    process = subprocess.Popen(
        [sys.executable, "-m", "celery", "-A", *arguments.split(), *OPTIONS],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        kill(process)
        process.wait()


def kill(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def follow(process: subprocess.Popen[str], bound: float) -> list[tuple[float, float]]:
    """When each task was answered and how long it took, as the worker's log says."""
    assert process.stdout is not None
    times, log, ready = [], [], False
    timer = threading.Timer(PATIENCE, kill, [process])
    timer.start()
    try:
        for line in process.stdout:
            log.append(line)
            if line.endswith(" ready.\n"):
                ready = True
                timer.cancel()
                timer = threading.Timer(bound, kill, [process])
                timer.start()
            elif failed := FAILED.search(line):
                raise NoAnswer(f"fails: {failed[1]}")
            elif succeeded := SUCCEEDED.search(line):
                times.append((time.monotonic(), float(succeeded[1])))
                if len(times) == TASKS:
                    return times
    finally:
        timer.cancel()
    if ready and not times and process.wait() == -signal.SIGKILL:
        raise NoAnswer("hangs")
    raise CompareError(f"{len(times)} of {TASKS} tasks answered; the end of the worker's log:\n{''.join(log[-30:])}")


def set_environment(folder: str) -> None:
    """For all that is started: the apps, and nothing of the user's own Celery or Keras."""
    for name in [name for name in os.environ if name.startswith(("CELERY_", "KERAS_"))]:
        del os.environ[name]
    os.environ |= {
        "PYTHONPATH": os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "KERAS_HOME": folder,  # Keras writes a keras.json
        "XDG_CACHE_HOME": os.path.join(folder, "cache"),  # the worker keeps the model's pack there
        "TMPDIR": folder,  # kombu moves each message there before it reads it
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    os.chdir(folder)


def make_model() -> None:
    done = subprocess.run([sys.executable, HERE / "model.py"], check=False, capture_output=True, text=True)
    if done.returncode:
        raise CompareError(f"no model was made:\n{done.stderr}")


def print_table(ways: list[int], bound: float) -> None:
    print("time to the first answer, time of a later task, private memory of the processes that predict:\n")
    print("| | way | before | after |\n|---|---|---|---|", flush=True)
    for number in ways:
        name, before, after = WAYS[number]
        print(f"| {number} | {name} | {outcome(before, bound)} | {outcome(after, PATIENCE)} |", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ways", type=int, nargs="+", choices=WAYS, default=list(WAYS), help="all unless said")
    parser.add_argument("--bound", type=float, default=20.0, help="seconds until before hangs (20)")
    options = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)  # raises KeyboardInterrupt
    with tempfile.TemporaryDirectory(prefix="migration-") as folder:
        set_environment(folder)
        try:
            make_model()
            print_table(options.ways, options.bound)
        except CompareError as exc:
            print(exc, file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("\ninterrupted", file=sys.stderr)
            return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
