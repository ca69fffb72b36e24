"""A transcript: `MODEL = load_model(path)` at module level, under stock prefork and under ours.

    python benchmarks/fork_hang.py

Runs a real worker on the filesystem broker for each line, with the Celery of
this interpreter, and says what came of one task within 20 seconds.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import celery
from celery import Celery
from celery.exceptions import TimeoutError as NoAnswer

#: Seconds from the start of the worker; it imports TensorFlow, and so does a spawned child.
PATIENCE = 60.0
FOLDERS = ("data_folder_in", "data_folder_out", "control_folder")

APP = """\
import numpy as np
from celery import Celery
from celery_tfpool import get_model
{model}
app = Celery("app")
app.config_from_object("conf")

@app.task(name="predict")
def predict():
    return float(MODEL.predict(np.ones((1, 16)))[0][0])
"""
MODULE_LEVEL = "from keras.models import load_model; MODEL = load_model('model.keras')"
HANDLE = "MODEL = get_model()"

CONF = """\
broker_url = "filesystem://"
broker_transport_options = {options!r}
result_backend = "file://" + {results!r}
worker_redirect_stdouts = False
tf_model_path = "model.keras"
"""
MAKE_MODEL = """\
import keras
layers = [keras.layers.Input((16,)), keras.layers.Dense(1, kernel_initializer="ones")]
keras.Sequential(layers).save("model.keras")
"""


def main() -> None:
    """Print one line for each way of running the app."""
    for model, pool in (
        (MODULE_LEVEL, "prefork"),
        (MODULE_LEVEL, "celery_tfpool:TFPrefork"),
        (HANDLE, "celery_tfpool:TFPrefork"),
    ):
        print(f"\nCelery {celery.__version__}, --pool={pool}, {model!r}")
        with tempfile.TemporaryDirectory() as folder, worker(Path(folder), model, pool) as (process, client):
            print("  " + outcome(process, client))
            process.send_signal(signal.SIGTERM)
            show_guard(Path(folder, "log").read_text())


@contextlib.contextmanager
def worker(folder: Path, model: str, pool: str) -> Iterator[tuple[subprocess.Popen[bytes], Celery]]:
    queue, results = folder / "queue", folder / "results"
    queue.mkdir()
    results.mkdir()
    (folder / "app.py").write_text(APP.format(model=model))
    (folder / "conf.py").write_text(CONF.format(options=dict.fromkeys(FOLDERS, str(queue)), results=str(results)))
    path = os.pathsep.join([str(folder), str(Path(__file__).parent / "lean")])
    environ = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": path, "XDG_CACHE_HOME": str(folder / "cache")}
    subprocess.run([sys.executable, "-c", MAKE_MODEL], cwd=folder, env=environ, check=True, stderr=subprocess.DEVNULL)
    client = Celery("client", broker="filesystem://", backend=f"file://{results}", set_as_current=False)
    client.conf.broker_transport_options = dict.fromkeys(FOLDERS, str(queue))
    with open(folder / "log", "wb") as log:
        command = [sys.executable, "-m", "celery", "-A", "app", "worker", "-c", "1", f"--pool={pool}"]
        process = subprocess.Popen(command, cwd=folder, env=environ, stdout=log, stderr=log, start_new_session=True)
    try:
        yield process, client
    finally:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def outcome(process: subprocess.Popen[bytes], client: Celery) -> str:
    result = client.send_task("predict")
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with contextlib.suppress(NoAnswer):
            return f"the task answers {result.get(timeout=1)}"
        if process.poll() is not None:
            return f"the worker refuses to start, exit code {process.returncode}"
    return f"HANGS: no answer within {PATIENCE:g} s"


def show_guard(log: str) -> None:
    for line in log.splitlines():
        if "TensorFlow was initialised" in line:
            print("  it says: " + line[line.index("TensorFlow was") :])


if __name__ == "__main__":
    main()
