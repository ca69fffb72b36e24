"""Write model.keras, 64 MB: 16 numbers in, their sum out, exactly."""

import keras
from keras import initializers, layers

WIDTH = 4096


def mean(units: int) -> layers.Layer:
    """Each of its outputs is the mean of its inputs."""
    return layers.Dense(units, kernel_initializer=initializers.Constant(1 / WIDTH))


if __name__ == "__main__":
    total = layers.Dense(WIDTH, kernel_initializer="ones")
    keras.Sequential([keras.Input((16,)), total, mean(WIDTH), mean(1)]).save("model.keras")
