"""`celery-batches`: tasks of the same model gathered by the worker, one compiled call for all of them."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from celery_batches import Batches
from recipe import PATHS, add_tasks, answer, celery_app, compiled, rows

app = celery_app(__name__)
app.conf.worker_prefetch_multiplier = 32  # a batch is gathered from what was prefetched
calls = {name: compiled(keras.models.load_model(path)) for name, path in PATHS.items()}


@app.task(name="predict", base=Batches, flush_every=32, flush_interval=0.01)
def predict(requests: list[Any]) -> None:
    for name in {request.args[0] for request in requests}:
        same = [request for request in requests if request.args[0] == name]
        outputs = calls[name](np.concatenate([rows(name, request.args[1]) for request in same]))
        for request, row in zip(same, outputs, strict=True):
            app.backend.mark_as_done(request.id, answer([row]), request=request)


add_tasks(app, lambda name, x: calls[name](x), batches=True)
