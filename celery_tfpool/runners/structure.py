"""Nested dicts, lists and tuples of inputs or outputs as JSON, and back."""

from __future__ import annotations

from collections.abc import Callable
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


def map_leaves(function: Callable[[Any], Any], structure: Any) -> Any:
    """Nested dicts, lists and tuples with ``function`` of each leaf in its place."""
    if isinstance(structure, dict):
        return {key: map_leaves(function, part) for key, part in structure.items()}
    if isinstance(structure, (list, tuple)):
        return type(structure)(map_leaves(function, part) for part in structure)
    return function(structure)
