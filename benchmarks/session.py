"""What every suite works with: Redis, a client, model files, started and checked contestants."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import programs
from celery import Celery
from contestants import CONTESTANTS, Contestant
from environments import CannotInstall
from models import payload
from programs import Failed, Worker
from tqdm import tqdm
from traffic import Client

HERE = Path(__file__).parent
MODELS = HERE / ".models"

Row = dict[str, Any]


@dataclass
class Session:
    """One run of a suite."""

    redis: str
    suite: str
    quick: bool
    only: Sequence[str]
    progress: tqdm[Any]
    rows: list[Row] = field(default_factory=list)
    app: Celery = field(init=False)

    def __post_init__(self) -> None:
        self.app = Celery("bench", broker=self.redis, backend=self.redis)

    def contestants(self, quick: Sequence[str] = ()) -> dict[str, Contestant]:
        """Those asked for; else those of ``--quick``, if this is one and it has fewer; else all."""
        ours = [key for key, contestant in CONTESTANTS.items() if self.suite in (contestant.suites or [self.suite])]
        keys = self.only or (quick if self.quick else ()) or ours
        return {key: CONTESTANTS[key] for key in keys}

    def steps(self, number: int) -> None:
        """Say how many steps there will be."""
        self.progress.total = (self.progress.total or 0) + number
        self.progress.refresh()

    def step(self, text: str) -> None:
        """Say that one step begins."""
        self.progress.set_description_str(text)
        self.progress.update()

    @contextlib.contextmanager
    def failing(self, **row: Any) -> Iterator[None]:
        """A contestant that fails is a row that says so, and the suite goes on."""
        try:
            yield
        except Exception as exc:  # whatever goes wrong with one contestant, the others go on
            kind = "" if isinstance(exc, (Failed, CannotInstall)) else f"{type(exc).__name__}: "
            self.rows.append({**row, "failed": kind + " ".join(str(exc).split())})

    @contextlib.contextmanager
    def worker(
        self, key: str, contestant: Contestant, *, children: int, models: Sequence[str]
    ) -> Iterator[tuple[Worker, Client]]:
        """A contestant's worker on a queue of its own, and a client that notices when it has ended."""
        self.build(models)
        queue = f"{key}-{uuid4().hex[:8]}"
        with programs.worker(queue, contestant, concurrency=children, variables=self.variables(models)) as started:
            yield started, Client(self.app, started.check)

    def variables(self, models: Sequence[str]) -> dict[str, str]:
        """The environment variables that ``apps/recipe.py`` reads."""
        return {"BENCH_MODELS": str(MODELS), "BENCH_REDIS": self.redis, "BENCH_LOAD": " ".join(models)}

    def run(self, script: str, *arguments: str, models: Sequence[str]) -> Any:
        """Run a program of ``apps/`` that prints JSON, and return what it printed.

        Raises:
            Failed: it failed.
        """
        self.build(models)
        done = subprocess.run(
            [sys.executable, script, *arguments],
            cwd=programs.APPS,
            env={**programs.environment(), **self.variables(models)},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:] or [f"{script} ended with {done.returncode}"]
            raise Failed(last[0])
        return json.loads(done.stdout)

    def build(self, models: Sequence[str]) -> None:
        """Make the files of these models, if they are not there."""
        MODELS.mkdir(exist_ok=True)
        if not all((MODELS / f"{name}.json").exists() for name in models):
            subprocess.run([sys.executable, HERE / "models.py", MODELS, *models], check=True, stderr=subprocess.DEVNULL)

    def meet(self, worker: Worker, client: Client, model: str, children: int) -> list[int]:
        """Have each child predict once, and compare what they answer; the pids of the children."""
        place = f"meeting-{uuid4().hex}"
        came = client.gather(worker.queue, "meet", [(model, payload(model, 0), children, place)] * children)
        for _, outputs in came:
            compare(model, [outputs], 0)
        return [pid for pid, _ in came]

    def prove(self, worker: Worker, client: Client, model: str) -> None:
        """Compare this contestant's outputs with Keras's own."""
        for number in range(3):
            arguments = [(model, payload(model, number))]
            compare(model, client.gather(worker.queue, "predict", arguments), number)


def compare(model: str, outputs: list[Any], first: int) -> None:
    """Raise `Failed` unless these outputs, of the inputs from ``first`` on, are those of `keras.Model.predict`."""
    expected = np.asarray(json.loads((MODELS / f"{model}.json").read_text())[first : first + len(outputs)])
    worst = np.abs(np.asarray(outputs) - expected).max() / np.abs(expected).max()
    if not worst <= 1e-3:
        raise Failed(f"{model}: outputs differ from Keras's own, relatively by {worst:.2g}")


def tasks(model: str, kinds: int = 50) -> Iterator[tuple[str, Any]]:
    """Arguments of endless tasks, of so many kinds."""
    several = [(model, payload(model, number)) for number in range(kinds)]
    return (several[number % kinds] for number in count())


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, minimum and maximum."""
    return {"median": float(np.median(values)), "min": float(np.min(values)), "max": float(np.max(values))}
