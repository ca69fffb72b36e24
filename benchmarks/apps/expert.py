"""Stock prefork, the expert's recipe: one thread per child, and a compiled call made once."""

from __future__ import annotations

from celery.signals import worker_process_init
from recipe import PATHS, add_tasks, celery_app, compiled

app = celery_app(__name__)
calls = {}


@worker_process_init.connect
def load(**_: object) -> None:
    import keras
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    calls.update({name: compiled(keras.models.load_model(path)) for name, path in PATHS.items()})


add_tasks(app, lambda name, x: calls[name](x))
