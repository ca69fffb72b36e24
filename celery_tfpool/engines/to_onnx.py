"""A traced function as an ONNX model, by tf2onnx; where TensorFlow is, in a process that will end.

There are two ways, since neither does for all: with TensorFlow's loops and
conditions as they are, of which tf2onnx knows Keras's recurrent layers, and
with these taken apart.  Beside tf2onnx's own translations stand some for what
Keras makes of ``gelu``, ``Discretization`` and ``argmax``.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import numpy as np

from .. import _tensorflow
from . import large_weights
from .protocol import CannotConvert, Flat

#: ONNX's and tf2onnx's objects, which have no types.
ModelProto: TypeAlias = Any
Builder: TypeAlias = Any
Node: TypeAlias = Any

#: Of the newest operations that the oldest tf2onnx here knows; ONNX Runtime knows later ones.
OPSET = 18
#: Whether control flow is taken apart, by the name of the way.
_ROUTES = {"tf2onnx": False, "tf2onnx, loops taken apart": True}
_CONTROL_FLOW = {"While", "StatelessWhile", "If", "StatelessIf", "Case", "StatelessCase"}
#: A message of protobuf ends here, and a frozen graph is one.
_MOST_BYTES = 2**31 - 2**20
#: Operations that TensorFlow calls stateful, and which only read, or hold others.
_HARMLESS = {
    *("VarHandleOp", "ReadVariableOp", "ResourceGather", "ResourceGatherNd", "Placeholder", "Assert"),
    *("StatefulPartitionedCall", "PartitionedCall", "While", "If", "Case"),
}


def check(concrete: Any) -> None:
    """See whether there is any hope, before minutes are spent.

    Raises:
        CannotConvert: it takes strings, keeps a state, rounds to 16 bits, or is too large.
    """
    import tensorflow as tf

    for tensor in (*_own_inputs(concrete), *concrete.outputs):
        if tensor.dtype.name in ("string", "variant", "resource"):
            raise CannotConvert(f"its {tensor.name!r} is of dtype {tensor.dtype.name}")
    functions = {function.signature.name for function in concrete.graph.as_graph_def().library.function}
    coarse = {tf.as_dtype(name).as_datatype_enum: name for name in ("float16", "bfloat16")}
    for node in _nodes(concrete):
        if node.op not in _HARMLESS | functions and _tensorflow.is_stateful(node.op):
            raise CannotConvert(f"it is random, keeps a state or looks things up (node {node.name!r}, {node.op})")
        if name := next((coarse[value.type] for value in node.attr.values() if value.type in coarse), ""):
            # The same on noise, and half a thousandth apart on other inputs: each library rounds elsewhere.
            raise CannotConvert(f"it computes in {name}, whose rounding would be another (node {node.name!r})")
    size = sum(int(np.prod(v.shape)) * v.dtype.size for v in concrete.graph.variables)
    if size > _MOST_BYTES:
        raise CannotConvert(f"its weights take {size / 2**30:.1f} GiB, and a frozen graph holds 2 GiB at most")


def inputs_and_outputs(concrete: Any) -> tuple[tuple[Flat, ...], tuple[Flat, ...]]:
    """Under the names that they have in what `convert` gives."""
    outputs = tuple(_flat(_output_name(number), tensor) for number, tensor in enumerate(concrete.outputs))
    return tuple(_flat(tensor.name, tensor) for tensor in _own_inputs(concrete)), outputs


def routes(concrete: Any) -> list[str]:
    """The ways by which it may be converted, the better first."""
    return list(_ROUTES)[: 2 if any(node.op in _CONTROL_FLOW for node in _nodes(concrete)) else 1]


def convert(concrete: Any, route: str) -> ModelProto:
    """The ONNX model.

    Raises:
        CannotConvert: ONNX has no words for some of its operations.
        Exception: whatever TensorFlow or tf2onnx says of a graph that it does not understand.
    """
    with _quiet():
        frozen = _tensorflow.with_constants(concrete, lower_control_flow=_ROUTES[route])
    inputs, outputs = inputs_and_outputs(concrete)
    names = [flat.name for flat in inputs]
    if [tensor.name for tensor in frozen.inputs] != names:
        raise CannotConvert("it needs more than its inputs and constants")
    graph_def = frozen.graph.as_graph_def()
    for flat, tensor in zip(outputs, frozen.outputs, strict=True):  # two may be one, or an input
        node = graph_def.node.add(name=flat.name.partition(":")[0], op="Identity", input=[tensor.name])
        node.attr["T"].type = tensor.dtype.as_datatype_enum
    large = large_weights.take_out(graph_def)
    options = {
        "input_names": [*names, *large],
        "output_names": [flat.name for flat in outputs],
        "opset": OPSET,
        "custom_op_handlers": {name: (handler, []) for name, handler in _HANDLERS.items()},
    }
    with _quiet():
        try:
            with _environment(TF2ONNX_CATCH_ERRORS="FALSE"):
                model = _by_tf2onnx(graph_def, options)
        except Exception:  # of one of its optimisations, say, which it then leaves out; all of them are slow that way
            with _environment():
                model = _by_tf2onnx(graph_def, options)
    if unknown := sorted(set(_unknown(model.graph))):
        raise CannotConvert(f"tf2onnx has no ONNX for {', '.join(unknown)}")
    large_weights.put_back(model, large)
    return model


def _by_tf2onnx(graph_def: Any, options: dict[str, Any]) -> ModelProto:
    import tf2onnx

    return tf2onnx.convert.from_graph_def(graph_def, **options)[0]


def _own_inputs(concrete: Any) -> list[Any]:
    return list(concrete.inputs[: len(concrete.inputs) - len(concrete.captured_inputs)])


def _flat(name: str, tensor: Any) -> Flat:
    return Flat(name, tensor.dtype.name, None if tensor.shape.rank is None else tuple(tensor.shape.as_list()))


def _output_name(number: int) -> str:
    return f"tfpool_output_{number}:0"


def _nodes(concrete: Any) -> Iterator[Any]:
    graph_def = concrete.graph.as_graph_def()
    yield from graph_def.node
    for function in graph_def.library.function:
        yield from function.node_def


def _unknown(graph: Any) -> Iterator[str]:
    """Operations that ONNX does not have, in this graph or within loops and conditions."""
    import onnx

    for node in graph.node:
        if node.domain in ("", "ai.onnx") and not onnx.defs.has(node.op_type):
            yield node.op_type
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _unknown(inner)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what tf2onnx and TensorFlow log of each node: `CannotConvert` says what matters."""
    loggers = [logging.getLogger(name) for name in ("tf2onnx", "tensorflow")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def _environment(**variables: str) -> Iterator[None]:
    """With ``variables``; and afterwards as it was, though importing tf2onnx sets some of TensorFlow's for good.

    tf2onnx copies the whole graph before each of its optimisations, unless it is told not to catch their errors.
    """
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        for key in set(os.environ) - set(before):
            del os.environ[key]
        os.environ.update(before)


# -- operations that tf2onnx does not know ---------------------------------------


def _erfc(graph: Builder, node: Node, name: str, *_: Any) -> None:
    """1 − Erf(x); where that is all rounding, it is nothing beside the largest value."""
    source, kind, shape = node.input[0], graph.get_dtype(node.output[0]), graph.get_shape(node.output[0])
    erf = graph.make_node("Erf", [source], name=f"{name}_erf")
    one = graph.make_const(f"{name}_one", np.ones((), _numpy(kind)))
    _replace(graph, node, "Sub", [one.output[0], erf.output[0]], kind, shape)


def _bucketize(graph: Builder, node: Node, name: str, *_: Any) -> None:
    """How many boundaries are not above x; no number is above all of them, as in TensorFlow."""
    kind, shape = graph.get_dtype(node.output[0]), graph.get_shape(node.output[0])
    source = node.input[0]
    wide = _numpy(graph.get_dtype(source)) == np.float64
    boundaries = np.asarray(node.get_attr("boundaries").floats, "float64" if wide else "float32")
    if not wide:
        source = graph.make_node("Cast", [source], attr={"to": 1}).output[0]
    last = graph.make_const(f"{name}_last", np.array([-1], "int64")).output[0]
    column = graph.make_node("Unsqueeze", [source, last]).output[0]
    edges = graph.make_const(f"{name}_boundaries", boundaries).output[0]
    below = graph.make_node("Cast", [graph.make_node("Less", [column, edges]).output[0]], attr={"to": 6}).output[0]
    number = graph.make_node("ReduceSum", [below, last], attr={"keepdims": 0}).output[0]
    total = graph.make_const(f"{name}_total", np.array(len(boundaries), "int32")).output[0]
    _replace(graph, node, "Sub", [total, number], kind, shape)


def _bitcast(graph: Builder, node: Node, name: str, *_: Any) -> None:
    """Only where somebody asks whether a float has its sign bit set: 1/x tells it of −0.  All other bits are 0 then."""
    kind, shape = graph.get_dtype(node.output[0]), graph.get_shape(node.output[0])
    source, floats, sign_bit = node.input[0], _numpy(graph.get_dtype(node.input[0])), np.iinfo(_numpy(kind)).min
    if floats.kind != "f" or not all(_asks_for_sign(u, sign_bit) for u in graph.find_output_consumers(node.output[0])):
        raise ValueError("other bits of a float are looked at")
    zero, one = (graph.make_const(f"{name}_{value}", np.array(value, floats)).output[0] for value in (0, 1))
    inverse = graph.make_node("Div", [one, source]).output[0]
    is_zero = graph.make_node("Equal", [source, zero]).output[0]
    minus_zero = graph.make_node("And", [is_zero, graph.make_node("Less", [inverse, zero]).output[0]]).output[0]
    negative = graph.make_node("Or", [graph.make_node("Less", [source, zero]).output[0], minus_zero]).output[0]
    bits = [graph.make_const(f"{name}_bits_{bit}", np.array(bit, _numpy(kind))).output[0] for bit in (sign_bit, 0)]
    _replace(graph, node, "Where", [negative, *bits], kind, shape)


def _asks_for_sign(user: Node, sign_bit: int) -> bool:
    if user.type not in ("BitwiseAnd", "Less") or not user.inputs[1].is_const():
        return False
    wanted = sign_bit if user.type == "BitwiseAnd" else 0
    return bool(np.all(user.inputs[1].get_tensor_value(as_list=False) == wanted))


def _numpy(kind: int) -> np.dtype[Any]:
    import onnx

    dtype: np.dtype[Any] = onnx.helper.tensor_dtype_to_np_dtype(kind)
    return dtype


def _replace(graph: Builder, node: Node, operation: str, inputs: list[str], kind: int, shape: Any) -> None:
    """Put an operation of ONNX where ``node`` of TensorFlow's was, with the same output."""
    output = node.output[0]
    graph.remove_node(node.name)
    graph.make_node(operation, inputs, outputs=[output], name=node.name, shapes=[shape], dtypes=[kind])


_HANDLERS: dict[str, Callable[..., None]] = {"Erfc": _erfc, "Bucketize": _bucketize, "Bitcast": _bitcast}
