"""A model server beside Celery: stock prefork, whose tasks ask it over a connection that stays open."""

from __future__ import annotations

import http.client
import os

import numpy as np
from recipe import add_tasks, celery_app

app = celery_app(__name__)
connections: dict[int, http.client.HTTPConnection] = {}


def ask(name: str, x: np.ndarray) -> np.ndarray:
    connection = connections.get(os.getpid())
    if connection is None:
        connection = connections[os.getpid()] = http.client.HTTPConnection(
            "127.0.0.1", int(os.environ["BENCH_SERVER_PORT"])
        )
    connection.request("POST", f"/{name}", x.tobytes())
    reply = connection.getresponse()
    body = reply.read()
    if reply.status != 200:
        raise RuntimeError(f"the model server answered {reply.status}: {body[:200]!r}")
    return np.frombuffer(body, "float32")[None]


add_tasks(app, ask)
