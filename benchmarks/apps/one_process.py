"""Threads, solo or gevent: the model at module level, loaded once, with a compiled call."""

from __future__ import annotations

import keras
from recipe import PATHS, add_tasks, celery_app, compiled

app = celery_app(__name__)
calls = {name: compiled(keras.models.load_model(path)) for name, path in PATHS.items()}

add_tasks(app, lambda name, x: calls[name](x))
