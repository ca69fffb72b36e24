"""Write a loaded model as a pack.

The graph is the one that the loaded model itself is called with, so the numbers
are the same, bit for bit.  Where packs are kept, and when they are made, is for
others to decide.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import IO, Any

import numpy as np

from ..engines.protocol import to_disk
from ..engines.state import keeps_state
from ..runners.keras_model import KerasRunner
from ..runners.protocol import CannotPack, Runner
from .layers import LAYERS, Layers
from .manifest import GRAPH, MANIFEST, WEIGHTS, Manifest, Output, Weight, facts_of, read_manifest, versions_here

#: Each weight begins at a multiple of so many bytes, as TensorFlow likes it.
ALIGNMENT = 64
#: Operations that call back into the Python of the process that made the graph.
_PYTHON_OPS = {"PyFunc", "PyFuncStateless", "EagerPyFunc"}


def write(runner: Runner, folder: str) -> Manifest:
    """Write the loaded model as a pack into ``folder``, which exists and is empty.

    The manifest comes last: a folder without one is no pack.

    Raises:
        CannotPack: this kind of model has no pack; says why.
        OSError: the disk is full, or the folder may not be written.
    """
    inputs, compiled = runner.single_call()
    concrete = compiled.function
    library, function = _functions(concrete)
    outputs = _outputs(concrete, [port.name for port in runner.outputs])
    with open(os.path.join(folder, WEIGHTS), "wb") as file:
        weights = [_write_weight(file, value) for value in _captured(concrete, runner)]
    with open(os.path.join(folder, GRAPH), "wb") as file:
        file.write(library.SerializeToString(deterministic=True))
    layers = _write_layers(folder, runner, concrete)
    names = [GRAPH, WEIGHTS, *([LAYERS] if layers else [])]
    files = {name: facts_of(os.path.join(folder, name)) for name in names}
    manifest = Manifest(function, inputs, outputs, weights, versions_here(), files, layers)
    for name in names:
        to_disk(os.path.join(folder, name))
    _write_manifest(folder, manifest)
    return manifest


def _write_manifest(folder: str, manifest: Manifest) -> None:
    with open(os.path.join(folder, MANIFEST), "w", encoding="utf-8") as file:
        json.dump(manifest.to_json(), file, indent=1)
    to_disk(os.path.join(folder, MANIFEST))


def without_layers(folder: str) -> None:
    """Take the outputs of layers out of a pack that nobody uses yet."""
    manifest = read_manifest(folder)
    files = {name: facts for name, facts in manifest.files.items() if name != LAYERS}
    _write_manifest(folder, replace(manifest, files=files, layers=None))
    os.unlink(os.path.join(folder, LAYERS))


def _write_layers(folder: str, runner: Runner, main: Any) -> Layers | None:
    """The function that gives the outputs of all layers, with the weights of ``main``; None if it cannot be had."""
    if not isinstance(runner, KerasRunner) or keeps_state(runner.compiled().operations()):
        return None  # of a part of the graph a part of the changes would be made
    if not (names := runner.layers):
        return None
    try:
        concrete: Any = runner.trace_numbered(names).function
        places = {id(outer): number for number, outer in enumerate(main.captured_inputs)}
        weights = [places[id(outer)] for outer in concrete.captured_inputs]
        library, function = _functions(concrete)
        outputs = dict(zip(names, _outputs(concrete, ()).values(), strict=True))
    except (CannotPack, ValueError, KeyError):  # of other inputs, say, or with constants of its own
        return None
    with open(os.path.join(folder, LAYERS), "wb") as file:
        file.write(library.SerializeToString(deterministic=True))
    return Layers(function, outputs, weights)


def _functions(concrete: Any) -> tuple[Any, str]:
    """A GraphDef with the function and all that it calls, under names that nobody else has; and its own name."""
    graph_def = concrete.graph.as_graph_def(add_shapes=True)
    main = concrete.function_def
    shapes = {node.name: node.attr["_output_shapes"] for node in graph_def.node if "_output_shapes" in node.attr}
    graph_def.ClearField("node")
    del graph_def.library.gradient[:]
    if main.signature.name not in [function.signature.name for function in graph_def.library.function]:
        graph_def.library.function.append(main)
        added = graph_def.library.function[-1]
        for node in added.node_def:
            if node.name in shapes:
                node.attr["_output_shapes"].CopyFrom(shapes[node.name])
        for number, argument in enumerate(concrete.inputs):
            if argument.op.name in shapes:
                added.arg_attr[number].attr["_output_shapes"].CopyFrom(shapes[argument.op.name])
    for node in _nodes(graph_def):
        if node.op in _PYTHON_OPS:
            raise CannotPack(f"its graph calls a Python function (node {node.name!r}, {node.op})")
        if "HashTable" in node.op or "LookupTable" in node.op:
            raise CannotPack(f"it looks words up in a table (node {node.name!r}, {node.op})")
    # Two models of one process may have functions of the same name.
    digest = hashlib.sha256(graph_def.SerializeToString(deterministic=True)).hexdigest()[:16]
    names = {f.signature.name: f"tfpool_{digest}_{f.signature.name}" for f in graph_def.library.function}
    for function in graph_def.library.function:
        function.signature.name = names[function.signature.name]
        for value in function.attr.values():
            _rename(value, names)
    for node in _nodes(graph_def):
        node.op = names.get(node.op, node.op)
        for value in node.attr.values():
            _rename(value, names)
    return graph_def, names[main.signature.name]


def _nodes(graph_def: Any) -> Iterator[Any]:
    for function in graph_def.library.function:
        yield from function.node_def


def _rename(value: Any, names: dict[str, str]) -> None:
    """Give functions that an attribute refers to their new names."""
    kind = value.WhichOneof("value")
    if kind == "func":
        value.func.name = names.get(value.func.name, value.func.name)
        for inner in value.func.attr.values():
            _rename(inner, names)
    elif kind == "list":
        for func in value.list.func:
            func.name = names.get(func.name, func.name)
    elif kind == "s":
        text = value.s.decode("utf-8", "replace")
        if text in names:
            value.s = names[text].encode()


def _outputs(concrete: Any, known: Sequence[str]) -> Any:
    import tensorflow as tf

    symbols = tf.nest.flatten(concrete.structured_outputs)
    for odd in (symbol for symbol in symbols if not isinstance(symbol, tf.Tensor)):  # a ragged one is no boolean
        raise CannotPack(f"one of its outputs is a {type(odd).__name__}, not a dense tensor")
    names = known if len(known) == len(symbols) else [symbol.name for symbol in symbols]
    shapes = [None if symbol.shape.rank is None else symbol.shape.as_list() for symbol in symbols]
    outputs = [Output(n, symbol.dtype.name, shape) for n, symbol, shape in zip(names, symbols, shapes, strict=True)]
    return tf.nest.pack_sequence_as(concrete.structured_outputs, outputs)


def _captured(concrete: Any, runner: Runner) -> Iterator[tuple[Any, bool]]:
    """Each value that the graph captured, in its order, and whether it is that of a variable."""
    import tensorflow as tf

    variables = {id(variable.handle): variable for variable in (*runner.variables(), *concrete.graph.variables)}
    for outer in concrete.captured_inputs:
        if outer.dtype != tf.resource:
            yield outer, False
        elif id(outer) in variables:
            yield variables[id(outer)].read_value(), True
        else:
            raise CannotPack("it uses a lookup table or another resource that is no variable")


def _write_weight(file: IO[bytes], captured: tuple[Any, bool]) -> Weight:
    value, is_variable = captured
    if value.dtype.name == "string" or not value.dtype.is_numpy_compatible:
        raise CannotPack(f"one of its constants is of dtype {value.dtype.name}")
    array = np.ascontiguousarray(value.numpy())
    stored = array if array.dtype.kind in "biufc" else array.view(f"u{array.dtype.itemsize}")
    file.write(bytes(-file.tell() % ALIGNMENT))
    offset = file.tell()
    file.write(stored.reshape(-1).view(np.uint8).data)
    return Weight(offset, value.dtype.name, list(np.shape(value.numpy())), is_variable)
