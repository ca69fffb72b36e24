"""Train a small network on the handwritten digits that scikit-learn ships: ``python train.py PATH``."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split


def split() -> list[Any]:
    """1437 images to learn from, 360 held out, and the digits on both; always the same split.

    Images are of shape (n, 8, 8) with grey levels 0 … 16.  Needs no TensorFlow.
    """
    digits = load_digits()
    return list(train_test_split(digits.images, digits.target, test_size=0.2, random_state=0))


def train(path: Path) -> float:
    """Save a trained model at ``path``; returns its accuracy on the held-out images."""
    import keras  # not above: demo.py imports this module for its images only
    from keras import layers

    learn_x, held_out_x, learn_y, held_out_y = split()
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((8, 8)),
            layers.Rescaling(1 / 16),
            layers.Reshape((8, 8, 1)),
            layers.Conv2D(32, 3, activation="relu"),
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
            layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile(keras.optimizers.Adam(0.003), "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(learn_x, learn_y, batch_size=32, epochs=15, verbose=0)
    model.save(path)
    return float(model.evaluate(held_out_x, held_out_y, verbose=0, return_dict=True)["accuracy"])


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python train.py PATH.keras")
    started = time.monotonic()
    accuracy = train(Path(sys.argv[1]))
    print(f"trained in {time.monotonic() - started:.1f} s, accuracy on held-out images {accuracy:.3f}")
