"""Call a pack in this process: map its weights, and no Keras model is built.

The weights are mapped copy-on-write and given to TensorFlow as they are.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from .. import _tensorflow
from ..errors import PredictionError
from ..runners import location
from ..runners.convert import short
from ..runners.dtypes import numpy_dtype
from ..runners.location import Kind
from ..runners.options import NOTHING, LoadOptions
from ..runners.protocol import Compiled, Runner
from ..runners.stored import load_stored
from .layers import LAYERS, call_of
from .manifest import GRAPH, WEIGHTS, DamagedPack, Manifest, Weight, check_versions, read_manifest


class PackRunner(Runner):
    """Calls of a pack's graph."""

    def __init__(self, name: str, folder: str) -> None:
        manifest, self._compiled, self._captured = attach(folder)
        super().__init__(name, manifest.inputs, manifest.output_ports(), folder)
        self.manifest: Manifest = manifest
        self.layers = list(manifest.layers.outputs) if manifest.layers else []

    def compiled(self) -> Compiled:
        """The pack's graph."""
        return self._compiled

    def trace_layers(self, names: Sequence[str]) -> Compiled:
        """As `Runner.trace_layers`; nothing is traced."""
        layers, folder = self.manifest.layers, self.pack_folder
        assert layers is not None
        assert folder is not None
        try:
            graph_def = _read_graph(folder, LAYERS)
        except Exception as exc:  # TensorFlow has an error of its own for what is damaged
            lost = f"{LAYERS} of its pack in {folder} was removed or damaged while it was in use ({short(exc)})"
            raise PredictionError(self.name, f"{lost}; restart the worker") from exc
        call, specs = call_of(layers, graph_def, names, self._captured)
        return Compiled(call, specs, lambda: _read_graph(folder, LAYERS))

    def variables(self) -> list[Any]:
        """Its weights that are variables, as `manifest.Weight`: dtype and shape."""
        return [weight for weight in self.manifest.weights if weight.variable]


def load(name: str, path: str, *, safe_mode: bool, options: LoadOptions = NOTHING, compiled: bool = False) -> Runner:
    """Whatever stands at ``path``: as `load_stored`, and packs as well.

    Raises:
        BadSource: there is no such model, or it is a pack that other versions made.
    """
    if location.check(path, safe_mode=safe_mode, weights=options.weights) is not Kind.PACK:
        return load_stored(name, path, safe_mode=safe_mode, options=options, compiled=compiled)
    folder = os.path.expanduser(path)
    check_versions(read_manifest(folder))
    return PackRunner(name, folder)


def attach(folder: str) -> tuple[Manifest, Compiled, list[Any]]:
    """The pack's model, ready to be called in this process, and its weights as TensorFlow has them; initialises it.

    Raises:
        DamagedPack: files are missing or cut off.
        Exception: whatever TensorFlow says of a graph that it cannot run.
    """
    import tensorflow as tf

    manifest = read_manifest(folder)
    for name, facts in manifest.files.items():
        size = os.stat(path).st_size if os.path.exists(path := os.path.join(folder, name)) else None
        if size != facts["bytes"]:
            raise DamagedPack(f"{name} has {size} bytes instead of {facts['bytes']}")
    graph_def = _read_graph(folder)
    _tensorflow.add_functions(graph_def)
    captured = [_given_to_tensorflow(array, weight) for array, weight in _mapped(folder, manifest.weights)]
    specs = tf.nest.map_structure(lambda output: tf.TensorSpec(output.shape, output.dtype), manifest.outputs)
    function_call = _tensorflow.function_call(manifest.function, len(tf.nest.flatten(specs)))

    def call(*values: Any) -> Any:
        return tf.nest.pack_sequence_as(specs, function_call([*values, *captured]))

    return manifest, Compiled(call, specs, lambda: _read_graph(folder)), captured


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
    outside = [_copied(array, weight) for array, weight in _mapped(folder, manifest.weights)]

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


def _mapped(folder: str, weights: Sequence[Weight]) -> Iterator[tuple[Any, Weight]]:
    """Each weight with its array, all of them on one copy-on-write map of the file; a descriptor for all."""
    with open(os.path.join(folder, WEIGHTS), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        pages = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY) if size else bytearray()
    for weight in weights:
        dtype = _stored_as(weight.dtype)
        count = math.prod(weight.shape)
        array = np.frombuffer(pages, dtype, count, weight.offset) if count else np.empty(0, dtype)
        yield array.reshape(weight.shape), weight


def _stored_as(name: str) -> np.dtype[Any]:
    """How numbers of a dtype stand in the file: those that NumPy lacks as whole numbers of the same width."""
    dtype = numpy_dtype(name)
    return dtype if dtype.kind in "biufc" else np.dtype(f"u{dtype.itemsize}")


def _copied(array: Any, weight: Weight) -> Any:
    import tensorflow as tf

    tensor = tf.constant(array)
    if tensor.dtype != weight.dtype:
        tensor = tf.bitcast(tensor, weight.dtype)
    return tf.Variable(tensor) if weight.variable else tensor


def _read_graph(folder: str, name: str = GRAPH) -> Any:
    import tensorflow as tf

    graph_def = tf.compat.v1.GraphDef()
    with open(os.path.join(folder, name), "rb") as file:
        graph_def.ParseFromString(file.read())
    return graph_def


def _given_to_tensorflow(array: Any, weight: Weight) -> Any:
    """The weight as a tensor on the mapped pages; a variable as the handle of one that holds that tensor."""
    import tensorflow as tf

    if array.ndim and array.size and array.dtype.kind != "b":
        tensor = tf.experimental.dlpack.from_dlpack(np.asarray(array).__dlpack__())
    else:  # what DLPack does not know is small
        tensor = tf.constant(np.array(array))
    if tensor.dtype != weight.dtype:
        tensor = tf.bitcast(tensor, weight.dtype)
    if not weight.variable:
        return tensor
    name = _tensorflow.anonymous_name()
    handle = tf.raw_ops.VarHandleOp(dtype=tensor.dtype, shape=tensor.shape, shared_name=name)
    tf.raw_ops.AssignVariableOp(resource=handle, value=tensor)
    return handle
