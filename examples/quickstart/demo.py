"""The whole story in half a minute: train a model, queue images, start a worker, collect its predictions.

``python demo.py [--images N]`` needs no server.  This process does not import
TensorFlow, the training and the worker do.  Every file is in one temporary
folder, every process that is started is stopped, also after an error or Ctrl+C.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from celery.exceptions import TimeoutError as NoAnswerYet
from tqdm import tqdm
from train import split

HERE = Path(__file__).parent
WORKER = (
    "celery -A digits worker --pool=celery_tfpool:TFPrefork --concurrency=2 "
    "--loglevel=INFO --without-gossip --without-mingle"
)
#: Seconds until the worker is ready, until a task is answered, and until the worker has stopped.
PATIENCE = 120.0
MIN_ACCURACY = 0.9
#: Each of them ends the demo as Ctrl+C does.
INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: Grey levels 0 … 16, two of them for each character.
INK = " .:-=+*#%"


class DemoError(Exception):
    """The demo did not work; the text says what did not."""


@dataclass(frozen=True)
class Answers:
    """What the worker answered, in the order of the images, and how fast; times are seconds."""

    digits: list[int]
    #: From the worker's readiness to the last answer.
    total: float
    #: From the first answer to the last, wherever among the images they are.
    answering: float

    @property
    def per_second(self) -> float:
        """The rate once the model is loaded."""
        return (len(self.digits) - 1) / self.answering


@contextmanager
def interrupts_deferred() -> Iterator[None]:
    """Raise KeyboardInterrupt at the end of the block, and not in it."""
    came: list[int] = []
    before = {number: signal.signal(number, lambda number, _: came.append(number)) for number in INTERRUPTS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        raise KeyboardInterrupt


@contextmanager
def started(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a session of its own, so that Ctrl+C reaches only this one; killed if it outlives the block."""
    process = None
    try:
        with interrupts_deferred():  # Popen could be interrupted after the fork, and nobody would know the process
            process = subprocess.Popen(command, cwd=HERE, stdin=subprocess.DEVNULL, start_new_session=True, **options)
        yield process
    finally:
        if process and process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


