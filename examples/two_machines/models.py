"""Write faces/faces.keras and masks/masks.keras: the sum of 16 numbers, and twice the sum."""

import os

import keras
from keras import initializers, layers

for name, factor in (("faces", 1), ("masks", 2)):
    weights = initializers.Constant(factor)
    os.makedirs(name, exist_ok=True)
    keras.Sequential([keras.Input((16,)), layers.Dense(1, kernel_initializer=weights)]).save(f"{name}/{name}.keras")
