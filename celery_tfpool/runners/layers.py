"""What layers inside a Keras model give: `predict` with the names of some of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

from .. import _tensorflow
from .convert import Misfit

#: The name of a layer, whose output is wanted, or several.
Wanted: TypeAlias = str | Sequence[str]
#: Calls that are kept: whoever asks may ask for ever others.
_MOST_CALLS = 16


def outputs_of(model: Any, library: Any, part: Callable[[Any], Any]) -> dict[str, Any]:
    """Layer → its symbolic output, of all layers of a functional or sequential model but its inputs.

    Of a layer that is called several times, what its first call gives, as ``get_layer(name).output``.

    Args:
        library: the Keras that it is of.
        part: the model with other outputs; raises ValueError where they are not computed of its inputs.
    """
    found = {}
    for layer in sorted(model.layers, key=lambda layer: layer.name):
        if isinstance(layer, library.layers.InputLayer):
            continue
        try:
            found[layer.name] = _output_of(layer, isinstance(layer, library.Model))
        except (AttributeError, ValueError):  # it is not called as a layer
            continue
    try:
        part(found)
    except ValueError:
        return {name: output for name, output in found.items() if _is_reached(output, part)}
    return found


def _output_of(layer: Any, is_model: bool) -> Any:
    if is_model and (outputs := _tensorflow.outputs_of_first_call(layer)):  # its own are of its own inputs
        return outputs[0] if len(outputs) == 1 else outputs
    return layer.output


def _is_reached(output: Any, part: Callable[[Any], Any]) -> bool:
    try:
        part(output)
    except ValueError:
        return False
    return True


def names_of(wanted: Wanted, known: Sequence[str]) -> list[str]:
    """The layers that are meant.

    Raises:
        Misfit: there is none of that name, or none is named.
    """
    names = [wanted] if isinstance(wanted, str) else list(wanted) if isinstance(wanted, Iterable) else []
    if not names or not all(isinstance(name, str) for name in names):
        raise Misfit(f"outputs={wanted!r}; give the name of a layer, or a list of names")
    if missing := [name for name in names if name not in known]:
        has = f"its layers are {', '.join(known)}" if known else "it has none that is known by its name"
        raise Misfit(f"no layer {', '.join(map(repr, missing))}; {has}")
    return names


def chosen(wanted: Wanted, found: Sequence[Any]) -> Any:
    """What is returned: of one name its output, of several a list in their order."""
    return found[0] if isinstance(wanted, str) else list(found)


class InnerCalls:
    """The calls of one model that give outputs of layers, by the names of these."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, ...], Any] = {}

    def call(self, wanted: Wanted, known: Sequence[str], trace: Callable[[Sequence[str]], Any]) -> Any:
        """The `Compiled` that gives what is wanted.

        Args:
            trace: makes one whose outputs are a list of what these layers give.

        Raises:
            Misfit: there is no such layer.
        """
        names = names_of(wanted, known)
        key = tuple(sorted(set(names)))
        if (inner := self._kept.get(key)) is None:
            while len(self._kept) >= _MOST_CALLS:
                self._kept.pop(next(iter(self._kept)), None)
            inner = self._kept[key] = trace(key)
        places = [key.index(name) for name in names]

        def pick(found: Any) -> Any:
            return chosen(wanted, [found[place] for place in places])

        return replace(inner, function=lambda *values: pick(inner.function(*values)), outputs=pick(inner.outputs))

    def clear(self) -> None:
        """Make them anew."""
        self._kept.clear()
