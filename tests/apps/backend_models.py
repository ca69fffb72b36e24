"""Models for Keras on any back end."""

import keras
import numpy as np
from keras import layers


def functional():
    return keras.Sequential([layers.Input((5, 4)), layers.GRU(8), layers.Dense(3)])


def two_inputs():
    one, two = layers.Input((4,)), layers.Input((3,))
    return keras.Model([one, two], [layers.Dense(2)(one), layers.Concatenate()([one, two])])


def named_inputs():
    inputs = {"b": layers.Input((4,), name="b"), "a": layers.Input((3,), name="a")}
    return keras.Model(inputs, {"sum": layers.Dense(2)(inputs["a"]), "other": layers.Dense(1)(inputs["b"])})


def dropout():
    return keras.Sequential([layers.Input((4,)), layers.Dense(8), layers.BatchNormalization(), layers.Dropout(0.5)])


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(2)

    def call(self, x):
        return {"dense": self.dense(x["one"]), "sum": x["one"] + x["two"]}


def subclassed():
    return Subclassed()


class OwnPredict(keras.Sequential):
    def predict(self, x, **options):
        return "its own", options


def own_predict():
    return OwnPredict([layers.Input((4,)), layers.Dense(1)])


def inputs_of(function, rows):
    """What the model takes, as float64, which Keras casts."""
    random = np.random.default_rng(0)
    if function == "functional":
        return random.random((rows, 5, 4))
    if function == "two_inputs":
        return [random.random((rows, 4)), random.random((rows, 3))]
    if function == "named_inputs":
        return {"a": random.random((rows, 3)), "b": random.random((rows, 4))}
    if function == "subclassed":
        return {"one": random.random((rows, 4)), "two": random.random((rows, 4))}
    return random.random((rows, 4))
