"""Call a SavedModel: by its serving signature, or, where it has none, as the object that was saved.

A signature says names, dtypes and shapes of inputs and outputs, and nothing
else of the model is known: no Keras, no ``fit``, no layers.
"""

from __future__ import annotations

import logging
import os
import tempfile
from typing import Any

from .. import _tensorflow
from . import location
from .any_object import ObjectRunner
from .convert import to_numpy
from .inputs import Named
from .protocol import Compiled, Runner, graph_def_of
from .spec import port_of

logger: logging.Logger = logging.getLogger(__name__)


def runner_of(name: str, path: str, signature: str | None = None) -> Runner:
    """Of the SavedModel at ``path``, ready to predict.

    Raises:
        BadSource: it has no such signature, or none at all and cannot be called; or a signature that cannot be served.
    """
    loaded = _load(path)
    if signature is None and not loaded.signatures and callable(loaded):
        return CallRunner(name, loaded)
    return SignatureRunner(name, loaded, signature)


class CallRunner(ObjectRunner):
    """Calls of the object that was saved, which has no signature: most of TensorFlow Hub."""

    def delegate(self, x: Any, **options: Any) -> Any:
        """What the object's own call gives, as arrays."""
        return to_numpy(super().delegate(x, **options))

    def only_here(self) -> str:
        """Why it cannot predict for other processes."""
        return "it is a SavedModel without a signature, of which nobody knows what it takes; its own call predicts"


class SignatureRunner(Runner):
    """Calls of a SavedModel's serving signature."""

    _inputs: Named

    def __init__(self, name: str, loaded: Any, signature: str | None = None) -> None:
        self._loaded = loaded  # owns the variables: must live as long as the signature
        self._signature = _signature(self._loaded, name, signature)
        _, inputs = self._signature.structured_input_signature
        outputs = self._signature.structured_outputs
        named = Named([port_of(spec, key) for key, spec in sorted(inputs.items())], _orders(self._loaded))
        super().__init__(name, named, [port_of(spec, key) for key, spec in outputs.items()])
        self._compiled = Compiled(self._call, _only(outputs), graph_def_of(self._signature))

    def compiled(self) -> Compiled:
        """The signature."""
        return self._compiled

    def single_call(self) -> tuple[Named, Compiled]:
        """As `Runner.single_call`."""
        import tensorflow as tf

        signature = [tf.TensorSpec(port.shape, port.dtype) for port in self.inputs]
        concrete = tf.function(self._call, input_signature=signature, autograph=False).get_concrete_function()
        return self._inputs, Compiled(concrete, concrete.structured_outputs, graph_def_of(concrete))

    def variables(self) -> list[Any]:
        """Those that the signature uses."""
        return list(self._signature.variables)

    def _call(self, *tensors: Any) -> Any:
        names = (port.name for port in self.inputs)
        return _only(self._signature(**dict(zip(names, tensors, strict=True))))


def _load(path: str) -> Any:
    """The SavedModel, whichever Keras wrote it.

    Keras 2's own save of a model that was compiled with its older optimizers (Adam until 2.10) has the optimizer's
    slots, which only Keras 2 can create. They are of no use to predict: such a model is loaded from a copy of its
    description without them. Its weights are not copied.
    """
    import tensorflow as tf

    try:
        return tf.saved_model.load(path)
    except AttributeError:
        written = os.path.join(path, "saved_model.pb")
        if not os.path.exists(written):  # as text, which Keras never does
            raise
        with open(written, "rb") as file:
            description = _tensorflow.saved_model_description(file.read())
        nodes = [node for graph in description.meta_graphs for node in graph.object_graph_def.nodes]
        if not any(node.slot_variables for node in nodes):
            raise
    for node in nodes:
        node.ClearField("slot_variables")
    with tempfile.TemporaryDirectory() as folder:
        for entry in os.scandir(path):
            if entry.name != "saved_model.pb":
                os.symlink(os.path.abspath(entry.path), os.path.join(folder, entry.name))
        with open(os.path.join(folder, "saved_model.pb"), "wb") as file:
            file.write(description.SerializeToString())
        return tf.saved_model.load(folder)


#: The signature that TensorFlow Serving takes where none is named.
_USUAL = "serving_default"


def _signature(loaded: Any, name: str, wanted: str | None) -> Any:
    signatures = loaded.signatures
    known = ", ".join(map(repr, sorted(signatures)))
    key = wanted or (_USUAL if _USUAL in signatures else next(iter(signatures), None))
    if key is None:
        raise location.BadSource(
            "the SavedModel has no serving signature, and the object that was saved cannot be called; save it with "
            "model.export(path), or with tf.saved_model.save(object, path, signatures=...)"
        )
    if key not in signatures:
        raise location.BadSource(f"the SavedModel has no signature {key!r}; it has {known or 'none'}")
    if wanted is None and len(signatures) > 1:
        logger.info(
            "model %r: predicts by signature %r of %s; `signature` of the model names another", name, key, known
        )
    signature = signatures[key]
    for name, spec in signature.structured_input_signature[1].items():
        if spec.shape.rank is None:
            raise location.BadSource(
                f"nobody knows how many dimensions its input {name!r} has (shape {spec.shape}); save it with an "
                "input_signature that says so"
            )
    return signature


def _orders(loaded: Any) -> list[list[str]]:
    """Names of inputs in the model's order.

    A signature sorts its inputs by name; only the function that
    keras.Model.export puts next to it keeps their order.
    """
    found = []
    for function in getattr(getattr(loaded, "serve", None), "concrete_functions", ()):
        (inputs, *more), keywords = function.structured_input_signature
        if isinstance(inputs, (list, tuple)) and not more and not keywords:
            found.append([spec.name for spec in inputs])
    return found


def _only(outputs: dict[str, Any]) -> Any:
    """The output itself where there is but one."""
    return next(iter(outputs.values())) if len(outputs) == 1 else outputs
