"""Models for predictors that are asked by many at once."""

import ctypes
import gc
import os
import signal
import sys
import threading
import time

import keras
import tensorflow as tf
from keras import layers
from trapped import doubling

from celery_tfpool import PredictionError

#: Ways to die.
WAYS = {
    1: lambda: sys.exit(3),
    2: lambda: os._exit(3),
    3: lambda: ctypes.string_at(0),
    4: lambda: os.kill(os.getpid(), signal.SIGKILL),
}
#: Where: added to the way.
IN_CALL, AT_COLLECTION, IN_THREAD, AT_TRACING = 10, 20, 30, 40


class Dies:
    """Dies when it is collected."""

    def __init__(self, way):
        self.way, self.itself = way, self

    def __del__(self):
        self.way()


def deadly():
    """Doubles its input, and dies of some."""

    def trap(x):
        for value in x[:, 0]:
            place, way = divmod(int(value), 10)
            if way not in WAYS or value != int(value):
                continue
            if 10 * place == IN_CALL:
                WAYS[way]()
            if 10 * place == AT_COLLECTION:
                Dies(WAYS[way])
                gc.collect()
            if 10 * place == IN_THREAD:
                threading.Timer(0.0, WAYS[way]).start()
                time.sleep(0.3)
        return x

    return doubling(trap)


class DeadlyAtTracing(keras.Model):
    """Doubles its input; dies while it is traced with inputs of so many columns."""

    def call(self, x):
        place, way = divmod(x.shape[-1] or 0, 10)
        if 10 * place == AT_TRACING and way in WAYS:
            WAYS[way]()
        return x * 2


deadly_at_tracing = DeadlyAtTracing

ERRORS = [
    NotImplementedError,
    RuntimeError,
    AssertionError,
    MemoryError,
    ZeroDivisionError,
    StopIteration,
    ValueError,
    SystemExit,
    KeyboardInterrupt,
]


class Raises(keras.Model):
    """Raises an error while it is traced, another one for each number of columns; after those TensorFlow's."""

    def call(self, x):
        columns = x.shape[-1]
        if columns < len(ERRORS):
            raise ERRORS[columns](f"number {columns} of the errors")
        if columns == len(ERRORS):
            return tf.linalg.matmul(x, tf.zeros((columns + 1, 1)))
        return x * 2


raises = Raises


class OwnError(PredictionError):
    """Of the user's own, with what no wire carries."""

    def __init__(self, what):
        super().__init__(what)


class Unspeakable(Exception):
    def __str__(self):
        raise RuntimeError("no words")


class RaisesOwn(keras.Model):
    """While it is traced: an error of the user's own, another one for each number of columns."""

    def call(self, x):
        if x.shape[-1] == 1:
            raise OwnError(object())
        if x.shape[-1] == 2:
            raise Unspeakable
        return x * 2


raises_own = RaisesOwn


class Centred(keras.Model):
    """Its rows depend on each other, which its graph does not tell."""

    def call(self, x):
        return x - tf.reduce_mean(x, axis=0, keepdims=True)


centred = Centred


def convolution():
    """Large enough for calls of their own in several threads to pay; all rows of an input differ."""
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            layers.Input((25, 25, 1)),
            layers.Conv2D(32, 3, activation="relu"),
            layers.Conv2D(32, 3, activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(1),
        ]
    )


def widths():
    """As many columns as the last row of the call says."""

    class Cut(layers.Layer):
        def call(self, x):
            return x[:, : tf.cast(x[-1, 0], tf.int32)]

        def compute_output_shape(self, shape):
            return (shape[0], None)

    return keras.Sequential([layers.Input((16,)), Cut()])


def counting():
    """Adds how often it was called."""

    class Count(layers.Layer):
        def build(self, shape):
            self.count = self.add_weight(shape=(), initializer="zeros", trainable=False)

        def call(self, x):
            self.count.assign_add(1.0)
            return x + self.count

    return keras.Sequential([layers.Input((1,)), Count()])


def double():
    return keras.Sequential([layers.Input((1,)), layers.Rescaling(2.0)])
