"""The crash table: each fault in each place, what its task and eight innocent ones beside it see, and how soon.

    python benchmarks/crash_table.py

Starts a real worker for each row, with ten children and a Redis of its own.
Writes ``benchmarks/results/crashes.md``.
"""

from __future__ import annotations

import os
import signal
import sys
import textwrap
import time
from collections import Counter
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
#: Seconds of the call during which the others come.
FILLER = 1.0
#: One for each task that is there at a time.
CHILDREN = 10
ANSWER = "its answer"
FINE, SLOW, HANG = 21.0, seconds(SLOW_SECONDS), seconds(99)

POOL = "celery_tfpool:TFPrefork"
MODES = {
    "in the child": Contestant("", "crashes", pool=POOL),
    "by a predictor": Contestant("", "crashes", pool=POOL, variables={"BENCH_PREDICTORS": "1"}),
}


def kill_child(app: Celery, worker: Worker, task: str | None) -> None:
    """The child that has this task, or any."""
    inspect = app.control.inspect(destination=[worker.node], timeout=5)
    if task is None:
        pids = inspect.stats()[worker.node]["pool"]["processes"]
    else:
        pids = [one["worker_pid"] for one in inspect.active()[worker.node] if one["id"] == task]
    os.kill(pids[0], signal.SIGKILL)


def kill_predictor(app: Celery, worker: Worker, _: str | None) -> None:
    stats = app.control.inspect(destination=[worker.node], timeout=5).stats()[worker.node]
    os.kill(stats["tfpool"]["predictors"][0]["pid"], signal.SIGKILL)


Kill = Callable[[Celery, Worker, "str | None"], None]
#: What happens; the input of the task; what is killed while it is computed, or before it is sent.
FAULTS: list[tuple[str, float, Kill | None, bool]] = [
    ("nothing (for comparison)", FINE, None, False),
    ("the model raises", RAISE, None, False),
    ("the call ends its process, exit(3)", EXIT, None, False),
    ("the call kills its process, SIGKILL", KILL, None, False),
    ("the call crashes, SIGSEGV", CRASH, None, False),
    ("the call never returns", HANG, None, False),
    ("the child is killed while its task waits or computes", SLOW, kill_child, True),
    ("an idle child is killed, then tasks are sent", FINE, kill_child, False),
    ("the predictor is killed while it computes", SLOW, kill_predictor, True),
    ("the idle predictor is killed, then tasks are sent", FINE, kill_predictor, False),
]


def main() -> None:
    lines = []
    cases = [(fault, mode) for fault in FAULTS for mode in MODES if fault[2] is not kill_predictor or "pred" in mode]
    with programs.redis() as url:
        app = Celery("crashes", broker=url, backend=url)
        for fault, mode in tqdm(cases, unit="fault", disable=None):
            queue = f"crashes-{uuid4().hex[:8]}"
            variables = {"BENCH_REDIS": url}
            with programs.worker(queue, MODES[mode], concurrency=CHILDREN, variables=variables) as worker:
                lines.append([fault[0], mode, *row(app, worker, *fault[1:])])
    headers = [
        "what happens",
        "predicted",
        "what the task sees",
        "after s",
        "eight beside it",
        "the last after s",
        "predictors that died",
        "a later task is answered after s",
    ]
    table = tabulate(lines, headers, tablefmt="github", disable_numparse=True)
    RESULT.write_text(
        "# Each fault in each place\n\n"
        f"`python benchmarks/crash_table.py`, {time.strftime('%Y-%m-%d')}: {CHILDREN} children, `tf_response_timeout` "
        f"= {RESPONSE_TIMEOUT:g} s. A call of {FILLER:g} s goes first; the task and eight innocent ones come while it "
        "is computed, so that a predictor computes these nine together, and children side by side. Seconds count from "
        "then, or from when something is killed. A slow call "
        f"takes {SLOW_SECONDS:g} s and is hit after {INTO:g} s.\n\n{table}\n"
    )
    print(RESULT.read_text())


def row(app: Celery, worker: Worker, value: float, kill: Kill | None, while_it_runs: bool) -> list[str]:
    meet(app, worker)
    if kill is not None and not while_it_runs:
        kill(app, worker, None)
        time.sleep(INTO)  # a task that worker main gives to a dead child before it has noticed is lost with it
    send(app, worker, seconds(FILLER))
    time.sleep(FILLER / 2)
    started = time.perf_counter()
    guilty = send(app, worker, value)
    others = [send(app, worker, FINE + number) for number in range(1, 9)]
    came: dict[Any, float] = {}
    if kill is not None and while_it_runs:
        collect(app, [guilty, *others], came, FILLER / 2 + INTO)
        started = time.perf_counter()
        kill(app, worker, guilty.id)
    collect(app, [guilty, *others], came, PATIENCE)
    worker.check()
    seen = outcome(guilty, 2 * value) if guilty in came else f"nothing within {PATIENCE:g} s; `time_limit` would end it"
    beside = Counter(outcome(other, 2 * (FINE + number)) for number, other in enumerate(others, 1) if other in came)
    told = ", ".join(f"{number} × {text}" for text, number in beside.most_common())
    last = max([came[other] - started for other in others if other in came], default=0.0)
    after = f"{came[guilty] - started:.2f}" if guilty in came else "—"
    died = str(sum(predictor["restarts"] for predictor in predictors(app, worker))) if predictors(app, worker) else ""
    later = time.perf_counter()
    tried = [send(app, worker, FINE)]
    while True:
        collect(app, tried[-1:], {}, PATIENCE)
        if outcome(tried[-1], 2 * FINE) == ANSWER:
            break
        tried.append(send(app, worker, FINE))
    failed = len(tried) - 1
    again = f"{time.perf_counter() - later:.2f}" + (f", after {failed} more that failed" if failed else "")
    return [seen, after, told, f"{max(last, 0):.2f}", died, again]


def meet(app: Celery, worker: Worker) -> None:
    """All is up, and each child has its model."""
    results = [send(app, worker, seconds(0.2)) for _ in range(4 * CHILDREN)]
    collect(app, results, {}, PATIENCE)
    worker.check()
    assert all(outcome(result, 2 * seconds(0.2)) == ANSWER for result in results), "they could not meet"


def predictors(app: Celery, worker: Worker) -> list[dict[str, Any]]:
    stats = app.control.inspect(destination=[worker.node], timeout=5).stats()[worker.node]
    return list(stats["tfpool"].get("predictors", ()))


def send(app: Celery, worker: Worker, value: float) -> Any:
    return app.send_task("double", args=[value], queue=worker.queue)


def collect(app: Celery, results: list[Any], came: dict[Any, float], patience: float) -> None:
    """Note when each comes, until all are there or the patience is over."""
    end = time.perf_counter() + patience
    while len(came) < len(results) and time.perf_counter() < end:
        for result in results:
            if result not in came and result.ready():
                came[result] = time.perf_counter()
        time.sleep(0.005)


def outcome(result: Any, expected: float) -> str:
    """What its task came to."""
    if result.successful():
        return ANSWER if abs(result.result - expected) < 1e-3 else f"a wrong answer: {result.result}"
    # TensorFlow's errors do not keep their message in `args`, which is all that Celery sends.
    text = " ".join(str(result.result).split()) or "its message is in the traceback"
    return f"`{type(result.result).__name__}`: {textwrap.shorten(text, 200, placeholder=' …')}"


if __name__ == "__main__":
    main()
