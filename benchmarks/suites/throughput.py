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
#: Two rounds of all four models take six minutes; who is as fast as the stock recipe is measured on one.
ROUNDS, AS_FAST_AS_STOCK = 2, ("spawn",)
ALL_MODELS = ("mlp", "dense4", "lstm", "mobilenet")
IN_FLIGHT = 32
BURST = 32


@dataclass(frozen=True, eq=False)
class Entry:
    """A contestant with so many children, measured on these models in so many rounds."""

    key: str
    contestant: Contestant
    children: int
    models: Sequence[str]
    rounds: int = 1


def run(session: Session) -> None:
    models = ("mlp", "lstm") if session.quick else ALL_MODELS
    quick = ("stock", "expert", "threads", "batches", "server", "tfpool", "predictors")
    contestants = {**session.contestants(quick=quick), "noop": NOOP}
    two = [
        Entry(key, contestant, 2, models[:1] if key in AS_FAST_AS_STOCK else models, 1 if session.quick else ROUNDS)
        for key, contestant in contestants.items()
    ]
    eight = [
        Entry(key, contestant, 8, models, ROUNDS)
        for key, contestant in contestants.items()
        if not contestant.solo and key not in AS_FAST_AS_STOCK
    ]
    measure(session, [two] if session.quick else [two, eight])


def measure(session: Session, groups: Sequence[Sequence[Entry]]) -> None:
    """The plain loop, then one group of entries after another, the workers of each side by side and in turns."""
    session.steps(1 + sum(1 + entry.rounds for entries in groups for entry in entries))
    _plain_loop(session, list(dict.fromkeys(model for group in groups for entry in group for model in entry.models)))
    for entries in groups:
        _measure(session, entries)


def _measure(session: Session, entries: Sequence[Entry]) -> None:
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
        for turn in range(max(entry.rounds for entry in entries)):
            for entry, (worker, client) in list(ready.items()):
                if turn >= entry.rounds:
                    continue
                task = entry.contestant.task
                session.step(f"{entry.key}, {entry.children} children: round {turn + 1} of {entry.rounds}")
                with session.failing(contestant=entry.key, children=entry.children):
                    del ready[entry]  # out, unless it comes through
                    for model in entry.models if task == "predict" else entry.models[:1]:
                        loop, burst = _round(session, task, model, worker, client)
                        windows[entry, model, "loop"].append(loop)
                        windows[entry, model, "burst"].append(burst)
                    ready[entry] = worker, client
        for worker, _ in ready.values():  # all at once: to end takes each some seconds
            worker.celery.process.terminate()
    for entry in ready:
        for model in entry.models:
            if windows[entry, model, "loop"]:
                row = _row(windows[entry, model, "loop"], windows[entry, model, "burst"])
                session.rows.append({"contestant": entry.key, "children": entry.children, "model": model, **row})


def _round(session: Session, task: str, model: str, worker: Worker, client: Client) -> tuple[Window, Window]:
    arguments, seconds = tasks(model), 0.5 if session.quick else 0.7
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
        best = session.run("plain_loop.py", "0.2" if session.quick else "0.5", models=models)
        for model, (rate, how, answers) in best.items():
            compare(model, answers, 0)
            rates = {"median": rate, "min": rate, "max": rate}
            session.rows.append({"contestant": "plain", "model": model, "tasks_per_second": rates, "how": how})
