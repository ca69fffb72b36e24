"""What the nodes of a GraphDef, or of the functions in it, say of each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from graphlib import TopologicalSorter
from typing import Any, TypeAlias

from .. import _tensorflow

#: A message of TensorFlow's, which has no types for it.
NodeDef: TypeAlias = Any


def arguments_of(function: Any) -> list[NodeDef]:
    """The arguments of a function as nodes, which have shapes where it was traced with such."""
    import tensorflow as tf

    nodes = []
    for number, argument in enumerate(function.signature.input_arg):
        node = tf.compat.v1.NodeDef(name=argument.name, op="_Arg")
        if number in function.arg_attr:
            node.MergeFrom(tf.compat.v1.NodeDef(attr=function.arg_attr[number].attr))
        node.attr["T"].type = argument.type
        nodes.append(node)
    return nodes


def outputs_of(function: Any) -> list[str]:
    """What a function returns."""
    return [function.ret[output.name] for output in function.signature.output_arg]


def returned(nodes: Sequence[NodeDef]) -> list[str]:
    """What a graph returns."""
    return [node.input[0] for node in nodes if node.op == "_Retval"]


def producer(name: str) -> str:
    """The node or argument that gives a tensor, or that another one has to wait for."""
    return name.removeprefix("^").split(":")[0]


def data_inputs(node: NodeDef) -> list[str]:
    """The tensors that a node is given, without what it only waits for."""
    return [name for name in node.input if not name.startswith("^")]


def in_order(by_name: Mapping[str, NodeDef], ends: Sequence[str]) -> list[NodeDef]:
    """All that ``ends`` are computed from, each after what it is computed from itself.

    Raises:
        graphlib.CycleError: there is a loop of TensorFlow 1.
    """
    before: dict[str, list[str]] = {}
    left = [producer(end) for end in ends]
    while left:
        name = left.pop()
        if name in by_name and name not in before:
            before[name] = [producer(one) for one in data_inputs(by_name[name])]
            left.extend(before[name])
    return [by_name[name] for name in TopologicalSorter(before).static_order() if name in by_name]


def place_of(name: str, by_name: Mapping[str, NodeDef]) -> tuple[str, int]:
    """Who gives the tensor of that name, as which of its outputs: "node", "node:number", "node:output:number"."""
    giver, *which = name.split(":")
    place = int(which[-1]) if which and which[-1].isdigit() else 0
    if len(which) > 1:
        for output, number, types in _tensorflow.outputs_of(by_name[giver].op):
            if output == which[0]:
                break
            attr = by_name[giver].attr
            place += attr[number].i if number else len(attr[types].list.type) if types else 1
    return giver, place


def shapes_of(node: NodeDef) -> list[tuple[int, ...] | None]:
    """Of the outputs of a node, as it says."""
    if "_output_shapes" not in node.attr:
        return []
    shapes = node.attr["_output_shapes"].list.shape
    return [None if shape.unknown_rank else tuple(dim.size for dim in shape.dim) for shape in shapes]
