"""Tasks per second, and seconds from send to result."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from contestants import NOOP, PLAIN_LOOP, Contestant
from programs import Worker
from session import Session, compare, spread, tasks
from traffic import Client, Window

ALL_MODELS = ("mlp", "dense4", "lstm", "mobilenet")
#: 32 processes with all four take the stock recipe five minutes to start.
SMALLEST_AND_LARGEST = ("mlp", "mobilenet")
#: As fast as the stock recipe, and minutes more to start.
NOT_WITH_32 = "spawn"
IN_FLIGHT = 32
BURST = 64
#: Workers of so many children are kept side by side and measured in turns; larger ones do not fit into 24 GB together.
TOGETHER = 2


def run(session: Session) -> None:
    models = ("mlp", "lstm") if session.quick else ALL_MODELS
    sizes = (2,) if session.quick else (2, 8, 32)
    contestants = {**session.contestants(), "noop": NOOP}
    groups = []
    for children in sizes:
        ours = {key: c for key, c in contestants.items() if children == sizes[0] or not c.solo}
        if children == 32 and ours.pop(NOT_WITH_32, None):
            reason = "not measured: as with 8, and takes minutes to start"
            session.rows.append({"contestant": NOT_WITH_32, "children": children, "failed": reason})
        groups += [(children, ours)] if children <= TOGETHER else [(children, {key: c}) for key, c in ours.items()]
    # Many children take minutes to start.
    rounds = 1 if session.quick else 3
    steps = [len(group) * (1 + (rounds if children <= TOGETHER else 1)) for children, group in groups]
    session.steps(1 + sum(steps))
    _plain_loop(session, models)
    for children, group in groups:
        some = SMALLEST_AND_LARGEST if children == 32 else models
        _measure(session, group, children, some, rounds if children <= TOGETHER else 1)


def _measure(session: Session, group: dict[str, Contestant], children: int, models: Sequence[str], rounds: int) -> None:
    windows: dict[tuple[str, str, str], list[Window]] = defaultdict(list)
    with contextlib.ExitStack() as workers:
        ready: dict[str, tuple[Worker, Client]] = {}
        for key, contestant in group.items():
            session.step(f"{key}, {children} children: starts")
            with session.failing(contestant=key, children=children):
                started = session.worker(key, contestant, children=children, models=models)
                worker, client = workers.enter_context(started)
                for model in models if contestant.task == "predict" else ():
                    session.meet(worker, client, model, 1 if contestant.solo else children)
                    session.prove(worker, client, model)
                ready[key] = worker, client
        for turn in range(rounds):
            for key, (worker, client) in list(ready.items()):
                session.step(f"{key}, {children} children: round {turn + 1} of {rounds}")
                with session.failing(contestant=key, children=children):
                    del ready[key]  # out, unless it comes through
                    for model in models if group[key].task == "predict" else models[:1]:
                        loop, burst = _round(session, group[key].task, model, worker, client)
                        windows[key, model, "loop"].append(loop)
                        windows[key, model, "burst"].append(burst)
                    ready[key] = worker, client
    for key in ready:
        for model in models:
            if windows[key, model, "loop"]:
                row = _row(windows[key, model, "loop"], windows[key, model, "burst"])
                session.rows.append({"contestant": key, "children": children, "model": model, **row})


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


TITLE = "Tasks per second, and latency from send to result"
