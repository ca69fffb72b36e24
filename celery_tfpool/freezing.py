"""Make calls of a model faster where one process predicts for all.

`frozen` turns variables into constants, which TensorFlow can compute with in advance.

On convolutional networks a frozen call is up to 1.7 times as fast, since
batch normalisation is folded into the convolutions and their weights are laid
out once (``shared/experiments/freeze_gain.py``).  Each process then has a copy
of its own, so this is for the few that predict for all: predictors.

Private names used, because there is no public way: of TensorFlow
``convert_variables_to_constants_v2`` and ``function_executor_type``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from . import pack
from .pack_runner import PackRunner
from .runner import CannotPack, Compiled, Runner

#: Where none of these is in a graph, freezing has shown no gain.
_WORTH_IT = {"Conv1D", "Conv2D", "Conv3D", "DepthwiseConv2dNative", "Conv2DBackpropInput", "FusedBatchNormV3"}
#: Bytes of weights; a GraphDef holds them all, twice for a while, and ends at 2 GiB.
_MOST_BYTES = 2**29
#: A frozen call must be so much faster to be worth its copy of the weights.
_GAIN, _ROUNDS = 1.05, 4
#: Seconds after which a call has been timed well enough.
_ENOUGH = 0.3


def frozen(runner: Runner) -> Compiled | None:
    """A call like ``runner.compiled()`` with constants for variables; None where none is to be expected to be faster.

    Raises:
        Exception: whatever TensorFlow says of a graph that it cannot convert.
    """
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    try:
        compiled = runner.compiled() if isinstance(runner, PackRunner) else runner.single_call()[1]
    except CannotPack:
        return None
    size = sum(int(np.prod(v.shape)) * 4 for v in runner.variables())
    if size > _MOST_BYTES or not compiled.operations() & _WORTH_IT:
        return None
    if isinstance(runner, PackRunner):
        function, outputs, _variables = pack.concrete(runner.folder)
    else:
        function, outputs = compiled.function, compiled.outputs
    return _of(convert_variables_to_constants_v2(function, lower_control_flow=False), outputs)


def _of(function: Any, outputs: Any) -> Compiled:
    import tensorflow as tf

    def call(*values: Any) -> Any:
        return tf.nest.pack_sequence_as(outputs, tf.nest.flatten(function(*values)), expand_composites=True)

    return Compiled(call, outputs, function.graph.as_graph_def)


def faster(plain: Compiled, other: Compiled, values: list[Any]) -> Compiled:
    """``other`` if it is worth it on ``values``, measured here and now; else ``plain``."""
    seconds: dict[int, list[float]] = {0: [], 1: []}
    for _ in range(_ROUNDS):  # in turns: the machine may be slow for a while
        for number, call in enumerate((plain, other)):
            seconds[number].append(_time(call, values))
    return other if min(seconds[0][1:]) > _GAIN * min(seconds[1][1:]) else plain


def in_one_thread(plain: Compiled) -> Compiled:
    """A call like ``plain`` whose operations run one after another in the thread that calls.

    It has no other thread to wake, which on busy cores takes longer than all
    that a small model computes.  Loops and branches in the graph make it raise.
    """
    from tensorflow.python.eager import context

    def call(*values: Any) -> Any:
        with context.function_executor_type("SINGLE_THREADED_EXECUTOR"):
            return plain.function(*values)

    return Compiled(call, plain.outputs, plain.graph_def)


def fastest(call: Callable[..., Any], values: list[Any]) -> float:
    """Seconds of the fastest of several calls, fewer if they are long; the first, which prepares, does not count."""
    _time(call, values)
    seconds: list[float] = []
    while len(seconds) < _ROUNDS - 1 and sum(seconds) < _ENOUGH:
        seconds.append(_time(call, values))
    return min(seconds)


def _time(call: Callable[..., Any], values: list[Any]) -> float:
    started = time.perf_counter()
    call(*values)
    return time.perf_counter() - started
