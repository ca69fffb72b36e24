"""From `celery worker` to every child's first answer, and from the SIGKILL of a child to its replacement's."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence

import psutil
from contestants import CONTESTANTS, Contestant
from programs import Failed, Worker
from session import Session, spread
from traffic import Client

TITLE = "Seconds until every child has given its first answer"
#: What they show is the same with any model, or with any number of children.
TOLD_BY_ONE_MODEL = ("spawn", "batches", "unshared", "first")
TOLD_BY_TWO_CHILDREN = ("spawn", "server", "unshared", "first")
#: Seconds until worker main must have noticed that a child is gone.
PATIENCE = 60.0


def run(session: Session) -> None:
    models = ("resnet50",) if session.quick else ("resnet50", "dense400")
    cases = [
        (model, children, key)
        for model in models
        for children in ((2,) if session.quick else (2, 8))
        for key, contestant in session.contestants(quick=("stock", "tfpool")).items()
        if _tells(key, contestant, model, children)
    ]
    _make_packs(session, models)
    # Once each: a start takes up to a minute, and with eight children is eight samples of one.
    session.steps(1 + len(cases))
    for model, children, key in cases:
        session.step(f"{key}, {model}, {children} children")
        with session.failing(contestant=key, model=model, children=children):
            start, again = _start(session, key, CONTESTANTS[key], model, children)
            row = {"contestant": key, "model": model, "children": children, "start": spread([start])}
            session.rows.append({**row, "replacement": None if again is None else spread([again])})


def _tells(key: str, contestant: Contestant, model: str, children: int) -> bool:
    """Whether this case tells anything that the others do not, in a minute of starting it."""
    if children > 2 and (contestant.one_process or key in TOLD_BY_TWO_CHILDREN):
        return False
    return key not in TOLD_BY_ONE_MODEL or model == "resnet50"


def _make_packs(session: Session, models: Sequence[str]) -> None:
    """One start that does not count: packs are made once, and the contestant "first" tells what that takes."""
    session.step("tfpool: makes its packs")
    with (
        session.failing(contestant="tfpool"),
        session.worker("tfpool", CONTESTANTS["tfpool"], children=1, models=models) as (worker, client),
    ):
        session.meet(worker, client, models[0], 1)


def _start(session: Session, key: str, contestant: Contestant, model: str, children: int) -> tuple[float, float | None]:
    """Seconds until all have answered, and until the replacement of a killed child has; None where no child can die."""
    with session.worker(key, contestant, children=children, models=[model]) as (worker, client):
        count = 1 if contestant.solo else children
        pids = session.meet(worker, client, model, count)
        started = time.perf_counter() - worker.celery.started
        if contestant.one_process:
            return started, None
        return started, _replace(session, worker, client, model, pids)


def _replace(session: Session, worker: Worker, client: Client, model: str, pids: list[int]) -> float:
    victim = psutil.Process(pids[0])
    killed = time.perf_counter()
    os.kill(pids[0], signal.SIGKILL)
    # A task that is sent before worker main has noticed may be written to the dead child and fail.
    _await_end(victim)
    if pids[0] in session.meet(worker, client, model, len(pids)):
        raise Failed(f"the killed child {pids[0]} answered")
    return time.perf_counter() - killed


def _await_end(process: psutil.Process) -> None:
    deadline = time.monotonic() + PATIENCE
    while process.is_running():  # a zombie until worker main has noticed
        if time.monotonic() > deadline:
            raise Failed(f"worker main has not noticed for {PATIENCE:g} s that a child was killed")
        time.sleep(0.01)
