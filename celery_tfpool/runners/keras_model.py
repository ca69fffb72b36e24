"""Call a Keras model that declares its inputs: functional or sequential.

One trace of ``predict_step``, the step that ``keras.Model.predict`` calls, in
the shapes and dtypes that the model declares, serves every call.  Models that
do not say what they take are for `free_runner`.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from . import layers
from .convert import arrays, is_plain
from .inputs import Structured
from .protocol import CannotPack, Compiled, Runner, graph_def_of
from .spec import Port, port_of


class KerasRunner(Runner):
    """Compiled calls of a Keras model's ``predict_step``."""

    _inputs: Structured

    def __init__(self, name: str, model: Any) -> None:
        symbols = declared(model, "inputs")
        structure = _structure(model, symbols)
        inputs = Structured(_ports(structure, symbols), _numbers(structure))
        super().__init__(name, inputs, [port_of(symbol) for symbol in declared(model, "outputs")])
        self.keras_model = model
        self._overridden = overrides(model, "predict", "make_predict_function")
        self._lock = threading.Lock()
        self._compiled: Compiled | None = None
        self._found: dict[str, Any] | None = None

    def takes(self, x: Any) -> bool:
        """Whether ``x`` is plain data, and `predict` the model's own is Keras's."""
        return not self.only_here() and super().takes(x)

    def delegate(self, x: Any, **options: Any) -> Any:
        """Let Keras itself predict."""
        options["verbose"] = 0 if options.get("verbose") == "auto" else options.get("verbose", 0)
        with self.refusal():
            x = arrays(x) if is_plain(x) else x
            if "outputs" in options and not overrides(self.keras_model, "predict"):
                outputs, found = options.pop("outputs"), self._outputs_of_layers()
                wanted = [found[name] for name in layers.names_of(outputs, list(found))]
                return inner(self.keras_model, layers.chosen(outputs, wanted)).predict(x, **options)
        return self.keras_model.predict(x, **options)

    def variables(self) -> list[Any]:
        """The Keras model's own."""
        return list(self.keras_model.variables)

    def forget(self) -> None:
        """Compile anew at the next call: the model has another function."""
        self._compiled = None
        self._inner.clear()
        self._found = None

    def _outputs_of_layers(self) -> dict[str, Any]:
        if self._found is None:
            model = self.keras_model
            self._found = layers.outputs_of(model, library_of(model), lambda outputs: inner(model, outputs))
        return self._found

    @property
    def layers(self) -> Sequence[str]:  # type: ignore[override]
        """Of which layers it can give the outputs."""
        return () if self.only_here() else list(self._outputs_of_layers())

    def trace_layers(self, names: Sequence[str]) -> Compiled:
        """As `Runner.trace_layers`."""
        compiled = self.trace_numbered(names)
        return replace(
            compiled,
            function=lambda *x: list(compiled.function(*x).values()),
            outputs=list(compiled.outputs.values()),
        )

    def trace_numbered(self, names: Sequence[str]) -> Compiled:
        """The call whose outputs are a dict of what the layers ``names`` give, in their order."""
        return KerasRunner(self.name, self.part_of(names)).compiled()

    def part_of(self, names: Sequence[str]) -> Any:
        """The Keras model whose outputs are a dict of what the layers ``names`` give, in their order."""
        found = self._outputs_of_layers()
        # Keras keeps the keys of a dict, and a list of one is no list any more.
        return inner(self.keras_model, {f"{number:05}": found[name] for number, name in enumerate(names)})

    def only_here(self) -> str:
        """Why this model cannot predict for other processes: Keras itself has to, say; empty when it can."""
        own = self._overridden or self.keras_model.run_eagerly
        return "it has a predict() or make_predict_function() of its own, or runs eagerly" if own else ""

    def single_call(self) -> tuple[Structured, Compiled]:
        """As `Runner.single_call`."""
        if why := self.only_here():
            raise CannotPack(why)
        return self._inputs, self.compiled()

    def compiled(self) -> Compiled:
        """The compiled call of the model's ``predict_step``."""
        with self._lock:
            if self._compiled is None:
                self._compiled = self._trace(self._inputs.pack, self.inputs)
            return self._compiled

    def _trace(self, pack: Callable[[list[Any]], Any], ports: list[Port]) -> Compiled:
        import tensorflow as tf

        def step(*flat: Any) -> Any:
            x = pack(list(flat))
            return self.keras_model.predict_step((x,) if isinstance(x, (list, tuple)) else x)  # as Keras packs it

        signature = [tf.TensorSpec(port.shape, port.dtype) for port in ports]
        concrete = tf.function(step, input_signature=signature, autograph=False).get_concrete_function()
        return Compiled(concrete, concrete.structured_outputs, graph_def_of(concrete))


def inner(model: Any, outputs: Any) -> Any:
    """The part of a functional or sequential model that gives ``outputs`` of its layers; it has the same weights.

    Raises:
        ValueError: they are not computed of its inputs.
    """
    return library_of(model).Model(_structure(model, declared(model, "inputs")), outputs)


def library_of(model: Any) -> Any:
    """The Keras that a model is of: that of now, or tf_keras, which is Keras 2."""
    import keras

    legacy = sys.modules.get("tf_keras")
    return legacy if legacy is not None and isinstance(model, legacy.Model) else keras


def overrides(model: Any, *methods: str) -> bool:
    """Whether the user's class, or the model itself, has one of Keras's methods of its own."""
    of_keras = library_of(model).Model
    return any(
        getattr(type(model), method) is not getattr(of_keras, method) or method in vars(model) for method in methods
    )


def declared(model: Any, ports: str) -> list[Any]:
    """The symbolic ``"inputs"`` or ``"outputs"`` of ``model``; none when its call() alone knows."""
    try:
        return list(getattr(model, ports, None) or [])
    except ValueError:  # a Sequential that was never built, before Keras 3.6
        return []


def _structure(model: Any, symbols: list[Any]) -> Any:
    if not symbols:
        return None
    # A Sequential has one input, which its own ``input`` does not find once it was loaded from a file.
    return symbols[0] if isinstance(model, library_of(model).Sequential) else model.input


def _numbers(structure: Any) -> Any:
    """``structure`` with the number of each leaf in its place."""
    import keras

    return keras.tree.pack_sequence_as(structure, list(range(len(keras.tree.flatten(structure)))))


def _ports(structure: Any, symbols: list[Any]) -> list[Port]:
    if isinstance(structure, dict) and len(structure) == len(symbols):
        # Users know an input by its key; keras.tree sorts by it.
        return [port_of(symbol, key) for key, symbol in zip(sorted(structure), symbols, strict=True)]
    return [port_of(symbol) for symbol in symbols]
