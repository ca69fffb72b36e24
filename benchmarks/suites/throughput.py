"""Tasks per second, and seconds from send to result."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from contestants import NOOP, PLAIN_LOOP, Contestant
from programs import Worker
from session import Session, compare, spread, tasks
from traffic import Client, Window

TITLE = "Tasks per second, and latency from send to result"
ROUNDS = 2
ALL_MODELS = ("mlp", "dense4", "lstm", "mobilenet")
#: Who is measured on some models only: spawned children are as fast as forked ones, and to wait is for models of which
#: many rows cost little more than one.
ONLY = {"spawn": ("mlp",), "waiting": ("mlp", "dense4", "lstm")}
IN_FLIGHT = 32
BURST = 32
#: Tasks per second that a worker may come near.
NEAR = 200.0


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
    rounds = 1 if session.quick else ROUNDS
    two = entries({key: one for key, one in contestants.items() if key != "waiting"}, 2, models, rounds)
    # One thread computes, or starts take long: the number of children makes no difference.
    eight = [entry for entry in entries(contestants, 8, models, rounds) if entry.key not in ("solo", "gevent", "spawn")]
    measure(session, [two] if session.quick else [two, eight])


def entries(contestants: Mapping[str, Contestant], children: int, models: Sequence[str], rounds: int) -> list[Entry]:
    """Each of them with as many children, on the models that are for it."""
    several = {key: [model for model in models if model in ONLY.get(key, models)] for key in contestants}
    return [Entry(key, contestants[key], children, own, rounds) for key, own in several.items() if own]


def measure(session: Session, groups: Sequence[Sequence[Entry]]) -> None:
    """One group of entries after another, the workers of each side by side and in turns; the plain loop around them."""
    session.steps(2 + sum(1 + entry.rounds for group in groups for entry in group))
    models = list(dict.fromkeys(model for group in groups for entry in group for model in entry.models))
    before = _plain_loop(session, models)
    for group in groups:
        _measure(session, group)
    # Where it comes near, it must not have had the better or the worse minutes.
    after = _plain_loop(session, [model for model, (rate, *_) in before.items() if rate < NEAR])
    for model, (_, how, _) in before.items():
        rates = spread([loop[model][0] for loop in (before, after) if model in loop])
        session.rows.append({"contestant": "plain", "model": model, "tasks_per_second": rates, "how": how})


def _measure(session: Session, group: Sequence[Entry]) -> None:
    windows: dict[tuple[Entry, str, str], list[Window]] = defaultdict(list)
    with contextlib.ExitStack() as workers:
        ready = _start(session, group, workers)
        for turn in range(max(entry.rounds for entry in group)):
            for entry, (worker, client) in list(ready.items()):
                if turn >= entry.rounds:
                    continue
                task = entry.contestant.task
                session.step(f"{entry.key}, {entry.children} children: round {turn + 1} of {entry.rounds}")
                with session.failing(contestant=entry.key, children=entry.children):
                    del ready[entry]  # out, unless it comes through
                    for model in entry.models if task == "predict" else entry.models[:1]:
                        arguments, seconds = tasks(model), 0.5 if session.quick else 0.7
                        windows[entry, model, "loop"].append(
                            client.closed_loop(worker.queue, task, arguments, in_flight=IN_FLIGHT, seconds=seconds)
                        )
                        if not turn:  # of the stock recipe it takes seconds
                            burst = client.burst(worker.queue, task, arguments, count=BURST)
                            windows[entry, model, "burst"].append(burst)
                    ready[entry] = worker, client
        for worker, _ in ready.values():  # all at once: to end takes each some seconds
            worker.celery.process.terminate()
    for entry in ready:
        for model in entry.models:
            if windows[entry, model, "loop"]:
                row = _row(windows[entry, model, "loop"], windows[entry, model, "burst"])
                session.rows.append({"contestant": entry.key, "children": entry.children, "model": model, **row})


def _start(
    session: Session, group: Sequence[Entry], workers: contextlib.ExitStack
) -> dict[Entry, tuple[Worker, Client]]:
    """Those whose workers have started and answer as Keras does; ``workers`` ends them all."""
    begun: list[tuple[Worker, Client] | None] = []
    ready: dict[Entry, tuple[Worker, Client]] = {}
    for number, entry in enumerate(group):
        session.step(f"{entry.key}, {entry.children} children: starts")
        # Most of a start takes one core: the next one starts meanwhile, unless one of the two tries what is fast.
        apart = any("BENCH_PREDICTORS" in one.contestant.variables for one in group[number : number + 2])
        for another in group[len(begun) : number + (1 if apart else 2)]:
            begun.append(None)
            with session.failing(contestant=another.key, children=another.children):
                started = session.worker(
                    another.key, another.contestant, children=another.children, models=another.models
                )
                begun[-1] = workers.enter_context(started)
        if (found := begun[number]) is None:
            continue
        with session.failing(contestant=entry.key, children=entry.children):
            for model in entry.models if entry.contestant.task == "predict" else ():
                session.meet(*found, model, 1 if entry.contestant.solo else entry.children)
                session.prove(*found, model)
            ready[entry] = found
    return ready


def _row(loops: list[Window], bursts: list[Window]) -> dict[str, object]:
    latencies = np.concatenate([window.latencies for window in loops])
    return {
        "tasks_per_second": spread([window.rate for window in loops]),
        "burst_tasks_per_second": spread([window.rate for window in bursts]),
        "latency": {f"p{q}": float(np.percentile(latencies, q)) for q in (50, 95, 99)},
        "samples": len(latencies),
    }


def _plain_loop(session: Session, models: Sequence[str]) -> dict[str, Any]:
    """By model: rows per second, how they were had, and some answers."""
    session.step(PLAIN_LOOP)
    with session.failing(contestant="plain"):
        found: dict[str, Any] = {}
        if models:
            found = session.run("plain_loop.py", "0.2" if session.quick else "0.5", models=models)
        for model, (_, _, answers) in found.items():
            compare(model, answers, 0)
        return found
    return {}
