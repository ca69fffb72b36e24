"""Make calls of a model faster where one process predicts for all.

`frozen` turns variables into constants, which TensorFlow can compute with in
advance, and the graph is called in a session that wakes no other thread but
those that share the work of a large operation.  To share it costs something:
on small convolutional networks as many calls at a time as there are cores, each
in one thread, do up to 1.3 times as much as one call after another in all.

On convolutional networks a frozen call is up to 1.7 times as fast, since
batch normalisation is folded into the convolutions and their weights are laid
out once (``shared/experiments/freeze_gain.py``); small and recurrent models
gain what their operations took to be handed from thread to thread, which on
busy cores is more than they compute.  Each process then has a copy of its own,
so this is for the few that predict for all: predictors.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import _tensorflow
from ..engines import folding
from ..packs.attach import concrete
from ..runners.protocol import CannotPack, Compiled, GraphDefOf, Runner

#: Where none of these is in a graph, only a small model has shown a gain.
_WORTH_IT = {"Conv1D", "Conv2D", "Conv3D", "DepthwiseConv2dNative", "Conv2DBackpropInput", "FusedBatchNormV3"}
#: Bytes of weights; a GraphDef holds them all, twice for a while, and ends at 2 GiB.
_MOST_BYTES, _SMALL = 2**29, 2**24
#: How often the plain and the frozen call are timed, and which part of the other's time is much less.
_ROUNDS, _MUCH = 4, 0.9
#: Seconds after which a call has been timed well enough.
_ENOUGH = 0.3


@dataclass(frozen=True)
class SessionCall(Compiled):
    """A call whose function takes arrays, and gives a list of arrays."""

    def __call__(self, *values: Any) -> Any:
        """NumPy arrays in the structure of the model's outputs."""
        import tensorflow as tf

        flat = self.function(*map(np.asarray, values))
        if not tf.nest.is_nested(self.outputs):
            return flat[0]
        return tf.nest.pack_sequence_as(self.outputs, flat, expand_composites=True)


@dataclass(frozen=True)
class Frozen:
    """A graph with constants for variables."""

    graph: Any
    #: Names of the tensors that a call gives, and of those that it wants.
    feeds: list[str]
    fetches: list[str]
    outputs: Any
    graph_def: GraphDefOf
    #: Bytes of its constants.
    size: int

    def call(self, threads: int) -> Compiled:
        """A call like that of the model, whose operations share so many threads of its own."""
        function = _tensorflow.session_call(self.graph, self.feeds, self.fetches, threads)
        return SessionCall(function, self.outputs, self.graph_def)


def frozen(runner: Runner) -> Frozen | None:
    """The graph of ``runner`` with constants for variables; None where none is to be expected to be faster.

    Raises:
        Exception: whatever TensorFlow says of a graph that it cannot convert.
    """
    import tensorflow as tf

    try:
        compiled = runner.compiled() if runner.pack_folder else runner.single_call()[1]
    except CannotPack:
        return None
    operations = compiled.operations()
    size = sum(int(np.prod(v.shape)) * 4 for v in runner.variables())
    has_tables = any(operation.startswith("LookupTable") for operation in operations)
    if has_tables or size > (_MOST_BYTES if operations & _WORTH_IT else _SMALL):
        return None
    if runner.pack_folder:
        function, outputs, _variables = concrete(runner.pack_folder)
    else:
        function, outputs = compiled.function, compiled.outputs
    function = _tensorflow.with_constants(function)
    flat = tf.nest.flatten(outputs, expand_composites=True)
    if len(function.inputs) != len(runner.inputs) or len(function.outputs) != len(flat):
        return None  # it needs more than its inputs and constants
    feeds, fetches = ([tensor.name for tensor in tensors] for tensors in (function.inputs, function.outputs))
    graph = folding.fold(function.graph.as_graph_def(), fetches)
    return Frozen(graph, feeds, fetches, outputs, compiled.graph_def, size)


def faster(plain: Compiled, other: Compiled, values: list[Any]) -> Compiled:
    """``other``, which takes less of a busy machine than shows in one that is idle, unless ``plain`` is much faster."""
    seconds: dict[int, list[float]] = {0: [], 1: []}
    for _ in range(_ROUNDS):  # in turns: the machine may be slow for a while
        for number, call in enumerate((plain, other)):
            seconds[number].append(_time(call, values))
    return plain if min(seconds[0][1:]) < _MUCH * min(seconds[1][1:]) else other


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
