"""Private memory of one child over thousands of predictions with changing numbers of rows."""

from __future__ import annotations

from random import Random

from contestants import Contestant
from session import Session

TITLE = "Private memory of one child over 10,000 predictions with changing numbers of rows"
MODEL = "mlp"
#: `keras.Model.predict` takes 60 ms a call: 10,000 calls would take 10 minutes and show nothing that 500 do not.
SLOW, SLOW_SHARE = ("stock",), 20
POINTS, MOST_ROWS = 20, 64


def run(session: Session) -> None:
    contestants = session.contestants(quick=("expert", "tfpool"))
    for key in [key for key, contestant in contestants.items() if contestant.server]:
        session.rows.append({"contestant": key, "failed": "not measured: its children compute nothing"})
        del contestants[key]
    predictions = 1_000 if session.quick else 10_000
    session.steps(len(contestants))
    for key, contestant in contestants.items():
        total = predictions // SLOW_SHARE if key in SLOW else predictions
        session.step(f"{key}: {total} predictions")
        with session.failing(contestant=key):
            _predict(session, key, contestant, total)


def _predict(session: Session, key: str, contestant: Contestant, total: int) -> None:
    random, each = Random(1), total // POINTS
    with session.worker(key, contestant, children=1, models=[MODEL]) as (worker, client):
        # All numbers of rows once, so that what grows afterwards is not what is made once.
        client.gather(worker.queue, "many", [(MODEL, [1, MOST_ROWS, 2])])
        for point in range(POINTS + 1):
            counts = [random.randint(1, MOST_ROWS) for _ in range(each if point else 1)]
            (private,) = client.gather(worker.queue, "many", [(MODEL, counts)])
            session.rows.append({"contestant": key, "predictions": point * each, "private": private})
