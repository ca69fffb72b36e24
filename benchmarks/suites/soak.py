"""Memory and descriptors of every process of a worker under steady load, for ten minutes; and of one that leaks.

The second has a model that keeps some bytes of each call.  A soak that does not
see it grow could not see any leak: `wrong` says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from random import Random
from typing import Any

import numpy as np
import psutil
from contestants import CONTESTANTS, Contestant
from programs import Worker
from session import Row, Session
from traffic import Client

TITLE = "Written memory and descriptors of each kind of process of a worker under steady load"
MODELS = ("mlp", "lstm")
CHILDREN, IN_FLIGHT, MOST_ROWS = 8, 32, 32
#: The one that must grow.
CONTROL = "leaky"
#: Kinds of processes, and what they are called.
KINDS = {"main": "worker main", "children": "all children", "others": "predictors and their forkserver"}
#: Growth in MB per minute that is a leak, if it is more than two standard errors.
LEAK = 0.25


def run(session: Session) -> None:
    windows, seconds = (6, 5.0) if session.quick else (20, 30.0)
    keys = session.only or ("predictors", CONTROL)
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
    """Written bytes and descriptors of worker main, of its children together, and of what else it has started."""
    memory = worker.memory()
    main = worker.celery.process.pid
    others = [pid for pid in memory.written if pid != main and pid not in children]
    sizes = {}
    for kind, pids in {"main": [main], "children": children, "others": others}.items():
        sizes[kind] = sum(memory.written[pid] for pid in pids)
        sizes[f"{kind}_descriptors"] = sum(psutil.Process(pid).num_fds() for pid in pids)
    return {**sizes, "pss": memory.pss}


def trend(rows: list[Row], part: str) -> tuple[float, float]:
    """MB per minute in the second half, by least squares, and the standard error of that."""
    half = rows[len(rows) // 2 :]
    minutes = [row["seconds"] / 60 for row in half]
    (slope, _), covariance = np.polyfit(minutes, [row[part] / 1e6 for row in half], 1, cov=True)
    return float(slope), float(np.sqrt(covariance[0, 0]))


def growing(rows: list[Row]) -> list[str]:
    """What of one contestant grows."""
    found = []
    for kind, title in KINDS.items():
        slope, error = trend(rows, kind)
        if slope > LEAK and slope > 2 * error:
            found.append(f"memory of {title}: {slope:+.2f} ± {error:.2f} MB per minute")
        descriptors = [row[f"{kind}_descriptors"] for row in rows[1:]]
        middle = len(descriptors) // 2
        if max(descriptors[middle:]) > max(descriptors[:middle]):
            found.append(f"descriptors of {title}: {max(descriptors[:middle])}, later {max(descriptors[middle:])}")
    return found


def wrong(rows: list[Row]) -> list[str]:
    """What must not be: a worker that grows, or a leak that is not seen."""
    found = [row["failed"] for row in rows if "failed" in row]
    for key in {row["contestant"]: None for row in rows if "failed" not in row}:
        grown = growing([row for row in rows if row["contestant"] == key])
        if key != CONTROL:
            found += [f"{key}: {text}" for text in grown]
        elif not any(KINDS["others"] in text for text in grown):
            found.append(f"{key}: its leak was not seen")
    return found
