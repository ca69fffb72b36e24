"""The models that the suites serve: built once from fixed seeds, with the answers that Keras itself gives.

    python benchmarks/models.py FOLDER NAME...

The harness runs this as a program of its own and never imports TensorFlow.
No weights are downloaded.  How long a network computes does not depend on them,
except that TensorFlow leaves out what a fresh batch normalisation adds: nothing.
So those have statistics here, as a trained network has.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "apps"))

import numpy as np
from recipe import answer, rows

#: What each model is, for the tables.
TITLES = {
    "mlp": "small MLP, 256 → 10",
    "dense4": "4 × 2048 dense",
    "lstm": "LSTM, 50 × 64",
    "mobilenet": "MobileNetV2, 224 × 224 × 3",
    "resnet50": "ResNet50, 100 MB",
    "dense400": "dense, 400 MB",
}


def build(name: str) -> Any:
    """A Keras model with random weights, the same at each call."""
    import keras

    model = _untrained(name)
    random = np.random.default_rng(1)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            shape = layer.gamma.shape
            gamma, variance = random.uniform(0.8, 1.2, (2, *shape))
            beta, mean = random.normal(0.0, 0.1, (2, *shape))
            layer.set_weights([gamma, beta, mean, variance])
    return model


def _untrained(name: str) -> Any:
    import keras
    from keras import layers

    keras.utils.set_random_seed(1)
    dense = [layers.Dense(2048, activation="relu") for _ in range(4)]
    large = [layers.Dense(4096, activation="relu") for _ in range(6)]
    match name:
        case "mlp":
            return keras.Sequential([layers.Input((256,)), layers.Dense(64, activation="relu"), layers.Dense(10)])
        case "dense4":
            return keras.Sequential([layers.Input((2048,)), *dense, layers.Dense(10)])
        case "lstm":
            return keras.Sequential([layers.Input((50, 64)), layers.LSTM(128), layers.Dense(10)])
        case "mobilenet":
            return keras.applications.MobileNetV2(weights=None, classifier_activation=None)
        case "resnet50":
            return keras.applications.ResNet50(weights=None, classifier_activation=None)
        case "dense400":
            return keras.Sequential([layers.Input((4096,)), *large, layers.Dense(10)])
    raise ValueError(f"no model is called {name!r}; there are {', '.join(TITLES)}")


def payload(name: str, number: int) -> Any:
    """What task ``number`` carries: the input itself for the small MLP, else the seed of an input."""
    return rows("mlp", number)[0].tolist() if name == "mlp" else number


def write(folder: Path, names: Sequence[str]) -> None:
    """Write ``NAME.keras``, and ``NAME.json`` with Keras's own answers, for each name that is not there yet."""
    for name in names:
        answers = folder / f"{name}.json"
        if answers.exists():
            continue
        model = build(name)
        model.save(folder / f"{name}.keras")
        expected = [answer(model.predict(rows(name, payload(name, number)), verbose=0)) for number in range(3)]
        answers.with_suffix(".tmp").write_text(json.dumps(expected))
        answers.with_suffix(".tmp").rename(answers)  # the last step: half a model is made again


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    write(Path(sys.argv[1]), sys.argv[2:])
