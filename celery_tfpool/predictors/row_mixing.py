"""Does a graph look at several rows together, in a way that no trial is sure to show?

A trial shows what always happens: ``x - mean(x, axis=0)``.  It does not show
what happens from some value on: ``x / maximum(max(x), 255)``, or a branch that
is taken if any number is large.  Most such have one of two things in them: an
operation that makes one number of many rows, or control flow that depends on
what is in the inputs.  Those that have neither (a matrix product with its own
transpose, rows moved to another axis) are for the trial alone.

Knows GraphDefs, and nothing of models.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

#: Messages of TensorFlow's, which has no types for them.
NodeDef: TypeAlias = Any

#: Of the shape of an input, not of what is in it.
_OF_SHAPES = {"Shape", "ShapeN", "Size", "Rank", "ZerosLike", "OnesLike", "BroadcastGradientArgs"}
#: Many numbers become fewer along the axes that the second input names; or each depends on those before it.
_ALONG_AXES = {
    *("Sum", "Mean", "Prod", "Max", "Min", "All", "Any", "EuclideanNorm", "ArgMax", "ArgMin"),
    *("Cumsum", "Cumprod", "CumulativeLogsumexp"),
}
#: The same along the last axis.
_ALONG_LAST_AXIS = {"TopK", "TopKV2"}
#: How many there are, or in which order, depends on what is in all rows.
_OF_ALL = (
    *("Unique", "Where", "ListDiff", "SetDiff1D", "Bincount", "DenseBincount", "L2Loss", "Mode"),
    *("Segment", "UnsortedSegment", "SparseSegment", "NonMaxSuppression", "Ragged", "DynamicPartition", "Histogram"),
)
_BRANCHES = {"If", "StatelessIf", "Case", "StatelessCase"}
_LOOPS = {"While", "StatelessWhile"}
_CALLS = {"PartitionedCall", "StatefulPartitionedCall", "RemoteCall"}
#: Those of TensorFlow 1, of which the last input decides.
_OLD_CONTROL = {"Switch", "RefSwitch", "LoopCond"}


def mixes_rows(graph_def: Any) -> str:
    """The first operation of ``graph_def`` that may, as "node (operation)"; empty where none does.

    Args:
        graph_def: a graph that was traced for any number of rows, or functions of which one calls the others.
            Where the shape of a tensor is not known, a negative axis may be that of rows.
    """
    looked_at = _Graph(graph_def)
    looked_at.look()
    return looked_at.found


class _Graph:
    """All functions of a graph, and what was found in them."""

    def __init__(self, graph_def: Any) -> None:
        self._nodes = list(graph_def.node)
        self._functions = {function.signature.name: function for function in graph_def.library.function}
        self._known: dict[tuple[str, tuple[bool, ...]], list[bool]] = {}
        self.found = ""

    def look(self) -> None:
        if self._nodes:
            given = {n.name for n in self._nodes if n.op == "Placeholder" and _is_data(n.attr["dtype"].type)}
            self._follow(self._nodes, given, _ends(self._nodes))
            return
        called = {name for function in self._functions.values() for n in function.node_def for name in self._of(n)}
        for name, function in self._functions.items():
            if name not in called:
                self._results(name, [_is_data(argument.type) for argument in function.signature.input_arg])

    def _of(self, node: NodeDef) -> list[str]:
        """The functions that a node calls, by the names of its attributes."""
        values = [node.attr[name] for name in sorted(node.attr)]
        named = [value.func.name for value in values if value.HasField("func")]
        named += [func.name for value in values for func in value.list.func]
        return [name for name in (node.op, *named) if name in self._functions]

    def _results(self, name: str, given: Sequence[bool]) -> list[bool]:
        """Which outputs of a function depend on what is in its arguments, of which ``given`` do on that of inputs."""
        key = name, tuple(given)
        if key not in self._known:
            function = self._functions[name]
            arguments = [argument.name for argument in function.signature.input_arg]
            self._known[key] = [True] * len(function.signature.output_arg)  # should it call itself
            ends = [function.ret[output.name] for output in function.signature.output_arg]
            start = {argument for argument, is_given in zip(arguments, given, strict=False) if is_given}
            depends = self._follow([*_arguments(function), *function.node_def], start, ends)
            self._known[key] = [_producer(end) in depends for end in ends]
        return self._known[key]

    def _follow(self, nodes: Iterable[NodeDef], given: set[str], ends: Sequence[str]) -> set[str]:
        """Names of all that depends on what is in ``given``; notes what mixes rows on its way to ``ends``."""
        by_name = {node.name: node for node in nodes}
        live, depends = _reached(by_name, ends), set(given)
        while True:  # until nothing is added: TensorFlow 1 has loops in its graphs
            before = len(depends)
            for name in live:
                if name in by_name and name not in depends and self._depends(by_name[name], depends):
                    depends.add(name)
            if len(depends) == before:
                break
        for name in live:
            if not self.found and name in depends and name in by_name:
                self._judge(by_name[name], depends, by_name)
        return depends

    def _depends(self, node: NodeDef, depends: set[str]) -> bool:
        flags = [_producer(name) in depends for name in _data_inputs(node)]
        if node.op in _OF_SHAPES or not any(flags):
            return False
        return any(self._results(called, flags)) if (called := self._called(node)) else True

    def _called(self, node: NodeDef) -> str:
        """The function that a node does nothing but call; empty where there is none."""
        functions = self._of(node) if node.op in _CALLS or node.op in self._functions else []
        return functions[0] if functions else ""

    def _judge(self, node: NodeDef, depends: set[str], by_name: Mapping[str, NodeDef]) -> None:
        flags = [_producer(name) in depends for name in _data_inputs(node)]
        mixes = False
        if node.op in _BRANCHES:
            mixes = flags[0]
            for function in self._of(node):
                self._results(function, flags[1:])
        elif node.op in _LOOPS:
            mixes = self._loops_by_data(node, flags)
        elif node.op in _OLD_CONTROL:
            mixes = flags[-1]
        elif node.op in _ALONG_AXES:
            axes = _constant(by_name, node.input[1])
            mixes = flags[0] and _may_be_rows(_shape_of(by_name, node.input[0]), axes)
        elif node.op in _ALONG_LAST_AXIS:
            mixes = flags[0] and _may_be_rows(_shape_of(by_name, node.input[0]), [-1])
        elif node.op.startswith("FusedBatchNorm"):
            mixes = node.attr["is_training"].b
        elif node.op.startswith(_OF_ALL):
            mixes = True
        if mixes and not self.found:
            self.found = f"{node.name} ({node.op})"

    def _loops_by_data(self, node: NodeDef, flags: list[bool]) -> bool:
        """Whether what is in the inputs decides how often a loop goes on."""
        condition, body = node.attr["cond"].func.name, node.attr["body"].func.name
        while (after := [a or b for a, b in zip(flags, self._results(body, flags), strict=True)]) != flags:
            flags = after
        return any(self._results(condition, flags))


def _arguments(function: Any) -> list[NodeDef]:
    """The arguments of a function as nodes, which have shapes where it was traced with such."""
    import tensorflow as tf

    nodes = []
    for number, argument in enumerate(function.signature.input_arg):
        node = tf.compat.v1.NodeDef(name=argument.name, op="_Arg")
        if number in function.arg_attr:
            node.MergeFrom(tf.compat.v1.NodeDef(attr=function.arg_attr[number].attr))
        nodes.append(node)
    return nodes


def _is_data(dtype: int) -> bool:
    import tensorflow as tf

    return tf.as_dtype(dtype) not in (tf.resource, tf.variant)


def _producer(name: str) -> str:
    """The node or argument that gives a tensor."""
    return name.split(":")[0]


def _data_inputs(node: NodeDef) -> list[str]:
    return [name for name in node.input if not name.startswith("^")]


def _ends(nodes: Sequence[NodeDef]) -> list[str]:
    """What nobody else in a graph needs or waits for; checks, which only raise, are waited for."""
    used = {_producer(name.removeprefix("^")) for node in nodes for name in node.input}
    return [node.name for node in nodes if node.name not in used and node.op not in ("NoOp", "Assert")]


def _reached(by_name: Mapping[str, NodeDef], ends: Sequence[str]) -> dict[str, None]:
    """All that ``ends`` are computed from; what comes first in a graph comes first here, mostly."""
    reached: dict[str, None] = {}
    left = [_producer(end) for end in ends]
    while left:
        name = left.pop()
        if name not in reached:
            reached[name] = None
            left.extend(map(_producer, _data_inputs(by_name[name]) if name in by_name else ()))
    return dict.fromkeys(reversed(reached))


def _constant(by_name: Mapping[str, NodeDef], name: str) -> list[int] | None:
    """The numbers of a constant; None of anything else."""
    import tensorflow as tf

    node = by_name.get(_producer(name))
    if node is None or node.op != "Const":
        return None
    return [int(number) for number in np.ravel(tf.make_ndarray(node.attr["value"].tensor))]


def _shape_of(by_name: Mapping[str, NodeDef], name: str) -> list[int] | None:
    """Sizes of a tensor, -1 where they vary; None where nobody knows."""
    node = by_name.get(_producer(name))
    if node is None or "_output_shapes" not in node.attr:
        return None
    last = name.split(":")[-1] if ":" in name else "0"
    shapes = node.attr["_output_shapes"].list.shape
    if len(shapes) == 1:
        last = "0"
    if not last.isdigit() or int(last) >= len(shapes) or shapes[int(last)].unknown_rank:
        return None
    return [dim.size for dim in shapes[int(last)].dim]


def _may_be_rows(shape: list[int] | None, axes: list[int] | None) -> bool:
    """Whether one of ``axes`` of a tensor of this shape may be that of rows, of which nobody knows how many come."""
    if axes is None:  # computed, of a tensor of any rank
        return True
    if shape is None:
        return any(axis <= 0 for axis in axes)
    # The first that varies is that of rows: behind it are those of an image of any size, say.
    rows = next((axis for axis, size in enumerate(shape) if size < 0), None)
    return rows is not None and any(axis in (rows, rows - len(shape)) for axis in axes)
