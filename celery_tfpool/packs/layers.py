"""What layers inside a model give, from its pack: a second function beside the main one, on the same weights.

Written with the pack where the model has layers that can be named.  A process that asks for some of them makes a
function that returns these and nothing else, so that the rest is not computed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .. import _tensorflow
from ..engines.graph_nodes import in_order
from ..runners.structure import leaves

#: The GraphDef with the function.
LAYERS = "layers.pb"


@dataclass(frozen=True)
class Layers:
    """Of a pack."""

    function: str
    #: By the name of the layer, sorted; each leaf is a `manifest.Output`.
    outputs: dict[str, Any]
    #: Which of the pack's weights the function takes, in its order.
    weights: list[int]


def call_of(
    layers: Layers, graph_def: Any, names: Sequence[str], captured: Sequence[Any]
) -> tuple[Callable[..., Any], list[Any]]:
    """A call that gives what ``names`` give, in their order, and the specs of its outputs.

    Args:
        graph_def: what `LAYERS` holds.
        captured: all weights of the pack, as they were given to TensorFlow.
    """
    import tensorflow as tf

    specs = [
        tf.nest.map_structure(lambda leaf: tf.TensorSpec(leaf.shape, leaf.dtype), layers.outputs[name])
        for name in names
    ]
    function = _returning(layers, graph_def, names)
    _tensorflow.add_functions(graph_def)
    function_call = _tensorflow.function_call(function, len(tf.nest.flatten(specs)))
    weights = [captured[number] for number in layers.weights]

    def call(*values: Any) -> Any:
        return tf.nest.pack_sequence_as(specs, function_call([*values, *weights]))

    return call, specs


def _returning(layers: Layers, graph_def: Any, names: Sequence[str]) -> str:
    """Make the function one that returns what ``names`` give, of the nodes that this needs; its new name."""
    first, places = 0, dict[str, range]()
    for name, structure in layers.outputs.items():
        places[name] = range(first, first := first + len(list(leaves(structure))))
    wanted = [place for name in names for place in places[name]]
    function = next(one for one in graph_def.library.function if one.signature.name == layers.function)
    given = [function.ret[output.name] for output in function.signature.output_arg]
    function.signature.name = f"{layers.function}_{'_'.join(map(str, wanted))}"
    types = [function.signature.output_arg[place].type for place in wanted]
    del function.signature.output_arg[:]
    function.ret.clear()
    for number, (place, kind) in enumerate(zip(wanted, types, strict=True)):
        function.signature.output_arg.add(name=f"wanted_{number}", type=kind)
        function.ret[f"wanted_{number}"] = given[place]
    needed = {node.name for node in in_order({n.name: n for n in function.node_def}, list(function.ret.values()))}
    kept = [node for node in function.node_def if node.name in needed]
    for node in kept:
        inputs = [name for name in node.input if not name.startswith("^") or name[1:] in needed]
        del node.input[:]
        node.input.extend(inputs)
    del function.node_def[:]
    function.node_def.extend(kept)
    function.control_ret.clear()
    del function.signature.control_output[:]
    return str(function.signature.name)
