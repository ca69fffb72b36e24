"""The code that people have, unchanged, under stock prefork and under ours: when does it answer, if it does?

    python benchmarks/as_written.py [--bound 20]

Runs the apps of tests/apps/as_written with a model of 64 MB, two children and a Redis of its own, on the Celery of
this interpreter, and prints a table.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import celery
import programs
import psutil
from celery import Celery
from celery.exceptions import TimeoutError as NoAnswer

ROOT = Path(__file__).parent.parent
APPS = ROOT / "tests" / "apps" / "as_written"
#: Module → what people call it.
WAYS = {
    "global_model": "a global beside the task",
    "with_graph": "the same `with graph.as_default()`",
    "task_class": "`Task.__init__`",
    "lazy_property": "a property that loads it once",
    "two_models": "two models in one module",
    "flask_app": "a Flask app that also serves",
    "mysite": "Django's `AppConfig.ready`",
    "prepared": "compiled after it was loaded",
}
OURS = "celery_tfpool:TFPrefork"
#: Seconds until a worker must be ready.
PATIENCE = 120.0
#: Tasks of a round: enough that both children get some.
TASKS = 8


def outcome(app: str, pool: str, model: str, url: str, bound: float) -> str:
    """What came of the app's tasks, in words."""
    settings = {"broker_url": url, "result_backend": url, "task_default_queue": f"{app}-{pool}"}
    environ = programs.environment() | {"TFPOOL_TEST_CONF": json.dumps(settings), "MODEL": model, "OTHER_MODEL": model}
    environ["PYTHONPATH"] = os.pathsep.join([str(APPS), environ["PYTHONPATH"]])
    client = Celery("client", set_as_current=False)
    client.conf.update(settings)
    with tempfile.NamedTemporaryFile("w+", suffix=".log") as log:
        command = [sys.executable, "-m", "celery", "-A", app, "worker", f"--pool={pool}", "-c", "2", "-l", "INFO"]
        started = time.monotonic()
        process = subprocess.Popen(
            [*command, *programs.SILENCE], env=environ, cwd=APPS, stdout=log, stderr=log, start_new_session=True
        )
        try:
            wait_until_ready(process, Path(log.name))
            results = [client.send_task("proj.predict", [[1.0] * 16]) for _ in range(TASKS)]
            return answered(results, process, started, bound)
        finally:
            os.killpg(process.pid, 9)
            process.wait()


def wait_until_ready(process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while " ready.\n" not in log.read_text(errors="replace"):
        if process.poll() is not None or time.monotonic() > deadline:
            raise programs.Failed(f"the worker is not ready: {log.read_text(errors='replace')[-1000:]}")
        time.sleep(0.05)


def answered(results: list[Any], process: subprocess.Popen[bytes], started: float, bound: float) -> str:
    try:
        results[0].get(timeout=bound)
        first = time.monotonic() - started
        for result in results[1:]:
            result.get(timeout=bound)
    except NoAnswer:
        return "hangs"
    except Exception as exc:  # whatever the task raised
        return f"fails: {type(exc).__name__}"
    children = psutil.Process(process.pid).children()
    private = [child.memory_full_info().uss / 1e6 for child in children if child.is_running()]
    return f"{first:.1f} s, {sum(private) / len(private):.0f} MB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bound", type=float, default=20.0, help="seconds until what does not answer hangs (20)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="as-written-") as folder, programs.redis() as url:
        os.environ["XDG_CACHE_HOME"] = folder
        subprocess.run([sys.executable, ROOT / "examples" / "migration" / "model.py"], cwd=folder, check=True)
        model = str(Path(folder, "model.keras"))
        print(
            f"Celery {celery.__version__}, Python {sys.version.split()[0]}: from the start of the worker to the first"
        )
        print("answer, and the private memory of a child once all have answered.\n")
        print("| the app | prefork | TFPrefork |\n|---|---|---|", flush=True)
        for app, title in WAYS.items():
            cells = [outcome(app, pool, model, url, options.bound) for pool in ("prefork", OURS)]
            gc.collect()  # results, while their Redis is there
            print(f"| {title} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
