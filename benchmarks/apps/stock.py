"""Stock prefork, the usual recipe: load in `worker_process_init`, `model.predict` in the task."""

from __future__ import annotations

from celery.signals import worker_process_init
from recipe import PATHS, add_tasks, celery_app

app = celery_app(__name__)
models = {}


@worker_process_init.connect
def load(**_: object) -> None:
    import keras

    models.update({name: keras.models.load_model(path) for name, path in PATHS.items()})


add_tasks(app, lambda name, x: models[name].predict(x, verbose=0))
