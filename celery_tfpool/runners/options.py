"""What is said of one model alone, of how it is loaded."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from .location import BadSource


@dataclass(frozen=True)
class LoadOptions:
    """Of one model, beside its path."""

    #: Of a SavedModel that has several; None: the usual one.
    signature: str | None = None
    #: Classes and functions that the file names: name → the thing, or where it is ("module:name").
    custom_objects: tuple[tuple[str, Any], ...] = ()

    def facts(self) -> list[str]:
        """What makes a pack another one."""
        objects = (f"custom object {name}: {_place_of(where)}" for name, where in self.custom_objects)
        return [f"signature {self.signature}", *objects]

    def objects(self) -> dict[str, Any]:
        """The custom objects by name.

        Raises:
            BadSource: there is none where one is said to be.
        """
        return {name: _imported(where) if isinstance(where, str) else where for name, where in self.custom_objects}


def _place_of(where: Any) -> str:
    return where if isinstance(where, str) else f"{where.__module__}:{where.__qualname__}"


def _imported(where: str) -> Any:
    module_name, _, attributes = where.partition(":")
    try:
        return attrgetter(attributes)(importlib.import_module(module_name))
    except (ImportError, AttributeError) as exc:
        raise BadSource(f"its custom object {where!r} cannot be imported: {exc}") from exc


#: Of most models nothing is said.
NOTHING = LoadOptions()
