"""Depthwise convolutions with their batch normalisation folded in: the same numbers, fewer operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from celery_tfpool.predictors import freezing
from celery_tfpool.runners.keras_model import KerasRunner

Layer = Callable[[Any], Any]


def depthwise(**options: Any) -> Layer:
    return layers.DepthwiseConv2D(3, use_bias=False, **options)


def used_twice(x: Any) -> Any:
    convolved = depthwise(padding="same")(x)
    return layers.add([layers.BatchNormalization()(convolved), convolved])


def two_outputs(x: Any) -> Any:
    convolved = depthwise()(x)
    return [layers.BatchNormalization()(convolved), convolved]


def after(*several: Layer) -> Layer:
    def call(x: Any) -> Any:
        for layer in several:
            x = layer(x)
        return x

    return call


NORM = layers.BatchNormalization
#: What is built, and which operations are left of Pad, Mul and AddV2.
CASES: dict[str, tuple[Layer, set[str]]] = {
    "batch norm": (after(depthwise(), NORM(), layers.ReLU(6.0)), set()),
    "no scale": (after(depthwise(), NORM(scale=False)), set()),
    "no offset": (after(depthwise(), NORM(center=False)), set()),
    "twice as many channels": (after(depthwise(depth_multiplier=2), NORM()), set()),
    "padded": (after(layers.ZeroPadding2D(((0, 1), (2, 1))), depthwise(strides=2), NORM()), {"Pad"}),
    "dilated": (after(layers.ZeroPadding2D(2), depthwise(dilation_rate=2), NORM()), {"Pad", "Mul", "AddV2"}),
    "separable": (after(layers.SeparableConv2D(4, 3, use_bias=False), NORM(), layers.ReLU()), {"AddV2"}),
    "with a bias": (after(layers.DepthwiseConv2D(3), NORM()), {"Mul", "AddV2"}),
    "used twice": (used_twice, {"Mul", "AddV2"}),
    "two outputs": (two_outputs, {"Mul", "AddV2"}),
    "multiplied by itself": (after(depthwise(), lambda x: layers.multiply([x, x])), {"Mul"}),
    "pooled": (after(depthwise(), layers.AveragePooling2D(2)), set()),
}


@pytest.mark.parametrize("name", CASES)
def test_folded(name: str) -> None:
    build, left = CASES[name]
    source = layers.Input((9, 8, 3))
    model = keras.Model(source, build(source))
    random = np.random.default_rng(0)
    model.set_weights([random.uniform(0.5, 1.5, weight.shape) for weight in model.get_weights()])
    frozen = freezing.frozen(KerasRunner("m", model))
    assert frozen is not None
    operations = {node.op for node in frozen.graph.node}
    assert left == operations & {"Pad", "Mul", "AddV2"}
    x = random.random((5, 9, 8, 3), "float32")
    for ours, theirs in zip(
        keras.tree.flatten(frozen.call(1)(x)), keras.tree.flatten(model.predict(x, verbose=0)), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_half_precision_is_left_alone() -> None:
    """Its products would be rounded elsewhere."""
    source = layers.Input((9, 8, 3))
    model = keras.Model(source, NORM(dtype="float16")(depthwise(dtype="float16")(source)))
    frozen = freezing.frozen(KerasRunner("m", model))
    assert frozen is not None
    assert "Mul" in {node.op for node in frozen.graph.node}
