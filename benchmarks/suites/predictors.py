"""Predictors beside what they are measured by, in more rounds than others get: the machine is noisy.

Eight children, with which the stock recipe does best.
"""

from __future__ import annotations

from contestants import CONTESTANTS, NOOP
from session import Session

from .throughput import ALL_MODELS, entries, measure

TITLE = "Predictors: tasks per second, and latency from send to result, in eight rounds"
KEYS = ("stock", "batches", "server", "predictors", "two", "waiting")
CHILDREN, ROUNDS = 8, 8


def run(session: Session) -> None:
    models, rounds = (("mlp", "lstm"), 2) if session.quick else (ALL_MODELS, ROUNDS)
    contestants = {**{key: CONTESTANTS[key] for key in session.only or KEYS}, "noop": NOOP}
    measure(session, [entries(contestants, CHILDREN, models, rounds)])
