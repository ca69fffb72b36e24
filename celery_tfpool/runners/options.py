"""What is said of one model alone, of how it is loaded."""

from __future__ import annotations

import importlib
import os
import sys
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from ..model_path import ModelPath
from .location import BadSource
from .protocol import CannotPack


@dataclass(frozen=True)
class LoadOptions:
    """Of one model, beside its path."""

    #: Of a SavedModel that has several; None: the usual one.
    signature: str | None = None
    #: Classes and functions that the file names: name → the thing, or where it is ("module:name").
    custom_objects: tuple[tuple[str, Any], ...] = ()
    #: The file of its weights, where they are not in the one of the model.
    weights: str | None = None
    #: Of what a function makes: what it makes is the same as long as this is.
    version: str | None = None

    @classmethod
    def of(cls, model: ModelPath) -> LoadOptions:
        """Those of a model of ``tf_model_path``."""
        return cls(model.signature, model.custom_objects, model.weights, model.version)

    def files(self, path: str) -> list[str]:
        """All that the model at ``path`` is loaded from."""
        return [os.path.expanduser(file) for file in (path, self.weights) if file]

    def facts(self) -> list[str]:
        """What makes a pack another one, beside the files.

        Raises:
            CannotPack: a custom object may be another without that being seen.
        """
        if nameless := self.nameless():
            raise CannotPack(
                f"its custom object {nameless} is not to be found by a name in a module, so that nobody "
                "can see whether it has changed; give it one"
            )
        objects = (f"custom object {name}: {_place_of(where)}" for name, where in self.custom_objects)
        return [f"signature {self.signature}", *objects]

    def nameless(self) -> str:
        """The names of custom objects that another process cannot import: made in a function, lambdas, partials."""
        found = (name for name, where in self.custom_objects if not (isinstance(where, str) or is_importable(where)))
        return ", ".join(map(repr, found))

    def objects(self) -> dict[str, Any]:
        """The custom objects by name.

        Raises:
            BadSource: there is none where one is said to be.
        """
        return {name: _imported(where) if isinstance(where, str) else where for name, where in self.custom_objects}


def is_importable(thing: Any) -> bool:
    """Whether another process finds the same under its name in its module."""
    module = sys.modules.get(getattr(thing, "__module__", None) or "")
    try:
        return attrgetter(thing.__qualname__)(module) is thing
    except AttributeError:
        return False


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
