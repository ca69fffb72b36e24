"""Tasks per second with 32 children, where batches are full and each copy of a model counts.

Those with one copy of a model for all children stand side by side, and with
them the stock recipe as it does best, with eight.  With 32 it has 32 copies
and takes a minute to start: alone, and with the smallest model.
"""

from __future__ import annotations

from contestants import CONTESTANTS, NOOP
from session import Session

from .throughput import ALL_MODELS, Entry, entries, measure

TITLE = "Tasks per second, and latency from send to result, with 32 children"
CHILDREN, BEST_OF_STOCK, ROUNDS = 32, 8, 2


def run(session: Session) -> None:
    models = ("mlp", "lstm") if session.quick else ALL_MODELS
    contestants = {**session.contestants(quick=("predictors",)), "noop": NOOP}
    rounds = 1 if session.quick else ROUNDS
    together = [Entry("stock", CONTESTANTS["stock"], 2 if session.quick else BEST_OF_STOCK, models, rounds)]
    together += [one for one in entries(contestants, CHILDREN, models, rounds) if one.key != "stock"]
    apart = [Entry("stock", CONTESTANTS["stock"], CHILDREN, ["mlp"])]
    measure(session, [together, apart] if "stock" in contestants else [together])
