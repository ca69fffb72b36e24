"""Call a Keras model that takes its inputs as they come.

That is a subclassed model, whose inputs only its ``call()`` knows, and any
model with a ``predict_step`` of the user's own, which must see the data as
Keras would give it.  So there is a trace for each structure, dtype and rank
that comes, and a size that changed once is taken to be variable.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NoReturn

from ..errors import InvalidInputError
from .convert import Misfit, arrays, short, sketch, to_floatx
from .dtypes import dtype_of
from .keras_model import KerasRunner, declared, overrides
from .protocol import CannotPack, Compiled
from .spec import Port, describe, sizes


def needed_by(model: Any) -> bool:
    """Whether ``model`` must be called freely."""
    return not declared(model, "inputs") or overrides(model, "predict_step")


class FreeRunner(KerasRunner):
    """Compiled calls of ``predict_step`` for whatever comes."""

    def __init__(self, name: str, model: Any) -> None:
        super().__init__(name, model)
        self._traces: dict[Any, tuple[list[Port], Compiled]] = {}

    #: None that are known by name: what its call() does with them is its own.
    layers: Sequence[str] = ()

    def forget(self) -> None:
        """Trace anew at the next call."""
        self._traces = {}  # a new one: another thread may be about to use the old

    def sample(self) -> Any:
        """There is none.

        Raises:
            Misfit: nobody knows what the model takes.
        """
        if self.inputs:
            return super().sample()
        port = self._only_input()
        if port is None:
            got = "nothing that says so: its inputs are known to its call() only"
            raise InvalidInputError(self.name, self._expected(), got)
        return port.zeros()

    def prepare(self, x: Any) -> tuple[Compiled, list[Any]]:
        """The trace for values like ``x``, made unless it has been already."""
        x, values, ports = self._flat(x)
        structure = _structure_of(x)
        try:
            return self._compiled_for(structure, ports), values
        # Keras's or the user's words on what does not fit
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as exc:
            raise Misfit(f"{sketch(x)}: {describe(ports)} ({short(exc)})") from exc

    def traced(self, x: Any) -> tuple[Compiled, list[Any]] | None:
        """As `prepare`, if there is a trace for ``x`` already; None when there is not.

        Raises:
            Misfit: ``x`` does not fit.
        """
        x, values, ports = self._flat(x)
        known, call = self._traces.get(_key(_structure_of(x), ports), ([], None))
        return None if call is None or not _cover(known, ports) else (call, values)

    def _flat(self, x: Any) -> tuple[Any, list[Any], list[Port]]:
        import keras

        x = arrays(self._empty(x))
        values = [to_floatx(leaf) for leaf in keras.tree.flatten(x)]
        return x, values, [Port(f"input {i}", dtype_of(v), (None, *v.shape[1:])) for i, v in enumerate(values)]

    def single_call(self) -> NoReturn:
        """There is none: each structure, dtype and rank has its own trace.

        Raises:
            CannotPack: always.
        """
        raise CannotPack("it does not say what inputs it takes, or has a predict_step() of its own")

    def _compiled_for(self, structure: Any, ports: list[Port]) -> Compiled:
        import keras

        pack = functools.partial(keras.tree.pack_sequence_as, structure)
        key = _key(structure, ports)
        with self._lock:
            known, call = self._traces.get(key, (ports, None))
            if call is None or not _cover(known, ports):
                call = self._trace(pack, ports)  # or the model's own words on this size
                if known is not ports:
                    ports = [k.widened(p.shape) for k, p in zip(known, ports, strict=True)]
                    call = self._trace(pack, ports)
                self._traces[key] = ports, call
            return call

    def _empty(self, x: Any) -> Any:
        """An empty list, which knows no shape, in that of the only input."""
        port = self._only_input() if isinstance(x, (list, tuple)) and not x else None
        return x if port is None else port.zeros()[:0]

    def _expected(self) -> str:
        if self.inputs:
            return super()._expected()
        built_for = self._built_for()
        return "what its call() takes" + (f", built for {_words(built_for)}" if built_for else "")

    def _only_input(self) -> Port | None:
        """What the model was built for; None when that is unknown or several inputs."""
        shape = self._built_for()
        if not isinstance(shape, (list, tuple)) or any(isinstance(size, (list, tuple, dict)) for size in shape):
            return None
        return Port("input", "float32", (None, *shape[1:]))

    def _built_for(self) -> Any:
        """The shape or shapes that a model without declared inputs was built for; None when it was not."""
        return (self.keras_model.get_build_config() or {}).get("input_shape")


def _structure_of(x: Any) -> Any:
    import keras

    return keras.tree.map_structure(lambda leaf: None, x)


def _key(structure: Any, ports: list[Port]) -> Any:
    return repr(structure), tuple((port.dtype, len(port.shape)) for port in ports)


def _cover(known: list[Port], ports: list[Port]) -> bool:
    return all(k.covers(p.shape) for k, p in zip(known, ports, strict=True))


def _words(built_for: Any) -> str:
    """Keras's record of the shapes that a model was built for, without the number of rows of that time."""
    if isinstance(built_for, dict):
        return "{" + ", ".join(f"{key!r}: {_words(part)}" for key, part in built_for.items()) + "}"
    if any(isinstance(part, (list, tuple, dict)) for part in built_for):
        return "[" + ", ".join(map(_words, built_for)) + "]"
    return "(" + ", ".join(["rows", *sizes(built_for[1:])]) + ")"
