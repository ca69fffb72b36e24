"""A model as files, written once and mapped by any number of processes.

    pack.json       what it is: inputs, outputs, weights, versions, size and SHA-256 of each file
    graph.pb        the inference graph, a GraphDef that holds functions only
    weights/N.npy   each weight in NumPy's format, whose data begin at a multiple of 64 bytes

`write` needs the loaded model, `attach` only the folder: it maps the weights
copy-on-write and gives them to TensorFlow as they are, and no Keras model is
built.  The graph is the one that the loaded model itself is called with, so
the numbers are the same, bit for bit.

Where packs are kept, and when they are made, is for others to decide.

Private names used, because there is no public way: ``context.add_function_def``
and ``context.call_function`` of TensorFlow, which its own compiled functions
go through (importing the graph the public way takes ten times as long), and
``context.anonymous_name``, with which it makes its own variables.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from . import runtime
from .arrays import CannotEncode, structure_of_json, structure_to_json
from .inputs import Inputs, inputs_of_json
from .ports import Port
from .runner import CannotPack, Compiled, Runner

FORMAT = 1
MANIFEST = "pack.json"
GRAPH = "graph.pb"
WEIGHTS = "weights"

#: Operations that call back into the Python of the process that made the graph.
_PYTHON_OPS = {"PyFunc", "PyFuncStateless", "EagerPyFunc"}


class DamagedPack(Exception):
    """The text says what is wrong with a pack, and in which file."""


# -- what the manifest says ----------------------------------------------------


@dataclass(frozen=True)
class Weight:
    """One captured value of the graph: a variable, or a constant that was made outside of it."""

    file: str
    #: TensorFlow's name; a dtype that NumPy lacks is stored in whole numbers of the same width.
    dtype: str
    shape: list[int]
    variable: bool


@dataclass(frozen=True)
class Output:
    """One output; ``shape`` is None where not even its rank is known."""

    name: str
    dtype: str
    shape: list[int | None] | None


@dataclass(frozen=True)
class Manifest:
    """What a pack holds."""

    function: str
    inputs: Inputs
    #: The structure of the outputs; each leaf is an `Output`.
    outputs: Any
    weights: list[Weight]
    versions: dict[str, str]
    #: File → size and SHA-256.
    files: dict[str, dict[str, Any]]

    @property
    def bytes(self) -> int:
        """Of all files that are mapped or read."""
        return sum(int(facts["bytes"]) for facts in self.files.values())

    def output_ports(self) -> list[Port]:
        return [Port(output.name, output.dtype, tuple(output.shape or ())) for output in _leaves(self.outputs)]

    def to_json(self) -> dict[str, Any]:
        facts = {
            "format": FORMAT,
            "function": self.function,
            "inputs": _inputs_to_json(self.inputs),
            "outputs": _encoded(self.outputs),
            "weights": [asdict(weight) for weight in self.weights],
            "versions": self.versions,
            "files": self.files,
        }
        return {**facts, "checksum": _checksum(facts)}

    @classmethod
    def of_json(cls, facts: dict[str, Any]) -> Manifest:
        return cls(
            function=facts["function"],
            inputs=inputs_of_json(facts["inputs"]),
            outputs=_decoded(facts["outputs"]),
            weights=[Weight(**weight) for weight in facts["weights"]],
            versions=facts["versions"],
            files=facts["files"],
        )


def _checksum(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def is_pack(folder: str) -> bool:
    """Whether ``folder`` looks like a pack, damaged or not."""
    return os.path.isfile(os.path.join(folder, MANIFEST))


def read_manifest(folder: str) -> Manifest:
    """The manifest of the pack in ``folder``.

    Raises:
        DamagedPack: there is none that can be read, or of a format that this version does not know.
    """
    try:
        with open(os.path.join(folder, MANIFEST), encoding="utf-8") as file:
            facts = json.load(file)
        known = facts["format"]
        if known == FORMAT:
            if facts.pop("checksum") != _checksum(facts):
                raise DamagedPack(f"{MANIFEST} has changed since it was written")
            return _checked(Manifest.of_json(facts), folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise DamagedPack(f"{MANIFEST} cannot be read ({type(exc).__name__}: {exc})") from exc
    raise DamagedPack(f"{MANIFEST} is of format {known!r}; this version of celery_tfpool knows {FORMAT}")


def _checked(manifest: Manifest, folder: str) -> Manifest:
    """``manifest``, which names no file that is elsewhere, and none that is not verified."""
    for name in (GRAPH, *(weight.file for weight in manifest.weights)):
        if name not in manifest.files:
            raise DamagedPack(f"{MANIFEST} has no checksum of {name!r}")
    place = os.path.realpath(folder)
    for name in manifest.files:
        found = os.path.realpath(os.path.join(place, name))
        if os.path.isabs(name) or os.path.commonpath([place, found]) != place:
            raise DamagedPack(f"{MANIFEST} names {name!r}, which is not in its folder")
    return manifest


def versions_here() -> dict[str, str]:
    """What a pack that is made here is made by."""
    from . import __version__

    return {**runtime.versions(), "celery_tfpool": __version__}


def made_elsewhere(manifest: Manifest) -> str:
    """Why a pack is not to be used here: it was made by other versions; empty when it was not."""
    here = versions_here()
    made_by = [name for name, version in here.items() if manifest.versions.get(name) != version]
    if not made_by:
        return ""
    by, with_ = (
        ", ".join(f"{name} {versions.get(name, 'of unknown version')}" for name in made_by)
        for versions in (manifest.versions, here)
    )
    return (
        f"the pack was made by {by}; here is {with_}. "
        "Make it again: celery tfpool pack, with the versions that are to use it"
    )


def verify(folder: str) -> Manifest:
    """Read every byte of the pack in ``folder`` and compare it with the manifest's checksums.

    Raises:
        DamagedPack: a file is missing, cut off or changed.
    """
    manifest = read_manifest(folder)
    for name, expected in manifest.files.items():
        try:
            found = _facts(os.path.join(folder, name))
        except OSError as exc:
            raise DamagedPack(f"{name} cannot be read ({exc.strerror})") from exc
        if found != expected:
            raise DamagedPack(f"{name} has changed since it was written")
    return manifest


def _facts(path: str) -> dict[str, Any]:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
        return {"bytes": file.tell(), "sha256": digest.hexdigest()}


# -- structures as JSON ----------------------------------------------------------


def _encoded(structure: Any) -> Any:
    try:
        return structure_to_json(structure, lambda leaf: asdict(leaf) if isinstance(leaf, Output) else leaf)
    except CannotEncode as exc:
        raise CannotPack(f"its inputs or outputs {exc}") from exc


def _inputs_to_json(inputs: Inputs) -> Any:
    try:
        return inputs.to_json()
    except CannotEncode as exc:
        raise CannotPack(f"its inputs or outputs {exc}") from exc


def _decoded(facts: Any) -> Any:
    return structure_of_json(facts, lambda leaf: Output(**leaf) if isinstance(leaf, dict) else leaf)


def _leaves(structure: Any) -> Iterator[Any]:
    if isinstance(structure, (dict, list, tuple)):
        for part in structure.values() if isinstance(structure, dict) else structure:
            yield from _leaves(part)
    else:
        yield structure


# -- writing -------------------------------------------------------------------


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
    outputs = _outputs(concrete, runner)
    os.mkdir(os.path.join(folder, WEIGHTS))
    weights = [_write_weight(folder, number, value) for number, value in enumerate(_captured(concrete, runner))]
    with open(os.path.join(folder, GRAPH), "wb") as file:
        file.write(library.SerializeToString(deterministic=True))
    names = [GRAPH, *(weight.file for weight in weights)]
    files = {name: _facts(os.path.join(folder, name)) for name in names}
    manifest = Manifest(function, inputs, outputs, weights, versions_here(), files)
    for name in names:
        _to_disk(os.path.join(folder, name))
    with open(os.path.join(folder, MANIFEST), "w", encoding="utf-8") as file:
        json.dump(manifest.to_json(), file, indent=1)
    _to_disk(os.path.join(folder, MANIFEST))
    return manifest


def _to_disk(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _functions(concrete: Any) -> tuple[Any, str]:
    """A GraphDef with the function and all that it calls, under names that nobody else has; and its own name."""
    graph_def = concrete.graph.as_graph_def()
    main = concrete.function_def
    graph_def.ClearField("node")
    del graph_def.library.gradient[:]
    if main.signature.name not in [function.signature.name for function in graph_def.library.function]:
        graph_def.library.function.append(main)
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


def _outputs(concrete: Any, runner: Runner) -> Any:
    import tensorflow as tf

    symbols = tf.nest.flatten(concrete.structured_outputs)
    for odd in (symbol for symbol in symbols if not isinstance(symbol, tf.Tensor)):  # a ragged one is no boolean
        raise CannotPack(f"one of its outputs is a {type(odd).__name__}, not a dense tensor")
    known = [port.name for port in runner.outputs]
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


def _write_weight(folder: str, number: int, captured: tuple[Any, bool]) -> Weight:
    value, is_variable = captured
    name = f"{WEIGHTS}/{number}.npy"
    if value.dtype.name == "string" or not value.dtype.is_numpy_compatible:
        raise CannotPack(f"one of its constants is of dtype {value.dtype.name}")
    array = np.asarray(value.numpy())
    stored = array if array.dtype.kind in "biufc" else array.view(f"u{array.dtype.itemsize}")
    with open(os.path.join(folder, name), "wb") as file:
        np.lib.format.write_array(file, stored, allow_pickle=False)
    return Weight(name, value.dtype.name, list(array.shape), is_variable)


# -- attaching -----------------------------------------------------------------


def attach(folder: str) -> tuple[Manifest, Compiled]:
    """The pack's model, ready to be called in this process; initialises TensorFlow.

    Raises:
        DamagedPack: files are missing or cut off.
        Exception: whatever TensorFlow says of a graph that it cannot run.
    """
    import tensorflow as tf
    from tensorflow.python.eager import context

    manifest = read_manifest(folder)
    for name, facts in manifest.files.items():
        size = os.stat(path).st_size if os.path.exists(path := os.path.join(folder, name)) else None
        if size != facts["bytes"]:
            raise DamagedPack(f"{name} has {size} bytes instead of {facts['bytes']}")
    graph_def = _read_graph(folder)
    runtime_context = context.context()
    for function in graph_def.library.function:
        if not runtime_context.has_function(function.signature.name):
            runtime_context.add_function_def(function)
    captured = [_given_to_tensorflow(folder, weight, context.anonymous_name()) for weight in manifest.weights]
    specs = tf.nest.map_structure(lambda output: tf.TensorSpec(output.shape, output.dtype), manifest.outputs)
    number, function_name = len(tf.nest.flatten(specs)), manifest.function.encode()

    def call(*values: Any) -> Any:
        flat = context.context().call_function(function_name, [*values, *captured], number)
        return tf.nest.pack_sequence_as(specs, flat)

    return manifest, Compiled(call, specs, lambda: _read_graph(folder))


def concrete(folder: str) -> tuple[Any, Any, list[Any]]:
    """The pack's graph as a concrete function with variables of its own, its outputs, these variables; to be frozen.

    Slower to make than what `attach` gives, and nothing of it is mapped.  The
    function does not keep its variables alive.
    """
    import tensorflow as tf

    manifest, graph_def = read_manifest(folder), _read_graph(folder)
    main = next(f for f in graph_def.library.function if f.signature.name == manifest.function)
    arguments = main.signature.input_arg
    for number, argument in enumerate(arguments):
        node = graph_def.node.add(name=f"argument_{number}", op="Placeholder")
        node.attr["dtype"].type = argument.type
    call = graph_def.node.add(name="call", op="StatefulPartitionedCall")
    call.input.extend(node.name for node in graph_def.node[:-1])
    call.attr["Tin"].list.type.extend(argument.type for argument in arguments)
    call.attr["Tout"].list.type.extend(result.type for result in main.signature.output_arg)
    call.attr["f"].func.name = manifest.function
    outside = [_copied(folder, weight) for weight in manifest.weights]

    def step(*values: Any) -> Any:
        graph: Any = tf.compat.v1.get_default_graph()
        given = list(values)
        for value in outside:
            if isinstance(value, tf.Variable):
                graph.watch_variable(value)
            given.append(graph.capture(value.handle if isinstance(value, tf.Variable) else value))
        return tf.graph_util.import_graph_def(
            graph_def,
            input_map={f"argument_{number}:0": value for number, value in enumerate(given)},
            return_elements=[f"call:{number}" for number in range(len(main.signature.output_arg))],
            name="",
        )

    signature = [tf.TensorSpec(port.shape, port.dtype) for port in manifest.inputs.ports]
    specs = tf.nest.map_structure(lambda output: tf.TensorSpec(output.shape, output.dtype), manifest.outputs)
    return tf.function(step, input_signature=signature, autograph=False).get_concrete_function(), specs, outside


def _copied(folder: str, weight: Weight) -> Any:
    import tensorflow as tf

    stored = np.load(os.path.join(folder, weight.file), mmap_mode="r", allow_pickle=False)
    tensor = tf.constant(np.asarray(stored))
    if tensor.dtype != weight.dtype:
        tensor = tf.bitcast(tensor, weight.dtype)
    return tf.Variable(tensor) if weight.variable else tensor


def _read_graph(folder: str) -> Any:
    from tensorflow.core.framework import graph_pb2

    graph_def = graph_pb2.GraphDef()
    with open(os.path.join(folder, GRAPH), "rb") as file:
        graph_def.ParseFromString(file.read())
    return graph_def


def _given_to_tensorflow(folder: str, weight: Weight, anonymous_name: str) -> Any:
    """The weight as a tensor on the mapped pages; a variable as the handle of one that holds that tensor."""
    import tensorflow as tf

    array = np.load(os.path.join(folder, weight.file), mmap_mode="c", allow_pickle=False)
    if array.ndim and array.size and array.dtype.kind != "b":
        tensor = tf.experimental.dlpack.from_dlpack(np.asarray(array).__dlpack__())
    else:  # what DLPack does not know is small
        tensor = tf.constant(np.array(array))
    if tensor.dtype != weight.dtype:
        tensor = tf.bitcast(tensor, weight.dtype)
    if not weight.variable:
        return tensor
    handle = tf.raw_ops.VarHandleOp(dtype=tensor.dtype, shape=tensor.shape, shared_name=anonymous_name)
    tf.raw_ops.AssignVariableOp(resource=handle, value=tensor)
    return handle
