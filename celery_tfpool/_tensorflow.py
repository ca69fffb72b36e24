"""Every private name of TensorFlow and Keras that is used, each with the public way that is missing.

Seen in TensorFlow 2.16 to 2.21 with Keras 3.  Nothing here imports TensorFlow
before it is called.  `gone` says which names are not there any more.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from .processes import missing_names

_CONTEXT = "tensorflow.python.eager.context"
_OPERATIONS = "tensorflow.python.framework.op_def_registry"
_SESSION = "tensorflow.python.client.session"
_TAPES = "tensorflow.python.eager.record"
#: Module → what of it is used.
NAMES = {
    _CONTEXT: "_context context anonymous_name eager_mode Context.ensure_initialized Context.has_function "
    "Context.add_function_def Context.call_function Context.config",
    _SESSION: "BaseSession.__init__ BaseSession._make_callable_from_options",
    _TAPES: "could_possibly_record",
    _OPERATIONS: "get",
    "tensorflow.python.framework.convert_to_constants": "convert_variables_to_constants_v2",
    "tensorflow.python.grappler.tf_optimizer": "OptimizeGraph",
    "tensorflow.core.protobuf.config_pb2": "CallableOptions",
    "tensorflow.core.protobuf.saved_model_pb2": "SavedModel",
    "keras.src.legacy.saving.saving_utils": "model_from_config",
}
#: What marks a context as initialised, and its devices as looked at; set when one is made.
_OF_A_CONTEXT = ("_context_handle", "_physical_devices")


def gone() -> list[str]:
    """Which names are not there any more, as ``module.name``; empty where TensorFlow is not imported."""
    return missing_names(NAMES) if "tensorflow" in sys.modules else []


# -- is it initialised? ------------------------------------------------------------


def context_state() -> tuple[bool, list[str]]:
    """Whether there is an eager context, and the kinds of devices that were looked at.

    Public way missing: every public question (``tf.config.list_physical_devices``) initialises what it asks about.

    Raises:
        LookupError: TensorFlow does not keep it where it did; says where.
    """
    if (module := sys.modules.get(_CONTEXT)) is None:
        return False, []
    if not hasattr(module, "_context"):
        raise LookupError(f"{_CONTEXT}._context")
    if (context := module._context) is None:
        return False, []
    for name in _OF_A_CONTEXT:
        if not hasattr(context, name):
            raise LookupError(f"{_CONTEXT}.Context.{name}")
    devices = context._physical_devices or ()
    return context._context_handle is not None, [device.device_type for device in devices]


def first_calls() -> list[tuple[str, str]]:
    """Module and name of what is called when TensorFlow, and when a session of TensorFlow 1, is initialised.

    Public way missing: TensorFlow tells nobody.
    """
    return [(_CONTEXT, "Context.ensure_initialized"), (_SESSION, "BaseSession.__init__")]


def loaders() -> list[tuple[str, str, str]]:
    """Module, name and library of each function that loads a model, where it is defined.

    Public way missing: whoever has imported the public name by then keeps what it was.  The private module is
    the first to have it, so all others get what stands there when it has just been imported.
    """
    return [
        ("keras.src.saving.saving_api", "load_model", "keras"),
        ("tensorflow.python.saved_model.load", "load", "tensorflow"),
        ("tf_keras.src.saving.saving_api", "load_model", "tf_keras"),
    ]


def eager_mode() -> AbstractContextManager[Any]:
    """Computes at once, whatever graph is the default.

    Public way missing: ``tf.init_scope`` leaves functions, and not a graph that was made the default.
    """
    return _eager_context().eager_mode()  # type: ignore[no-any-return]


def has_tape() -> bool:
    """Whether a ``tf.GradientTape`` of this thread records.

    Public way missing: a tape is asked what it has recorded, not whether there is one.
    """
    module = sys.modules.get(_TAPES)
    return module is not None and bool(module.could_possibly_record())


def threads_per_session() -> None:
    """Let each session have as many threads as its configuration says, and not those of the first of this process.

    Public way missing: an environment variable that only TensorFlow's source names.
    """
    os.environ["TF_OVERRIDE_GLOBAL_THREADPOOL"] = "1"


# -- functions of a graph ----------------------------------------------------------


def add_functions(graph_def: Any) -> None:
    """Make the functions of a GraphDef known to this process.

    Public way missing: ``tf.graph_util.import_graph_def`` in a ``tf.function`` takes ten times as long.
    """
    context = _eager_context().context()
    for function in graph_def.library.function:
        if not context.has_function(function.signature.name):
            context.add_function_def(function)


def outputs_of(operation: str) -> list[tuple[str, str, str]]:
    """Of each output of an operation its name, and the attributes that say how many there are: a number, or types.

    Empty for what this TensorFlow has no such operation of.

    Public way missing: ``tf.Operation.op_def`` is that of an operation in a graph.
    """
    definition = importlib.import_module(_OPERATIONS).get(operation)
    outputs = definition.output_arg if definition is not None else ()
    return [(output.name, output.number_attr, output.type_list_attr) for output in outputs]


def is_stateful(operation: str) -> bool:
    """Whether it may use more than its inputs; an unknown one is taken to.  Public way missing: as of `outputs_of`."""
    definition = importlib.import_module(_OPERATIONS).get(operation)
    return definition is None or bool(definition.is_stateful)


def function_call(name: str, outputs: int) -> Callable[[Sequence[Any]], list[Any]]:
    """Calls the function ``name``, which `add_functions` made known, with a flat list of tensors.

    Public way missing: as of `add_functions`.
    """
    module, encoded = _eager_context(), name.encode()
    return lambda values: module.context().call_function(encoded, list(values), outputs)


def anonymous_name() -> str:
    """The ``shared_name`` of a variable that no other has.

    Public way missing: ``tf.Variable`` copies its value; made of ``tf.raw_ops`` it needs this name.
    """
    return str(_eager_context().anonymous_name())


def _eager_context() -> Any:
    return importlib.import_module(_CONTEXT)


# -- other forms of a graph --------------------------------------------------------


def with_constants(function: Any, *, lower_control_flow: bool = True) -> Any:
    """A concrete function with constants in place of its variables.

    Public way missing: TensorFlow Lite's converter does this, and more; it takes loops apart into TensorFlow 1's.
    """
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    return convert_variables_to_constants_v2(function, lower_control_flow=lower_control_flow)


def session_call(graph_def: Any, feeds: Sequence[str], fetches: Sequence[str], threads: int) -> Callable[..., Any]:
    """Calls a graph in a session, in the thread that calls; operations share ``threads``.

    Public way missing: ``Session.make_callable`` takes ten times as long for a call that is fed, and only an
    undocumented value keeps operations in the calling thread.
    """
    import tensorflow as tf
    from tensorflow.core.protobuf import config_pb2

    config = tf.compat.v1.ConfigProto()
    config.CopyFrom(_eager_context().context().config)
    config.inter_op_parallelism_threads = -1  # the thread that calls, and no other
    config.intra_op_parallelism_threads = threads
    config.experimental.optimize_for_static_graph = True  # and let go of what is needed to change it
    config.experimental.disable_output_partition_graphs = True
    options = config_pb2.CallableOptions(feed=feeds, fetch=fetches)
    with tf.Graph().as_default() as graph:
        tf.graph_util.import_graph_def(graph_def, name="")
        session = tf.compat.v1.Session(graph=graph, config=config)
        call: Callable[..., Any] = session._make_callable_from_options(options)
    return call


def with_constants_computed(graph_def: Any, fetches: Sequence[str]) -> Any:
    """A GraphDef with what can be computed without inputs as constants.

    Public way missing: Grappler runs by itself, at the first call, and does not say what it made.
    """
    import tensorflow as tf
    from tensorflow.python.grappler import tf_optimizer

    config = tf.compat.v1.ConfigProto()
    config.graph_options.rewrite_options.optimizers.append("constfold")
    with tf.Graph().as_default() as graph:
        tf.graph_util.import_graph_def(graph_def, name="")
        meta_graph = tf.compat.v1.train.export_meta_graph(graph_def=graph_def, graph=graph)
    meta_graph.collection_def["train_op"].node_list.value.extend(fetches)
    return tf_optimizer.OptimizeGraph(config, meta_graph)


def model_of_keras_2(config: dict[str, Any], objects: dict[str, Any]) -> Any:
    """The model that Keras 2's ``to_json()`` describes, without its weights.

    Public way missing: ``model_from_json`` knows what Keras 3 writes, and ``load_model`` reads this in .h5 files only.
    """
    from keras.src.legacy.saving.saving_utils import model_from_config

    return model_from_config(config, objects)


def outputs_of_first_call(layer: Any) -> list[Any]:
    """The symbolic outputs of a model that is a layer of another, where that calls it; none where nobody does.

    Public way missing: ``output`` of such a layer is of its own inputs, as nothing of the other one is.
    """
    nodes = getattr(layer, "_inbound_nodes", None) or []
    if not nodes:
        return []
    outputs = getattr(nodes[0], "output_tensors", None) or nodes[0].outputs
    return list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]


def saved_model_description(data: bytes) -> Any:
    """The message in a ``saved_model.pb``.

    Public way missing: ``tf.compat.v1.saved_model`` has loaders only.
    """
    from tensorflow.core.protobuf import saved_model_pb2

    return saved_model_pb2.SavedModel.FromString(data)
