"""Keep large weights out of a conversion that copies its graph again and again.

tf2onnx copies every constant once for each of its two dozen optimisations,
which for 100 MB takes ten times as long as all else.  A matrix that is only
multiplied with, or looked up in, is of no interest to any of them: so it is an
input during the conversion, and a constant again afterwards.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any, TypeAlias

from numpy.typing import NDArray

from .graph_nodes import data_inputs, producer

#: Messages of TensorFlow and ONNX, which have no types.
GraphDef: TypeAlias = Any
ModelProto: TypeAlias = Any

#: Bytes from which on it pays.
LEAST = 2**20
#: Operations whose conversion does not depend on the numbers.
_INDIFFERENT = {"MatMul", "BatchMatMulV2", "Gather", "GatherV2"}


def take_out(graph_def: GraphDef) -> dict[str, NDArray[Any]]:
    """Make inputs of large constants; the name of each tensor, and its value."""
    import tensorflow as tf

    users = defaultdict(list)
    for node in graph_def.node:
        for name in data_inputs(node):
            users[producer(name)].append(node)
    taken = {}
    for node in graph_def.node:
        if node.op != "Const" or len(node.attr["value"].tensor.tensor_content) < LEAST:
            continue
        if {user.op for user in _behind(node, users)} <= _INDIFFERENT:
            tensor = node.attr.pop("value").tensor
            taken[f"{node.name}:0"] = tf.make_ndarray(tensor)
            node.op = "Placeholder"
            node.attr["shape"].shape.CopyFrom(tensor.tensor_shape)
    return taken


def put_back(model: ModelProto, taken: dict[str, NDArray[Any]]) -> None:
    """Make constants of these inputs."""
    from onnx import numpy_helper

    inputs = [one for one in model.graph.input if one.name not in taken]
    for name in {one.name for one in model.graph.input} & set(taken):
        model.graph.initializer.append(numpy_helper.from_array(taken[name], name))
    del model.graph.input[:]
    model.graph.input.extend(inputs)


def _behind(node: Any, users: dict[str, list[Any]]) -> list[Any]:
    """Who uses what a node gives, also by way of others that only pass it on."""
    found = []
    for user in users[node.name]:
        passed_on = user.op == "Identity" and users[user.name]
        found += _behind(user, users) if passed_on else [user]
    return found
