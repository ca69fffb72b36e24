"""Does a graph look at several rows together?  It does not where each operation is known to keep them apart.

A trial shows what always happens: ``x - mean(x, axis=0)``.  It does not show
what happens from some value on, ``x / maximum(max(x), 255)``, or what is
smaller than rounding.  So the rows are followed through the graph, from its
inputs to its outputs, by rules for the operations that are known (`row_rules`,
`row_moves`); any other operation that is given rows may mix them.

Knows GraphDefs, and nothing of models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from graphlib import CycleError
from typing import Any

from .graph_nodes import NodeDef, arguments_of, data_inputs, in_order, outputs_of, place_of, returned, shapes_of
from .row_axis import Mixes, Numbers, Size, Value, free, joined, require
from .row_containers import BLOCKS, CONTAINERS
from .row_moves import MAKE_ROWS, MOVES
from .row_rules import RULES, Operation
from .shape_numbers import NUMBERS, NUMBERS_OF_SEVERAL, OF_SHAPES, SHAPED

_CALLS = {"PartitionedCall", "StatefulPartitionedCall"}
_BRANCHES = {"If", "StatelessIf", "Case", "StatelessCase"}
_LOOPS = {"While", "StatelessWhile"}
#: Of TensorFlow 1: what decides is not always an input.
_OLD_CONTROL = {
    *("Switch", "RefSwitch", "Merge", "RefMerge", "Enter", "RefEnter", "Exit", "RefExit", "LoopCond"),
    *("NextIteration", "RefNextIteration", "_SwitchN"),
}
_SEVERAL_ALIKE = {"IdentityN"}
_RULES = {**RULES, **MOVES}
#: A loop of which the rows have not come to rest after so many rounds is not known.
_ROUNDS = 5
#: As deep as functions may call each other, and so many nodes are looked at in all, of each call and round of a loop.
_DEPTH, _NODES = 30, 30_000


def mixes_rows(graph_def: Any) -> str:
    """The first operation of ``graph_def`` that may, as "node (operation)"; empty where none does.

    Args:
        graph_def: a graph that was traced for any number of rows, with the shapes of its tensors and a "_Retval" for
            each output; or functions of which one calls the others.
    """
    walk = _Walk(graph_def)
    try:
        walk.all()
    except (Mixes, CycleError, LookupError, TypeError, ValueError):  # the last three: no rule has thought of this
        return walk.at or "its outputs"
    return ""


class _Walk:
    """Follows the rows through the functions of a graph; ``at`` says how far it has come."""

    def __init__(self, graph_def: Any) -> None:
        self._nodes = list(graph_def.node)
        self._functions = {function.signature.name: function for function in graph_def.library.function}
        self._depth = self._looked_at = 0
        self.at = ""

    def all(self) -> None:
        if self._nodes:
            self._outputs(self._nodes, {}, returned(self._nodes), "")
            return
        called = {name for function in self._functions.values() for n in function.node_def for name in self._of(n)}
        require(called != set(self._functions))
        for name, function in self._functions.items():
            if name not in called:
                arguments = arguments_of(function)
                self._outputs([*arguments, *function.node_def], {}, outputs_of(function), "")

    def _of(self, node: NodeDef) -> list[str]:
        """The functions that a node calls."""
        named = [value.func.name for value in node.attr.values() if value.HasField("func")]
        named += [func.name for value in node.attr.values() for func in value.list.func]
        return [name for name in (node.op, *named) if name in self._functions]

    def _called(self, name: str, inputs: Sequence[Value], path: str) -> list[Value]:
        """What is known of the outputs of a function."""
        require(name in self._functions and self._depth < _DEPTH)
        function = self._functions[name]
        self._depth += 1
        nodes = arguments_of(function)
        given = {n.name: [_named(x, shapes_of(n), 0, f"{path}{n.name}")] for n, x in zip(nodes, inputs, strict=True)}
        outputs = self._outputs(function.node_def, given, outputs_of(function), path)
        self._depth -= 1
        return outputs

    def _outputs(
        self, nodes: Sequence[NodeDef], known: dict[str, list[Value]], ends: Sequence[str], path: str
    ) -> list[Value]:
        """What is known of the ``ends`` of a graph or function, of which the arguments may be ``known``."""
        require(bool(ends))
        by_name = {node.name: node for node in nodes}
        for node in in_order(by_name, ends):
            if node.name not in known:
                self._looked_at += 1
                require(self._looked_at < _NODES)
                values = [_value(*place_of(name, by_name), known) for name in data_inputs(node)]
                op = Operation(node, values, shapes_of(node))
                made = self._results(op, f"{path}{node.name}|")
                known[node.name] = [_named(x, op.shapes, n, f"{path}{node.name}") for n, x in enumerate(made)]
        outputs = [_value(*place_of(end, by_name), known) for end in ends]
        if not path:
            self.at = ""
            require(all(value.axis == 0 for value in outputs))
        return outputs

    def _results(self, op: Operation, path: str) -> list[Value]:
        node = op.node
        if functions := self._of(node) if node.op in _CALLS or node.op in self._functions else []:
            return self._called(functions[0], op.inputs, path)
        self.at = f"{node.name} ({node.op})"
        require(node.op not in _OLD_CONTROL)
        if node.op in ("Placeholder", "_Arg"):
            return [_argument(op)]
        if any(x.blocks for x in op.inputs):
            require(node.op in BLOCKS)
            return _listed(BLOCKS[node.op](op))
        if node.op in _SEVERAL_ALIKE:
            return list(op.inputs)
        if node.op in _BRANCHES:
            return self._branched(op, path)
        if node.op in _LOOPS:
            return self._looped(op, path)
        if node.op in CONTAINERS:
            return _listed(CONTAINERS[node.op](op))
        has_rows = any(x.has_rows for x in op.inputs) and node.op not in OF_SHAPES
        if has_rows or (node.op in MAKE_ROWS and any(x.counts for x in op.inputs)):
            require(node.op in _RULES)
            return _listed(_RULES[node.op](op))
        return _of_no_rows(op, path)

    def _branched(self, op: Operation, path: str) -> list[Value]:
        require(op.inputs[0].is_plain)
        if "branches" in op.node.attr:
            names = [func.name for func in op.attr("branches").list.func]
        else:
            names = [op.attr("then_branch").func.name, op.attr("else_branch").func.name]
        first, *others = (self._called(name, op.inputs[1:], f"{path}{n}|") for n, name in enumerate(names))
        for other in others:
            first = list(map(joined, first, other))
        return first

    def _looped(self, op: Operation, path: str) -> list[Value]:
        """What is true before a loop and after each round of it, which the rows do not decide about."""
        state = list(op.inputs)
        for _ in range(_ROUNDS):
            after = [
                joined(*pair) for pair in zip(state, self._called(op.attr("body").func.name, state, path), strict=True)
            ]
            if after == state:
                require(all(x.is_plain for x in self._called(op.attr("cond").func.name, state, f"{path}cond|")))
                return state
            state = after
        raise Mixes


def _listed(made: Value | list[Value]) -> list[Value]:
    return made if isinstance(made, list) else [made]


def _argument(op: Operation) -> Value:
    """Of an input of the graph: data has rows along its first axis, if that is of any size."""
    import tensorflow as tf

    dtype = tf.as_dtype((op.attr("dtype") if "dtype" in op.node.attr else op.attr("T")).type)
    shape = op.shapes[0] if op.shapes else None
    has_rows = dtype not in (tf.resource, tf.variant) and (shape is None or shape[:1] == (-1,))
    return Value(axis=0 if has_rows else None)


def _of_no_rows(op: Operation, path: str) -> list[Value]:
    """Of the outputs of an operation, in which nothing comes from a row but what shapes say.

    A number that does not depend on how many rows there are is known by its name, at least.
    """
    several: Sequence[Numbers | None] = [None] * max(1, len(op.shapes))
    if op.node.op in NUMBERS:
        several = [NUMBERS[op.node.op](op)]
    elif op.node.op in NUMBERS_OF_SEVERAL:
        several = NUMBERS_OF_SEVERAL[op.node.op](op)
    of_shapes = op.node.op in OF_SHAPES and op.node.op != "Rank"
    counts = any(x.counts or (of_shapes and x.has_rows) for x in op.inputs)
    if op.node.op in SHAPED and not all(x.is_plain for x in op.inputs[1:]):
        several = [None] * len(several)  # it has another shape with another number of rows
    if op.shapes == [()] and several == [None]:
        several = [(None,)]
    if not counts:
        several = [_all_named(numbers, f"{path}{n}") for n, numbers in enumerate(several)]
    return [free(numbers, counts=counts) for numbers in several]


def _all_named(numbers: Numbers | None, name: str) -> Numbers | None:
    if numbers is None:
        return None
    return tuple(Size(others=(f"{name}.{n}",)) if number is None else number for n, number in enumerate(numbers))


def _named(value: Value, shapes: Sequence[tuple[int, ...] | None], number: int, name: str) -> Value:
    """``value`` as that output of the node ``name``, with the shape that the node says, if it says one."""
    shape = shapes[number] if number < len(shapes) and shapes[number] is not None else value.shape
    return replace(value, shape=shape, name=f"{name}:{number}")


def _value(producer: str, place: int, known: Mapping[str, list[Value]]) -> Value:
    values = known[producer]
    require(place < len(values) or not any(value.has_rows for value in values))
    return values[min(place, len(values) - 1)]
