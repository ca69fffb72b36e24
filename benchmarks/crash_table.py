"""The crash table: each fault in each place, what its task sees, and after how many seconds.

    python benchmarks/crash_table.py

Starts a real worker for each row, with one child and a Redis of its own.
Writes ``benchmarks/results/crashes.md``.
"""

from __future__ import annotations

import os
import signal
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

sys.path.insert(0, str(Path(__file__).parent / "apps"))
os.environ.setdefault("BENCH_REDIS", "")  # the app's module is imported here for its constants only

import programs
from celery import Celery
from contestants import Contestant
from crashes import RESPONSE_TIMEOUT
from programs import Worker
from tabulate import tabulate
from tqdm import tqdm
from trapped import CRASH, EXIT, KILL, RAISE, seconds

RESULT = Path(__file__).parent / "results" / "crashes.md"
#: Seconds until an outcome must be there; of a slow call, and into it, when something is killed.
PATIENCE, SLOW_SECONDS, INTO = 60.0, 2.0, 0.5
ANSWER, NOTHING = "its answer", "nothing"
FINE, SLOW, HANG = 21.0, seconds(SLOW_SECONDS), seconds(99)

POOL = "celery_tfpool:TFPrefork"
MODES = {
    "in the child": Contestant("", "crashes", pool=POOL),
    "by a predictor": Contestant("", "crashes", pool=POOL, variables={"BENCH_PREDICTORS": "1"}),
}


def kill_children(stats: dict[str, Any]) -> None:
    for pid in stats["pool"]["processes"]:
        os.kill(pid, signal.SIGKILL)


def kill_predictors(stats: dict[str, Any]) -> None:
    for one in stats["tfpool"]["predictors"]:
        os.kill(one["pid"], signal.SIGKILL)


#: What happens; the input of the task; whom to kill while it is computed, or before it is sent.
FAULTS: list[tuple[str, float, Callable[[dict[str, Any]], None] | None, bool]] = [
    ("nothing (for comparison)", FINE, None, False),
    ("the model raises", RAISE, None, False),
    ("the call ends its process, exit(3)", EXIT, None, False),
    ("the call kills its process, SIGKILL", KILL, None, False),
    ("the call crashes, SIGSEGV", CRASH, None, False),
    ("the call never returns", HANG, None, False),
    ("the child is killed while its task waits or computes", SLOW, kill_children, True),
    ("the idle child is killed, then a task is sent", FINE, kill_children, False),
    ("the predictor is killed while it computes", SLOW, kill_predictors, True),
    ("the idle predictor is killed, then a task is sent", FINE, kill_predictors, False),
]


def main() -> None:
    lines = []
    cases = [(fault, mode) for fault in FAULTS for mode in MODES if fault[2] is not kill_predictors or "pred" in mode]
    with programs.redis() as url:
        app = Celery("crashes", broker=url, backend=url)
        for fault, mode in tqdm(cases, unit="fault", disable=None):
            queue = f"crashes-{uuid4().hex[:8]}"
            variables = {"BENCH_REDIS": url}
            with programs.worker(queue, MODES[mode], concurrency=1, variables=variables) as worker:
                lines.append([fault[0], mode, *row(app, worker, *fault[1:])])
    headers = ["what happens", "predicted", "what the task sees", "after s", "a later task is answered after s"]
    table = tabulate(lines, headers, tablefmt="github", disable_numparse=True)
    RESULT.write_text(
        "# Each fault in each place\n\n"
        f"`python benchmarks/crash_table.py`, {time.strftime('%Y-%m-%d')}: one child, `tf_response_timeout` = "
        f"{RESPONSE_TIMEOUT:g} s. Seconds count from the fault, which for a task that brings it is when the task is "
        f"sent. A slow call takes {SLOW_SECONDS:g} s and is hit after {INTO:g} s.\n\n{table}\n"
    )
    print(RESULT.read_text())


def row(
    app: Celery, worker: Worker, value: float, kill: Callable[[dict[str, Any]], None] | None, while_it_runs: bool
) -> list[str]:
    outcome(send(app, worker, FINE), worker)  # all is up, and has predicted
    stats = app.control.inspect(destination=[worker.node], timeout=5).stats()[worker.node]
    started = time.perf_counter()
    if kill is not None and not while_it_runs:
        kill(stats)
        time.sleep(INTO)  # a task that worker main gives to a dead child before it has noticed is lost with it
    result = send(app, worker, value)
    if kill is not None and while_it_runs:
        time.sleep(INTO)
        started = time.perf_counter()
        kill(stats)
    seen = outcome(result, worker)
    after = time.perf_counter() - started
    if seen == NOTHING:
        return [f"nothing within {PATIENCE:g} s; `time_limit` would end it", "—", "—"]
    failed = 0
    while outcome(send(app, worker, FINE), worker) != ANSWER:
        failed += 1
    again = f"{time.perf_counter() - started:.2f}"
    return [seen, f"{after:.2f}", f"{again}, after {failed} more that failed" if failed else again]


def send(app: Celery, worker: Worker, value: float) -> Any:
    return app.send_task("double", args=[value], queue=worker.queue)


def outcome(result: Any, worker: Worker) -> str:
    """What its task came to."""
    try:
        answer = result.get(timeout=PATIENCE)
    except Exception as exc:
        if type(exc).__name__ == "TimeoutError":
            return NOTHING
        worker.check()
        # TensorFlow's errors do not keep their message in `args`, which is all that Celery sends.
        text = " ".join(str(exc).split()) or "its message is in the traceback"
        return f"`{type(exc).__name__}`: {textwrap.shorten(text, 200, placeholder=' …')}"
    return ANSWER if answer in (2 * FINE, 2 * SLOW) else f"a wrong answer: {answer}"


if __name__ == "__main__":
    main()
