"""Tasks per second with 32 children, where batches are full and each copy of a model counts.

Those with one copy of a model for all children stand side by side, and with
them the stock recipe as it does best, with eight.  With 32 it and the expert's
take minutes to start and much memory: alone, with two models.
"""

from __future__ import annotations

from contestants import CONTESTANTS, NOOP
from session import Session

from .throughput import ALL_MODELS, Entry, measure

TITLE = "Tasks per second, and latency from send to result, with 32 children"
CHILDREN, BEST_OF_STOCK, ROUNDS = 32, 8, 3
SMALLEST_AND_LARGEST = ("mlp", "mobilenet")
COPIES = ("stock", "expert")


def run(session: Session) -> None:
    models = ("mlp", "lstm") if session.quick else ALL_MODELS
    contestants = {**session.contestants(quick=("predictors",)), "noop": NOOP}
    together = [Entry("stock", CONTESTANTS["stock"], 2 if session.quick else BEST_OF_STOCK, models)]
    together += [Entry(key, one, CHILDREN, models) for key, one in contestants.items() if key not in COPIES]
    apart = [Entry(key, one, CHILDREN, SMALLEST_AND_LARGEST) for key, one in contestants.items() if key in COPIES]
    measure(session, [(together, 1 if session.quick else ROUNDS), *(([entry], 1) for entry in apart)])
