"""Models of Keras 2, with TF_USE_LEGACY_KERAS=1; run as a program, it writes files of them to a folder."""

import sys
from pathlib import Path

import numpy as np
import tensorflow as tf

keras = tf.keras
layers = keras.layers
#: What all of them take.
X = np.random.default_rng(0).random((70, 5, 4))


def functional():
    keras.utils.set_random_seed(1)
    inputs = layers.Input((5, 4))
    outputs = layers.Dense(2)(layers.GRU(3)(inputs))
    return keras.Model(inputs, {"scores": outputs, "best": layers.Lambda(lambda x: tf.argmax(x, axis=1))(outputs)})


class Bert(keras.Model):
    """As those of ``transformers``: subclassed, with a dict for an output."""

    def __init__(self):
        super().__init__()
        keras.utils.set_random_seed(2)
        self.dense = layers.Dense(3)

    def call(self, x, training=False):
        return {"hidden": self.dense(x[:, 0]), "pooled": tf.reduce_mean(x, axis=1)}


class Cube(tf.Module):
    """As what is on TensorFlow Hub."""

    @tf.function(input_signature=[tf.TensorSpec((None, 5, 4))])
    def __call__(self, x):
        return tf.reduce_sum(x, axis=2) ** 3


def save(folder):
    """Files of models, and beside each what it predicts."""
    import tensorflow_hub

    keras.utils.set_random_seed(3)
    plain = keras.Sequential([layers.Input((5, 4)), layers.GRU(3, return_sequences=True), layers.Dense(2)])
    plain.compile("adam", "mse")
    plain.fit(X, X[:, :, :2], verbose=0)
    tf.saved_model.save(Cube(), str(folder / "cube"))
    hub = keras.Sequential([tensorflow_hub.KerasLayer(str(folder / "cube"), input_shape=(5, 4)), layers.Dense(2)])
    for name, model in {"plain.h5": plain, "plain.keras": plain, "hub.h5": hub}.items():
        model.save(folder / name)
        np.save(folder / f"{name}.npy", model.predict(X, verbose=0))


if __name__ == "__main__":
    save(Path(sys.argv[1]))
