"""TFPrefork with a model that keeps something of each call: what the soak must see."""

from __future__ import annotations

from typing import Any

from recipe import PATHS
from tfpool import app

__all__ = ["app", "mlp"]

#: Bytes that each call leaves.
LEAK = 4096


def mlp() -> Any:
    import keras
    import tensorflow as tf

    kept = []

    def keep(x: Any) -> Any:
        kept.append(b"x" * LEAK)
        return x

    class Keep(keras.layers.Layer):  # type: ignore[misc, name-defined]
        def call(self, x: Any) -> Any:
            same = tf.numpy_function(keep, [x], tf.float32)
            same.set_shape(x.shape)
            return same

    return keras.Sequential([keras.models.load_model(PATHS["mlp"]), Keep()])


app.conf.tf_model_path = {**PATHS, "mlp": {"path": "leaky:mlp", "batch": True}}
