"""An app whose model does what its input says: computes, raises, dies or never returns."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from typing import Any

from recipe import celery_app

from celery_tfpool import get_model

#: Inputs, and what the model does with them; it doubles all others.
RAISE, EXIT, KILL, CRASH, HANG, SLOW = range(1, 7)
#: Seconds of a slow call, and until nobody waits for an answer any more.
SLOW_SECONDS, RESPONSE_TIMEOUT = 2.0, 5.0

app = celery_app(__name__)
app.conf.tf_model_path = "crashes:model"
app.conf.tf_predictors = int(os.environ.get("BENCH_PREDICTORS", "0"))
app.conf.tf_response_timeout = RESPONSE_TIMEOUT


def model() -> Any:
    import keras
    import tensorflow as tf

    def do(x: Any) -> Any:
        for value in x[:, 0]:
            if value == RAISE:
                raise ValueError("no such luck")
            if value == EXIT:
                os._exit(3)
            if value == KILL:
                os.kill(os.getpid(), signal.SIGKILL)
            if value == CRASH:
                ctypes.string_at(0)
            if value in (HANG, SLOW):
                time.sleep(3600 if value == HANG else SLOW_SECONDS)
        return x

    class Doing(keras.layers.Layer):
        def call(self, x: Any) -> Any:
            done = tf.numpy_function(do, [x], tf.float32)
            done.set_shape(x.shape)
            return 2 * done

    return keras.Sequential([keras.layers.Input((1,)), Doing()])


@app.task(name="double")
def double(value: float) -> float:
    return float(get_model().predict([[value]])[0, 0])
