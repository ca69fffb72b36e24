"""What the pool adds to a task that does nothing, and the handle to a prediction."""

from __future__ import annotations

import contextlib

from contestants import NOOP, STOCK_NOOP
from session import Session, spread, tasks

TITLE = "No-op tasks against stock prefork; one prediction, and a model made ready, against Keras's own"
CHILDREN, IN_FLIGHT = 2, 32


def run(session: Session) -> None:
    rounds = 6 if session.quick else 10
    models = ("mlp",) if session.quick else ("mlp", "dense4", "lstm", "mobilenet")
    session.steps(rounds + 2)
    with session.failing(what="no-op tasks"):
        _noop(session, rounds)
    session.step("one prediction: the handle, the compiled call, Keras")
    with session.failing(what="one prediction"):
        for model, ways in session.run("handle_cost.py", "8", models=models).items():
            session.rows += [{"what": model, "way": way, "seconds": spread(seconds)} for way, seconds in ways.items()]
    session.step("a model made ready: loaded by Keras, attached as a pack")
    with session.failing(what="a model made ready"):
        large = ("resnet50",) if session.quick else ("resnet50", "dense400")
        for model, ways in session.run("load_cost.py", "3" if session.quick else "4", models=large).items():
            session.rows += [{"what": model, "way": way, "ready": spread(seconds)} for way, seconds in ways.items()]


def _noop(session: Session, rounds: int) -> None:
    rates: dict[str, list[float]] = {"prefork": [], "TFPrefork": []}
    with contextlib.ExitStack() as workers:
        pools = {}
        for title, contestant in (("prefork", STOCK_NOOP), ("TFPrefork", NOOP)):
            started = session.worker(contestant.app, contestant, children=CHILDREN, models=["mlp"])
            worker, client = pools[title] = workers.enter_context(started)
            client.gather(worker.queue, "noop", [("mlp", 0)] * 200)
        for turn in range(rounds):
            session.step(f"no-op tasks: round {turn + 1} of {rounds}")
            for title in sorted(pools, reverse=turn % 2 == 0):  # neither is always first
                worker, client = pools[title]
                window = client.closed_loop(worker.queue, "noop", tasks("mlp"), in_flight=IN_FLIGHT, seconds=1)
                rates[title].append(window.rate)
    ratios = [ours / theirs for theirs, ours in zip(rates["prefork"], rates["TFPrefork"], strict=True)]
    for title, found in rates.items():
        session.rows.append({"what": "no-op tasks", "way": title, "tasks_per_second": spread(found)})
    session.rows.append({"what": "no-op tasks", "way": "TFPrefork / prefork, by round", "ratio": spread(ratios)})
