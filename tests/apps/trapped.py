"""Models that double their one input; of `model` some values do other things on their way."""

import ctypes
import os
import signal
import time
from pathlib import Path

RAISE, EXIT, KILL, CRASH, GATE = 13, 3, 9, 11, 17


def seconds(number):
    """The input whose call takes so many seconds, up to 100."""
    return 100 + number


def wait_at_gate():
    """Say in the folder ``$GATE`` that it is being computed, and wait there until that is allowed to end."""
    gate = Path(os.environ["GATE"])
    (gate / "computing").touch()
    while not (gate / "open").exists():
        time.sleep(0.01)


def doubling(function):
    """A model that calls a Python function with its input on the way."""
    import keras
    import tensorflow as tf

    class Call(keras.layers.Layer):
        def call(self, x):
            came = tf.numpy_function(function, [x], tf.float32)
            came.set_shape(x.shape)
            return came * 2

    return keras.Sequential([keras.layers.Input((1,)), Call()])


def model():
    def trap(x):
        for value in x[:, 0]:
            if value == RAISE:
                raise ValueError("unlucky")
            if value == EXIT:
                os._exit(3)
            if value == KILL:
                os.kill(os.getpid(), signal.SIGKILL)
            if value == CRASH:
                ctypes.string_at(0)
            if value == GATE:
                wait_at_gate()
            if 100 <= value < 200:
                time.sleep(float(value) - 100)
        return x

    return doubling(trap)


def slow():
    """Each call takes a tenth of a second, which it writes down."""

    def wait(x):
        started = time.monotonic()
        time.sleep(0.1)
        with open(os.environ["SLOW_CALLS"], "a") as file:
            file.write(f"{len(x)} {started} {time.monotonic()}\n")
        return x

    return doubling(wait)


def slow_as_without_python():
    """As `slow`; a predictor warms it up and times it as if its time were not that of Python code."""
    from celery_tfpool.predictors import row_check

    row_check._PYTHON.clear()
    return slow()
