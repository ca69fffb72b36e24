"""What is the same in the Celery app of every contestant: the broker, the inputs, the tasks."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np

SHAPES = {
    "mlp": (256,),
    "dense4": (2048,),
    "lstm": (50, 64),
    "mobilenet": (224, 224, 3),
    "resnet50": (224, 224, 3),
    "dense400": (4096,),
}
#: The models that this worker has, and their files.
PATHS = {name: f"{os.environ.get('BENCH_MODELS')}/{name}.keras" for name in os.environ.get("BENCH_LOAD", "").split()}
#: Where workers of TFPrefork keep packs of them.
PACKS = f"{os.environ.get('BENCH_MODELS')}/packs"


def rows(model: str, data: Any) -> np.ndarray:
    """The input of one task, float32 of shape (1, …): as it came, or made from a seed where it would drown the rest."""
    if isinstance(data, list):
        return np.asarray([data], "float32")
    return np.random.default_rng(data).random((1, *SHAPES[model]), "float32")


def answer(outputs: Any) -> list[float]:
    """The result of one task: ten numbers at most."""
    return [float(number) for number in np.asarray(outputs)[0][:10]]


def celery_app(module: str) -> Any:
    """An app on the benchmark's own Redis; spawned children import its module for the tasks."""
    from celery import Celery

    app = Celery("bench", broker=os.environ["BENCH_REDIS"], backend=os.environ["BENCH_REDIS"], include=[module])
    app.conf.update(
        broker_connection_retry_on_startup=True,
        # Stock Celery kills a replacement that imports TensorFlow and loads a model for more than 4 s; whoever
        # has found out raises this.
        worker_proc_alive_timeout=300,
        worker_hijack_root_logger=False,
        worker_pool_start_method=os.environ.get("BENCH_START_METHOD", "fork"),
    )
    return app


def add_tasks(app: Any, predict: Callable[[str, np.ndarray], Any], *, batches: bool = False) -> None:
    """Register the tasks that the suites send, around a recipe's way to predict."""
    if not batches:

        @app.task(name="predict")
        def one(model: str, data: Any) -> list[float]:
            return answer(predict(model, rows(model, data)))

    @app.task(name="noop")
    def noop(model: str, data: Any) -> list[float]:
        return []

    @app.task(name="meet")
    def meet(model: str, data: Any, count: int, place: str) -> tuple[int, list[float]]:
        """Predict, then wait until ``count`` tasks have come so far: by then as many children have answered."""
        outputs = answer(predict(model, rows(model, data)))
        redis = app.backend.client
        if redis.incr(f"{place}.count") >= count:
            redis.rpush(f"{place}.open", *range(count))
        redis.blpop([f"{place}.open"], timeout=600)
        return os.getpid(), outputs

    @app.task(name="many")
    def many(model: str, counts: list[int]) -> int:
        """Predict with so many rows, one number after another; the private bytes of this process afterwards."""
        for count in counts:
            predict(model, np.resize(rows(model, 0), (count, *SHAPES[model])))
        with open("/proc/self/smaps_rollup") as facts:
            fields = {name: int(rest.split()[0]) for name, rest in (line.split(":") for line in list(facts)[1:])}
        return 1024 * (fields["Private_Clean"] + fields["Private_Dirty"])


def compiled(model: Any) -> Callable[[np.ndarray], np.ndarray]:
    """The expert's call: one `tf.function` for any number of rows, traced once."""
    import tensorflow as tf

    signature = [tf.TensorSpec((None, *model.input_shape[1:]), "float32")]
    # Traced here and not at the first call, which in a greenlet would let others run in the middle of it.
    function = tf.function(lambda x: model(x, training=False), input_signature=signature).get_concrete_function()
    return lambda x: function(tf.constant(x)).numpy()
