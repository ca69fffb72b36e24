"""Tasks per second, and seconds from send to result."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from contestants import NOOP, PLAIN_LOOP, Contestant
from programs import Worker
from session import Session, compare, spread, tasks
from traffic import Client, Window

TITLE = "Tasks per second, and latency from send to result"
ALL_MODELS = ("mlp", "dense4", "lstm", "mobilenet")
IN_FLIGHT = 32
BURST = 64


@dataclass(frozen=True, eq=False)
class Entry:
    """A contestant with so many children, measured on these models."""

    key: str
    contestant: Contestant
    children: int
    models: Sequence[str]


def run(session: Session) -> None:
    models = ("mlp", "lstm") if session.quick else ALL_MODELS
    contestants = {**session.contestants(), "noop": NOOP}
    two = [Entry(key, contestant, 2, models) for key, contestant in contestants.items()]
    eight = [Entry(key, contestant, 8, models) for key, contestant in contestants.items() if not contestant.solo]
    # With two children all workers stand side by side; with eight they do not fit into 24 GB, and take long to start.
    groups = [(two, 1)] if session.quick else [(two, 3), *(([entry], 1) for entry in eight)]
    measure(session, groups)


def measure(session: Session, groups: Sequence[tuple[Sequence[Entry], int]]) -> None:
    """The plain loop, then one group of entries after another, each in so many rounds of turns."""
    session.steps(1 + sum(len(entries) * (1 + rounds) for entries, rounds in groups))
    _plain_loop(session, list(dict.fromkeys(model for group, _ in groups for entry in group for model in entry.models)))
    for entries, rounds in groups:
        _measure(session, entries, rounds)


def _measure(session: Session, entries: Sequence[Entry], rounds: int) -> None:
    windows: dict[tuple[Entry, str, str], list[Window]] = defaultdict(list)
    with contextlib.ExitStack() as workers:
        ready: dict[Entry, tuple[Worker, Client]] = {}
        for entry in entries:
            key, contestant, children, models = entry.key, entry.contestant, entry.children, entry.models
            session.step(f"{key}, {children} children: starts")
            with session.failing(contestant=key, children=children):
                started = session.worker(key, contestant, children=children, models=models)
                worker, client = workers.enter_context(started)
                for model in models if contestant.task == "predict" else ():
                    session.meet(worker, client, model, 1 if contestant.solo else children)
                    session.prove(worker, client, model)
                ready[entry] = worker, client
        for turn in range(rounds):
            for entry, (worker, client) in list(ready.items()):
                task = entry.contestant.task
                session.step(f"{entry.key}, {entry.children} children: round {turn + 1} of {rounds}")
                with session.failing(contestant=entry.key, children=entry.children):
                    del ready[entry]  # out, unless it comes through
                    for model in entry.models if task == "predict" else entry.models[:1]:
                        loop, burst = _round(session, task, model, worker, client)
                        windows[entry, model, "loop"].append(loop)
                        windows[entry, model, "burst"].append(burst)
                    ready[entry] = worker, client
    for entry in ready:
        for model in entry.models:
            if windows[entry, model, "loop"]:
                row = _row(windows[entry, model, "loop"], windows[entry, model, "burst"])
                session.rows.append({"contestant": entry.key, "children": entry.children, "model": model, **row})


def _round(session: Session, task: str, model: str, worker: Worker, client: Client) -> tuple[Window, Window]:
    arguments, seconds = tasks(model), 0.5 if session.quick else 1.0
    return (
        client.closed_loop(worker.queue, task, arguments, in_flight=IN_FLIGHT, seconds=seconds),
        client.burst(worker.queue, task, arguments, count=BURST),
    )


def _row(loops: list[Window], bursts: list[Window]) -> dict[str, object]:
    latencies = np.concatenate([window.latencies for window in loops])
    return {
        "tasks_per_second": spread([window.rate for window in loops]),
        "burst_tasks_per_second": spread([window.rate for window in bursts]),
        "latency": {f"p{q}": float(np.percentile(latencies, q)) for q in (50, 95, 99)},
        "samples": len(latencies),
    }


def _plain_loop(session: Session, models: Sequence[str]) -> None:
    session.step(PLAIN_LOOP)
    with session.failing(contestant="plain"):
        best = session.run("plain_loop.py", "0.3" if session.quick else "1", models=models)
        for model, (rate, how, answers) in best.items():
            compare(model, answers, 0)
            rates = {"median": rate, "min": rate, "max": rate}
            session.rows.append({"contestant": "plain", "model": model, "tasks_per_second": rates, "how": how})