class Worker:
    """The process of a `WORKER`, whose output goes to ``log``."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self._log = log
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        """Copy the output until nobody is left who could write it: worker and children have ended."""
        assert self.process.stdout is not None
        with self._log.open("wb", buffering=0) as log, self.process.stdout as output:
            for line in output:
                log.write(line)
                if line.endswith(b" ready.\n"):
                    self._ready.set()
        self._ready.set()  # nobody shall wait for the dead

    def wait_until_ready(self) -> None:
        if not self._ready.wait(PATIENCE):
            raise DemoError(f"the worker was not ready after {PATIENCE:g} s")
        self.check()

    def check(self) -> None:
        if self.process.poll() is not None:
            raise DemoError(f"the worker has ended by itself, with exit code {self.process.returncode}")

    def stop(self) -> None:
        """Let it end as ``kill`` on the command line does."""
        self.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(PATIENCE)
            self._reader.join(10)
        if self._reader.is_alive():
            os.killpg(self.process.pid, signal.SIGKILL)
            raise DemoError("the worker left processes behind, which were killed")


@contextmanager
def running_worker(log: Path) -> Iterator[Worker]:
    """A worker that is ready, and stopped at the end; an error shows the end of its log."""
    command = [sys.executable, "-m", *WORKER.split()]
    try:
        with started(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
            worker = Worker(process, log)
            try:
                worker.wait_until_ready()
                yield worker
            finally:
                worker.stop()
    except Exception:  # whatever it is, the worker may know more
        show_tail(log)
        raise


def show_tail(log: Path, lines: int = 30) -> None:
    print(f"--- the last lines of {log.name}:", *log.read_text(errors="replace").splitlines()[-lines:], sep="\n")


def set_environment(folder: str) -> None:
    """For this process and all that it starts: the app's folder, and nothing of the user's own Celery or Keras."""
    for name in [name for name in os.environ if name.startswith(("CELERY_", "KERAS_"))]:
        del os.environ[name]
    os.environ |= {
        "DIGITS_FOLDER": folder,
        "KERAS_HOME": folder,  # Keras writes a keras.json
        "XDG_CACHE_HOME": folder,  # the worker keeps the model's pack there
        "TMPDIR": folder,  # kombu moves each message there before it reads it
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }


def train_model(folder: Path) -> None:
    log = folder / "train.log"
    command = [sys.executable, "train.py", str(folder / "digits.keras")]
    with log.open("wb") as errors, started(command, stderr=errors) as training:
        code = training.wait()
    if code:
        show_tail(log)
        raise DemoError(f"training failed with exit code {code}")


def send(images: Sequence[Any]) -> list[Any]:
    from digits import classify  # not above: the environment has to be set first

    return [classify.delay(image.tolist()) for image in images]


def collect(results: Sequence[Any], worker: Worker) -> Answers:
    started = time.monotonic()
    digits = [answer(result, worker) for result in tqdm(results, unit="task", ncols=80)]
    total = time.monotonic() - started
    done = [result.date_done for result in results]
    return Answers(digits, total, answering=(max(done) - min(done)).total_seconds())


def answer(result: Any, worker: Worker) -> int:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            value = result.get(timeout=1, interval=0.01, propagate=False)
        except NoAnswerYet:
            worker.check()
            continue
        if result.failed():
            raise DemoError(f"task {result.id} failed: {value!r}")
        return int(value)
    raise DemoError(f"task {result.id} was not answered within {PATIENCE:g} s")


def draw(images: Sequence[Any], captions: Sequence[str]) -> str:
    """The images side by side, as text."""
    rows = ["   ".join("".join(INK[int(grey) // 2] * 2 for grey in image[y]) for image in images) for y in range(8)]
    rows.append("   ".join(f"{caption:^16}" for caption in captions))
    return "\n".join(row.rstrip() for row in rows)


def report(images: Sequence[Any], truth: Sequence[int], answers: Answers) -> float:
    """Print what came out, mistakes first; returns the accuracy."""
    right = [said == true for said, true in zip(answers.digits, truth, strict=True)]
    shown = [i for i, ok in enumerate(right) if not ok][:2]
    shown += [i for i, ok in enumerate(right) if ok][: 4 - len(shown)]
    captions = [f"{answers.digits[i]}" if right[i] else f"{answers.digits[i]} (it is {truth[i]})" for i in shown]
    accuracy = sum(right) / len(right)
    print("\n" + draw([images[i] for i in shown], captions) + "\n")
    print(f"accuracy: {accuracy:.3f} ({sum(right)} of {len(right)} right)")
    loading = answers.total - answers.answering
    print(f"speed: {answers.per_second:.0f} tasks per second, once the model was loaded ({loading:.1f} s)")
    return accuracy


def run(folder: Path, count: int) -> None:
    print("1. train a model on scikit-learn's handwritten digits", flush=True)
    train_model(folder)
    _, images, _, truth = split()
    images, truth = images[:count], truth[:count]
    print(f"2. queue {len(images)} held-out images as tasks", flush=True)
    # Before the worker runs: kombu's filesystem transport may read a message
    # that is still being written.  A real broker does not mind.
    results = send(images)
    print(f"3. start a worker, and collect its answers\n{WORKER}", flush=True)
    with running_worker(folder / "worker.log") as worker:
        answers = collect(results, worker)
    print("4. the worker is stopped", flush=True)
    accuracy = report(images, truth, answers)
    if accuracy < MIN_ACCURACY:
        raise DemoError(f"the accuracy is below {MIN_ACCURACY}")


def main() -> int:
    held_out = len(split()[1])
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=held_out, metavar="N", help=f"2 to {held_out} (the default)")
    count = parser.parse_args().images
    if not 2 <= count <= held_out:
        parser.error(f"--images must be 2 to {held_out}, got {count}")
    for number in INTERRUPTS:
        signal.signal(number, signal.default_int_handler)  # raises KeyboardInterrupt
    with tempfile.TemporaryDirectory(prefix="digits-demo-") as folder:
        set_environment(folder)
        try:
            run(Path(folder), count)
        except DemoError as exc:
            print(f"the demo failed: {exc}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("\ninterrupted", file=sys.stderr)
            return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
