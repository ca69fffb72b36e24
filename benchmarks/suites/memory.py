"""PSS of the whole worker, and private bytes of each child, by number of children."""

from __future__ import annotations

import statistics

from contestants import Contestant
from session import Session

TITLE = "Memory of the whole worker (PSS), and private memory of one child"
#: Predictors are meant for many children.
SIZES_OF = {"predictors": (1, 2, 4, 8, 32)}

#: As large as another, or as several copies, with any model.
TOLD_BY_ONE_MODEL = ("solo", "batches")


def run(session: Session) -> None:
    models = ("resnet50",) if session.quick else ("resnet50", "dense400")
    sizes = (1, 2) if session.quick else (1, 2, 4, 8)
    contestants = session.contestants(quick=("stock", "tfpool"))
    cases = [
        (model, key) for model in models for key in contestants if key not in TOLD_BY_ONE_MODEL or model == models[0]
    ]
    session.steps(len(cases))
    for model, key in cases:
        wanted = sizes if session.quick else SIZES_OF.get(key, sizes)
        session.step(f"{key}, {model}: grows from {wanted[0]} to {wanted[-1]}")
        with session.failing(contestant=key, model=model):
            _grow(session, key, contestants[key], model, wanted)


def _grow(session: Session, key: str, contestant: Contestant, model: str, sizes: tuple[int, ...]) -> None:
    # One process is as large with one thread as with many, once all have predicted.
    wanted = (sizes[-1],) if contestant.one_process else sizes
    with session.worker(key, contestant, children=wanted[0], models=[model]) as (worker, client):
        has = wanted[0]
        for children in wanted:
            if children > has:
                node = [f"{worker.queue}@bench"]
                session.app.control.pool_grow(children - has, destination=node, reply=True, timeout=60)
                has = children
            pids = session.meet(worker, client, model, 1 if contestant.solo else children)
            memory = worker.memory()
            row = {"contestant": key, "model": model, "children": None if contestant.one_process else children}
            private = statistics.median(memory.private[pid] for pid in pids)
            session.rows.append({**row, "pss": memory.pss, "private_per_child": private})
