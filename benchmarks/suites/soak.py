"""Memory of every process of a worker under steady load, for ten minutes."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from random import Random
from typing import Any

from contestants import CONTESTANTS, Contestant
from programs import Worker
from session import Session
from traffic import Client

TITLE = "Private memory of each kind of process of a worker under steady load"
MODELS = ("mlp", "lstm")
CHILDREN, IN_FLIGHT, MOST_ROWS = 8, 32, 32


def run(session: Session) -> None:
    windows, seconds = (4, 5.0) if session.quick else (20, 30.0)
    keys = session.only or ("predictors",)
    session.steps(len(keys) * windows)
    for key in keys:
        with session.failing(contestant=key):
            _load(session, key, CONTESTANTS[key], windows, seconds)


def _load(session: Session, key: str, contestant: Contestant, windows: int, seconds: float) -> None:
    with session.worker(key, contestant, children=CHILDREN, models=MODELS) as (worker, client):
        for model in MODELS:
            session.meet(worker, client, model, CHILDREN)
            session.prove(worker, client, model)
        children = session.meet(worker, client, MODELS[0], CHILDREN)
        done = 0
        for window in range(windows + 1):
            if window:
                session.step(f"{key}: {window * seconds:.0f} of {windows * seconds:.0f} s")
            done += _window(worker, client, seconds if window else 1.0)
            session.rows.append(
                {"contestant": key, "seconds": window * seconds, "tasks": done, **_sizes(worker, children)}
            )


def _window(worker: Worker, client: Client, seconds: float) -> int:
    """How many tasks were served."""
    return client.closed_loop(worker.queue, "many", _mixed(), in_flight=IN_FLIGHT, seconds=seconds).tasks


def _mixed() -> Iterator[Any]:
    """Tasks of both models, with changing numbers of rows."""
    random = Random(1)
    for number in count():
        yield MODELS[number % 2], [random.randint(1, MOST_ROWS)]


def _sizes(worker: Worker, children: list[int]) -> dict[str, int]:
    """Private bytes of worker main, of all its children, and of what else it has started; and the PSS of all."""
    memory = worker.memory()
    main = worker.celery.process.pid
    others = [size for pid, size in memory.private.items() if pid != main and pid not in children]
    return {
        "main": memory.private[main],
        "children": sum(memory.private[pid] for pid in children),
        "others": sum(others),
        "pss": memory.pss,
    }
