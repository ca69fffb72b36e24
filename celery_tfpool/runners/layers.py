"""What layers inside a Keras model give: `predict` with the names of some of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

from .convert import Misfit

#: The name of a layer, whose output is wanted, or several.
Wanted: TypeAlias = str | Sequence[str]


def outputs_of(model: Any) -> dict[str, Any]:
    """Layer → its symbolic output, of all layers of a functional or sequential model but its inputs.

    Of a layer that is called several times, what its first call gives, as ``get_layer(name).output``.
    """
    import keras

    found = {}
    for layer in sorted(model.layers, key=lambda layer: layer.name):
        if isinstance(layer, keras.layers.InputLayer):
            continue
        try:
            found[layer.name] = layer.output
        except (AttributeError, ValueError):  # it is not called as a layer
            continue
    return found


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
