"""Nested dicts, lists and tuples of inputs or outputs: as JSON and back, leaf by leaf.

For processes that have no Keras; where there is one `keras.tree` does it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any


class CannotEncode(TypeError):
    """Why something is no structure of arrays, in words that follow "its inputs or outputs"."""


def structure_to_json(structure: Any, leaf: Callable[[Any], Any]) -> Any:
    """Nested dicts, lists and tuples as JSON, which tells them apart; ``leaf`` makes JSON of all else.

    Raises:
        CannotEncode: a named tuple, or a key that is no string.
    """
    if isinstance(structure, dict):
        if not all(isinstance(key, str) for key in structure):
            raise CannotEncode("have names that are not strings")
        return {"dict": [[key, structure_to_json(part, leaf)] for key, part in structure.items()]}
    if isinstance(structure, (list, tuple)):
        if hasattr(structure, "_fields"):
            raise CannotEncode("are a named tuple")
        kind = "tuple" if isinstance(structure, tuple) else "list"
        return {kind: [structure_to_json(part, leaf) for part in structure]}
    return {"leaf": leaf(structure)}


def structure_of_json(facts: Any, leaf: Callable[[Any], Any]) -> Any:
    """The inverse of `structure_to_json`, with ``leaf`` the inverse of its ``leaf``."""
    ((kind, value),) = facts.items()
    if kind == "dict":
        return {key: structure_of_json(part, leaf) for key, part in value}
    if kind in ("list", "tuple"):
        return (tuple if kind == "tuple" else list)(structure_of_json(part, leaf) for part in value)
    return leaf(value)


def leaves(structure: Any) -> Iterator[Any]:
    """Those of nested dicts, lists and tuples, in their order."""
    if isinstance(structure, (dict, list, tuple)):
        for part in structure.values() if isinstance(structure, dict) else structure:
            yield from leaves(part)
    else:
        yield structure


def map_leaves(function: Callable[[Any], Any], structure: Any) -> Any:
    """Nested dicts, lists and tuples with ``function`` of each leaf in its place."""
    if isinstance(structure, dict):
        return {key: map_leaves(function, part) for key, part in structure.items()}
    if isinstance(structure, (list, tuple)):
        return type(structure)(map_leaves(function, part) for part in structure)
    return function(structure)


def side_by_side(structure: Any, x: Any) -> Iterator[tuple[Any, Any]]:
    """Each leaf of ``structure`` with what ``x`` has in its place.

    Raises:
        LookupError: ``x`` is built otherwise.
    """
    if isinstance(structure, dict) and isinstance(x, Mapping) and set(x) == set(structure):
        for key in structure:
            yield from side_by_side(structure[key], x[key])
    elif isinstance(structure, (list, tuple)) and isinstance(x, (list, tuple)) and len(x) == len(structure):
        for part, value in zip(structure, x, strict=True):
            yield from side_by_side(part, value)
    elif isinstance(structure, (dict, list, tuple)):
        raise LookupError
    else:
        yield structure, x
