"""Fold the batch normalisation after a depthwise convolution into it, where all of it is constant.

TensorFlow's optimiser folds batch normalisation into ordinary convolutions, and
lets one kernel compute a convolution, its offset and its activation; depthwise
ones it leaves as four operations, of which three do little but read and write
the whole image.  On MobileNetV2 they are a tenth of the time.  So here, of a
graph with constants for variables, ``DepthwiseConv2dNative → Mul → AddV2``
becomes ``DepthwiseConv2dNative → BiasAdd``, which TensorFlow computes as one.
(Not so the padding before it: TensorFlow 2.21 aborts the process where the
convolution does that itself.)

`fold_batch_norms` of TensorFlow's ``optimize_for_inference_lib`` does not do:
it knows batch normalisation as one operation only, which Keras 3 does not use,
and does not look whether somebody else needs what the convolution gives.

Knows graphs, and nothing of models or of who calls them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from .. import _tensorflow
from .graph_nodes import NodeDef, producer

#: A message of TensorFlow's, which has no types for it.
GraphDef: TypeAlias = Any


def fold(graph_def: GraphDef, fetches: Sequence[str]) -> GraphDef:
    """The same graph with its depthwise convolutions folded; as it is, if it has none.

    Args:
        fetches: names of the tensors that a call wants.
    """
    if not any(node.op == "DepthwiseConv2dNative" for node in graph_def.node):
        return graph_def
    graph_def = _tensorflow.with_constants_computed(graph_def, fetches)  # a scale and an offset each
    graph = _Graph(graph_def, fetches)
    for node in list(graph_def.node):
        if node.op == "DepthwiseConv2dNative" and node.attr["data_format"].s in (b"", b"NHWC"):
            graph.fold(node)
    return graph_def


class _Graph:
    """A graph, and who takes what from whom."""

    def __init__(self, graph_def: GraphDef, fetches: Sequence[str]) -> None:
        self._graph_def = graph_def
        self._nodes = {node.name: node for node in graph_def.node}
        self._users: dict[str, list[NodeDef | None]] = defaultdict(list)
        for node in graph_def.node:
            for name in node.input:
                self._users[producer(name)].append(node)
        for name in fetches:  # used by whoever calls
            self._users[producer(name)].append(None)

    def fold(self, convolution: NodeDef) -> None:
        kernel = self._constant(convolution.input[1])
        if kernel is None or kernel.dtype != np.float32:
            return
        channels, multiplier = kernel.shape[2:]
        last = convolution
        factor = self._operand(last, ("Mul",), channels * multiplier)
        if factor is not None:
            last, scale = factor
            convolution.input[1] = self._add_constant(last.name, kernel * scale.reshape(channels, multiplier))
            self._become(last, "Identity", [convolution.name])
        summand = self._operand(last, ("Add", "AddV2"), channels * multiplier)
        if summand is not None:
            last, offset = summand
            self._become(last, "BiasAdd", [convolution.name, self._add_constant(last.name, offset)])

    def _operand(self, node: NodeDef, operations: Sequence[str], channels: int) -> tuple[NodeDef, Any] | None:
        """The only one who uses ``node``, if it is one of these operations, with its constant for each channel."""
        users = self._users[node.name]
        if len(users) != 1 or users[0] is None or users[0].op not in operations or len(users[0].input) != 2:
            return None
        (other,) = (name for name in users[0].input if producer(name) != node.name)
        constant = self._constant(other)
        if constant is None or constant.size != channels or constant.shape[-1:] != (channels,):
            return None
        return users[0], constant.reshape(channels)

    def _constant(self, name: str) -> Any:
        """The value of a constant, None of anything else."""
        import tensorflow as tf

        node = self._nodes.get(producer(name))
        return tf.make_ndarray(node.attr["value"].tensor) if node is not None and node.op == "Const" else None

    def _add_constant(self, name: str, value: Any) -> str:
        import tensorflow as tf

        node = self._graph_def.node.add(name=f"{name}/folded", op="Const")
        node.attr["dtype"].type = tf.as_dtype(value.dtype).as_datatype_enum
        node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value))
        return str(node.name)

    def _become(self, node: NodeDef, operation: str, inputs: Sequence[str]) -> None:
        """Another operation on other inputs, of the same dtype and under the same name."""
        kept = node.attr["T"].type
        node.ClearField("attr")
        node.ClearField("input")
        node.op = operation
        node.attr["T"].type = kept
        node.input.extend(inputs)
